//! Which model is served for the one that a client names.

use crate::config::{Alias, Target};

/// What is known of the workers at this moment, by model.
pub trait Serving {
    /// A worker could take a request for it now.
    fn is_routable(&self, model: &str) -> bool;
    /// There is a worker that serves it, well or not.
    fn is_served(&self, model: &str) -> bool;
}

/// The model that `alias` gives to a request that names `asked`.
///
/// Of several models with weights, `sticky` says which: what has the same number gets the same model as long as the weights
/// are the same, and a weight that grows takes only as many from the others as it has to. While nobody could take a request
/// for that model, it is the first of the fallbacks that somebody could take; if there is none, the first of all that
/// anybody serves at all.
pub fn target<'a>(
    alias: &'a Alias,
    asked: &'a str,
    sticky: impl FnOnce() -> u64,
    serving: &impl Serving,
) -> &'a str {
    let chosen = match alias.to.as_slice() {
        [] => asked,
        [Target { model, .. }] => model,
        several => drawn(several, sticky()),
    };
    if alias.fallback.is_empty() || serving.is_routable(chosen) {
        return chosen;
    }
    let fallback = || alias.fallback.iter().map(String::as_str);
    fallback()
        .find(|model| serving.is_routable(model))
        .or_else(|| std::iter::once(chosen).chain(fallback()).find(|model| serving.is_served(model)))
        .unwrap_or(chosen)
}

/// The target on whose stretch `sticky` lies, where each has one as long as its weight.
fn drawn(targets: &[Target], sticky: u64) -> &str {
    let sum: u64 = targets.iter().map(|target| u64::from(target.weight)).sum();
    let mut place = (u128::from(sticky) * u128::from(sum)) >> 64;
    let found = targets.iter().find(|target| {
        let is_here = place < u128::from(target.weight);
        place = place.saturating_sub(u128::from(target.weight));
        is_here
    });
    &found.or(targets.last()).expect("checked: there is at least one").model
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::ModelPattern;

    /// Models that are routable, and models that are only served.
    struct Fleet(&'static [&'static str], &'static [&'static str]);

    impl Serving for Fleet {
        fn is_routable(&self, model: &str) -> bool {
            self.0.contains(&model)
        }

        fn is_served(&self, model: &str) -> bool {
            self.is_routable(model) || self.1.contains(&model)
        }
    }

    fn alias(to: &[(&str, u32)], fallback: &[&str]) -> Alias {
        let target = |(model, weight): &(&str, u32)| Target { model: (*model).to_owned(), weight: *weight };
        Alias {
            pattern: ModelPattern::Exact("asked".to_owned()),
            to: to.iter().map(target).collect(),
            fallback: fallback.iter().map(|model| (*model).to_owned()).collect(),
        }
    }

    #[test]
    fn a_fallback_is_for_while_nobody_is_routable() {
        let chain = alias(&[("a", 1)], &["b", "c"]);
        for (routable, served, expected) in [
            (&["a", "b"][..], &[][..], "a"),
            (&["c", "b"], &[], "b"),
            (&["c"], &["a"], "c"),
            (&[], &["b", "c"], "b"),
            (&[], &["a", "b"], "a"),
            (&[], &[], "a"),
        ] {
            assert_eq!(target(&chain, "asked", || 0, &Fleet(routable, served)), expected);
        }
        let plain = alias(&[], &["b"]);
        assert_eq!(target(&plain, "asked", || 0, &Fleet(&["asked", "b"], &[])), "asked");
        assert_eq!(target(&plain, "asked", || 0, &Fleet(&["b"], &[])), "b");
    }

    #[test]
    fn every_model_gets_its_share_and_a_growing_one_takes_no_more_than_it_needs() {
        let draw = |weights: [u32; 2]| -> Vec<String> {
            let alias = alias(&[("old", weights[0]), ("new", weights[1])], &[]);
            let mut random = fastrand::Rng::with_seed(1);
            (0..10_000)
                .map(|_| target(&alias, "asked", || random.u64(..), &Fleet(&[], &[])).to_owned())
                .collect()
        };
        let (few, more) = (draw([95, 5]), draw([80, 20]));
        let share = |drawn: &[String]| drawn.iter().filter(|model| *model == "new").count();
        assert!((400..600).contains(&share(&few)) && (1_800..2_200).contains(&share(&more)));
        assert!(few.iter().zip(&more).all(|(before, after)| before == "old" || after == "new"));
        assert_eq!(share(&draw([1, 0])), 0);
        assert_eq!(share(&draw([0, u32::MAX])), 10_000);
    }
}
