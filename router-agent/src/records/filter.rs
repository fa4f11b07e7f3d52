//! Which records somebody wants to see.

use serde::Deserialize;

use super::Record;
use crate::routing::Reason;

/// Each that is there must match; the query string of `/decisions`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct Filter {
    /// Exactly this request.
    pub request_id: Option<String>,
    /// The worker that was chosen, by name.
    pub worker: Option<String>,
    /// Why, by name.
    pub reason: Option<String>,
    /// Whose request, by name.
    pub tenant: Option<String>,
    /// The model, as the client or as the worker knows it.
    pub model: Option<String>,
}

/// A filter that could never match.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("no decision has the reason `{0}`; there are {list}", list = Reason::ALL.map(Reason::label).join(", "))]
pub struct WrongFilter(String);

impl Filter {
    /// Checks what has a bounded set of values.
    pub fn validate(&self) -> Result<(), WrongFilter> {
        match &self.reason {
            Some(reason) if !Reason::ALL.iter().any(|known| known.label() == reason) => {
                Err(WrongFilter(reason.clone()))
            }
            _ => Ok(()),
        }
    }

    /// Whether the record is wanted.
    pub fn matches(&self, record: &Record) -> bool {
        fn is<'r>(wanted: Option<&String>, found: impl IntoIterator<Item = &'r str>) -> bool {
            wanted.is_none_or(|wanted| found.into_iter().any(|found| found == wanted))
        }
        is(self.request_id.as_ref(), [record.request_id()])
            && is(self.worker.as_ref(), [record.worker()])
            && is(self.reason.as_ref(), [record.decision().reason.label()])
            && is(self.tenant.as_ref(), [record.tenant()])
            && is(self.model.as_ref(), record.model().into_iter().chain(record.asked_model()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::records::record::tests::record;

    #[test]
    fn every_part_of_a_filter_must_match() {
        let record = record("a", 1);
        let some = |text: &str| Some(text.to_owned());
        let all = Filter {
            request_id: some("a"),
            worker: some(""),
            reason: some("only_candidate"),
            tenant: some("team-a"),
            model: some("alias"),
        };
        assert!(Filter::default().matches(&record) && all.matches(&record));
        assert!(Filter { model: some("m"), ..Filter::default() }.matches(&record));
        for wrong in [
            Filter { request_id: some("b"), ..all.clone() },
            Filter { worker: some("gpu0"), ..all.clone() },
            Filter { reason: some("random"), ..all.clone() },
            Filter { tenant: some("team-b"), ..all.clone() },
            Filter { model: some("other"), ..all.clone() },
        ] {
            assert!(!wrong.matches(&record), "{wrong:?}");
        }
    }

    #[test]
    fn a_reason_that_there_is_not_is_named_with_those_that_there_are() {
        let wrong = Filter { reason: Some("lucky".to_owned()), ..Filter::default() };
        let error = wrong.validate().expect_err("no such reason").to_string();
        assert!(error.contains("lucky") && error.contains("prefix_hit"), "{error}");
    }
}
