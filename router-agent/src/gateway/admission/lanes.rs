//! Deficit round robin over tenants (Shreedhar and Varghese, SIGCOMM 1995): each has a lane, each lane in its turn may
//! spend a quantum times its weight, and what it has not spent it keeps for its next turn, as long as it waits.
//!
//! Costs are prompt tokens, so a tenant of few long prompts and one of many short ones get the same work done. Not every
//! request can go to the worker that has room: of a lane, the first that can is taken; a lane without one loses nothing.

use std::{collections::VecDeque, sync::Arc, time::Instant};

/// Prompt tokens per turn and unit of weight. Less would be fairer over short times; a turn should let a usual prompt
/// through.
const QUANTUM: u64 = 2_048;

/// Somebody who waits.
#[derive(Debug)]
pub(super) struct Waiting<T> {
    pub(super) id: u64,
    /// Prompt tokens, at least 1.
    pub(super) cost: u64,
    pub(super) since: Instant,
    pub(super) item: T,
}

#[derive(Debug)]
struct Lane<T> {
    tenant: Arc<str>,
    weight: u32,
    deficit: u64,
    /// It has been given its quantum, and may go on spending.
    has_turn: bool,
    waiting: VecDeque<Waiting<T>>,
}

impl<T> Lane<T> {
    fn quantum(&self) -> u64 {
        QUANTUM * u64::from(self.weight.max(1))
    }
}

/// The lanes of all tenants that wait, in the order of their turns.
#[derive(Debug)]
pub(super) struct Lanes<T>(VecDeque<Lane<T>>);

impl<T> Default for Lanes<T> {
    fn default() -> Self {
        Self(VecDeque::new())
    }
}

impl<T> Lanes<T> {
    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// At the end of its tenant's lane.
    pub(super) fn push(&mut self, tenant: &Arc<str>, weight: u32, waiting: Waiting<T>) {
        self.lane(tenant, weight).waiting.push_back(waiting);
    }

    /// At the head of its tenant's lane, where it was: what it had cost is given back.
    pub(super) fn put_back(&mut self, tenant: &Arc<str>, weight: u32, waiting: Waiting<T>) {
        let lane = self.lane(tenant, weight);
        lane.deficit = lane.deficit.saturating_add(waiting.cost);
        lane.waiting.push_front(waiting);
    }

    fn lane(&mut self, tenant: &Arc<str>, weight: u32) -> &mut Lane<T> {
        let at = self.0.iter().position(|lane| lane.tenant == *tenant).unwrap_or_else(|| {
            let (tenant, waiting) = (tenant.clone(), VecDeque::new());
            self.0.push_back(Lane { tenant, weight, deficit: 0, has_turn: false, waiting });
            self.0.len() - 1
        });
        let lane = &mut self.0[at];
        lane.weight = weight;
        lane
    }

    /// Whose turn it is, of those that are `eligible`.
    pub(super) fn take(&mut self, mut eligible: impl FnMut(&T) -> bool) -> Option<Waiting<T>> {
        let first = |lane: &Lane<T>| lane.waiting.iter().position(|waiting| eligible(&waiting.item));
        let places: Vec<Option<usize>> = self.0.iter().map(first).collect();
        if places.iter().all(Option::is_none) {
            return None;
        }
        loop {
            for (at, place) in places.iter().enumerate() {
                let Some(place) = *place else { continue };
                let lane = &mut self.0[at];
                if !std::mem::replace(&mut lane.has_turn, true) {
                    lane.deficit = lane.deficit.saturating_add(lane.quantum());
                }
                if lane.waiting[place].cost <= lane.deficit {
                    return self.serve(at, place);
                }
                lane.has_turn = false;
            }
            // A whole round, and nobody has saved enough: as many more as the first of them needs, at once.
            let needed = |(lane, place): (&Lane<T>, &Option<usize>)| {
                let missing = lane.waiting[(*place)?].cost - lane.deficit;
                Some(missing.div_ceil(lane.quantum()))
            };
            let rounds = self.0.iter().zip(&places).filter_map(needed).min().unwrap_or(1);
            for (lane, _) in self.0.iter_mut().zip(&places).filter(|(_, place)| place.is_some()) {
                lane.deficit = lane.deficit.saturating_add((rounds - 1).saturating_mul(lane.quantum()));
            }
        }
    }

    /// Those before it in the round have had their turns.
    fn serve(&mut self, at: usize, place: usize) -> Option<Waiting<T>> {
        self.0.rotate_left(at);
        let lane = self.0.front_mut()?;
        let waiting = lane.waiting.remove(place)?;
        lane.deficit -= waiting.cost;
        if lane.waiting.is_empty() {
            self.0.pop_front();
        }
        Some(waiting)
    }

    /// Who leaves.
    pub(super) fn remove(&mut self, tenant: &str, id: u64) -> Option<Waiting<T>> {
        let at = self.0.iter().position(|lane| &*lane.tenant == tenant)?;
        let lane = &mut self.0[at];
        let place = lane.waiting.iter().position(|waiting| waiting.id == id)?;
        let waiting = lane.waiting.remove(place);
        if lane.waiting.is_empty() {
            self.0.remove(at);
        }
        waiting
    }

    /// The last of a tenant's lane.
    pub(super) fn youngest(&self, tenant: &str) -> Option<u64> {
        let lane = self.0.iter().find(|lane| &*lane.tenant == tenant)?;
        lane.waiting.back().map(|waiting| waiting.id)
    }

    /// Since when the one who has waited longest waits.
    pub(super) fn oldest(&self) -> Option<Instant> {
        self.0.iter().filter_map(|lane| lane.waiting.front()).map(|waiting| waiting.since).min()
    }

    /// What waits, by tenant: weight and cost.
    pub(super) fn backlog(&self) -> impl Iterator<Item = (&Arc<str>, u32, u64)> {
        self.0.iter().map(|lane| {
            let cost = lane.waiting.iter().map(|waiting| waiting.cost).sum();
            (&lane.tenant, lane.weight, cost)
        })
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use proptest::prelude::*;

    use super::*;

    fn waiting(id: u64, cost: u64) -> Waiting<u64> {
        Waiting { id, cost, since: Instant::now(), item: id }
    }

    #[test]
    fn many_short_prompts_and_few_long_ones_get_the_same_work_done() {
        let (short, long): (Arc<str>, Arc<str>) = ("short".into(), "long".into());
        let mut lanes = Lanes::default();
        (0..1_000).for_each(|id| lanes.push(&short, 1, waiting(id, 100)));
        (0..10).for_each(|id| lanes.push(&long, 1, waiting(10_000 + id, 10_000)));
        let mut served = [0, 0];
        while served[0].max(served[1]) < 90_000 {
            let next = lanes.take(|_| true).expect("all wait");
            served[usize::from(next.id >= 10_000)] += next.cost;
        }
        assert!(served[0].abs_diff(served[1]) <= 10_000 + QUANTUM, "{served:?}");
    }

    #[test]
    fn who_cannot_go_is_passed_over_and_keeps_its_place() {
        let tenant: Arc<str> = "a".into();
        let mut lanes = Lanes::default();
        (0..3).for_each(|id| lanes.push(&tenant, 1, waiting(id, 1)));
        assert_eq!(lanes.take(|id| *id != 0).map(|waiting| waiting.id), Some(1));
        assert_eq!(lanes.take(|_| false).map(|waiting| waiting.id), None);
        assert_eq!(lanes.take(|_| true).map(|waiting| waiting.id), Some(0));
    }

    proptest! {
        /// Work conservation, order within a tenant, nobody starves, and the bound: of two tenants that wait all the
        /// time, neither gets more than a turn and a prompt ahead of the other, by weight.
        #[test]
        fn shares_follow_weights(
            tenants in proptest::collection::vec((1_u32..5, proptest::collection::vec(1_u64..20_000, 60..120)), 2..6)
        ) {
            let mut lanes = Lanes::default();
            let names: Vec<Arc<str>> = (0..tenants.len()).map(|number| number.to_string().into()).collect();
            for (name, (weight, costs)) in names.iter().zip(&tenants) {
                for (place, cost) in costs.iter().enumerate() {
                    lanes.push(name, *weight, Waiting { id: place as u64, cost: *cost, since: Instant::now(), item: name.clone() });
                }
            }
            let dearest = tenants.iter().flat_map(|(_, costs)| costs).max().copied().unwrap_or(0);
            let mut work: HashMap<Arc<str>, u64> = HashMap::new();
            let mut next_id: HashMap<Arc<str>, u64> = HashMap::new();
            let total: usize = tenants.iter().map(|(_, costs)| costs.len()).sum();
            let mut all_wait = true;
            for _ in 0..total {
                let taken = lanes.take(|_| true).expect("somebody waits: somebody is served");
                let expected = next_id.entry(taken.item.clone()).or_default();
                prop_assert_eq!(taken.id, *expected, "in order");
                *expected += 1;
                *work.entry(taken.item.clone()).or_default() += taken.cost;
                all_wait &= lanes.0.len() == tenants.len();
                if all_wait {
                    let shares: Vec<u64> = names.iter().zip(&tenants).map(|(name, (weight, _))| {
                        work.get(name).copied().unwrap_or(0) / u64::from(*weight)
                    }).collect();
                    let (least, most) = (shares.iter().min().expect("tenants"), shares.iter().max().expect("tenants"));
                    prop_assert!(most - least <= QUANTUM + 2 * dearest, "{:?}", shares);
                }
            }
            prop_assert!(lanes.is_empty() && lanes.take(|_| true).is_none());
        }
    }
}
