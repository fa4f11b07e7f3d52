//! Who waits for a worker, and who is next: priorities, and within each of them a fair share for every tenant ([`Lanes`]).
//!
//! The lowest priority value goes first, as in vLLM. So that nobody waits for ever behind a stream of more urgent ones,
//! one place in [`OLDEST_EVERY`] goes to the priority that somebody has waited in for longest.
//!
//! Bounded: when it is full, a newcomer pushes out the last of the tenant that holds most of it by weight, if that tenant
//! then still holds more than the newcomer's; so nobody can fill it for the others. A tenant that holds most itself can
//! push out only what is less urgent of its own.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
    time::Instant,
};

use super::lanes::{Lanes, Waiting};

/// See the module.
const OLDEST_EVERY: u64 = 4;

/// What somebody waits as.
#[derive(Debug, Clone)]
pub(crate) struct Bid {
    /// Whose it is.
    pub(crate) tenant: Arc<str>,
    /// The tenant's share beside the others'.
    pub(crate) weight: u32,
    /// The lower, the sooner.
    pub(crate) priority: i64,
    /// Prompt tokens, at least 1.
    pub(crate) cost: u64,
}

/// See the module.
#[derive(Debug)]
pub(super) struct FairQueue<T> {
    classes: BTreeMap<i64, Lanes<T>>,
    /// How many each tenant has here, and its weight.
    held: HashMap<Arc<str>, (usize, u32)>,
    len: usize,
    taken: u64,
    next_id: u64,
}

impl<T> Default for FairQueue<T> {
    fn default() -> Self {
        Self { classes: BTreeMap::new(), held: HashMap::new(), len: 0, taken: 0, next_id: 0 }
    }
}

/// Who was let in, and who was pushed out for it.
#[derive(Debug)]
pub(super) struct Pushed<T> {
    pub(super) id: u64,
    pub(super) pushed_out: Option<T>,
}

impl<T> FairQueue<T> {
    pub(super) fn len(&self) -> usize {
        self.len
    }

    /// Lets somebody in, at the end of its tenant's lane; `None` where there is no place.
    pub(super) fn push(&mut self, bid: &Bid, now: Instant, limit: usize, item: T) -> Option<Pushed<T>> {
        let pushed_out = if self.len < limit { None } else { Some(self.push_out_for(bid)?) };
        let id = self.next_id;
        self.next_id += 1;
        let waiting = Waiting { id, cost: bid.cost, since: now, item };
        self.classes.entry(bid.priority).or_default().push(&bid.tenant, bid.weight, waiting);
        self.count(bid);
        Some(Pushed { id, pushed_out })
    }

    /// Whoever was taken and could not go after all is in front again.
    pub(super) fn put_back(&mut self, bid: &Bid, waiting: Waiting<T>) {
        self.classes.entry(bid.priority).or_default().put_back(&bid.tenant, bid.weight, waiting);
        self.count(bid);
    }

    fn count(&mut self, bid: &Bid) {
        self.len += 1;
        let held = self.held.entry(bid.tenant.clone()).or_default();
        *held = (held.0 + 1, bid.weight.max(1));
    }

    fn uncount(&mut self, tenant: &str) {
        self.len -= 1;
        if let Some(held) = self.held.get_mut(tenant) {
            held.0 -= 1;
            if held.0 == 0 {
                self.held.remove(tenant);
            }
        }
    }

    /// Who is next, of those that are `eligible`. `tenant_of` tells whose an item is.
    pub(super) fn take(
        &mut self,
        mut eligible: impl FnMut(&T) -> bool,
        tenant_of: impl Fn(&T) -> Arc<str>,
    ) -> Option<Waiting<T>> {
        let is_oldests = self.taken % OLDEST_EVERY == OLDEST_EVERY - 1;
        let mut order: Vec<i64> = self.classes.keys().copied().collect();
        if is_oldests {
            order.sort_by_key(|priority| self.classes[priority].oldest());
        }
        for priority in order {
            let Some(lanes) = self.classes.get_mut(&priority) else { continue };
            let Some(waiting) = lanes.take(&mut eligible) else { continue };
            if lanes.is_empty() {
                self.classes.remove(&priority);
            }
            self.taken += 1;
            self.uncount(&tenant_of(&waiting.item));
            return Some(waiting);
        }
        None
    }

    /// Who leaves; `None` if it is not here any more.
    pub(super) fn remove(&mut self, bid: &Bid, id: u64) -> Option<T> {
        let lanes = self.classes.get_mut(&bid.priority)?;
        let waiting = lanes.remove(&bid.tenant, id)?;
        if lanes.is_empty() {
            self.classes.remove(&bid.priority);
        }
        self.uncount(&bid.tenant);
        Some(waiting.item)
    }

    /// Makes a place for a newcomer at the cost of another, if that is fair.
    fn push_out_for(&mut self, bid: &Bid) -> Option<T> {
        let share = |(count, weight): (usize, u32)| count as f64 / f64::from(weight.max(1));
        let (tenant, most) = self
            .held
            .iter()
            .map(|(tenant, held)| (tenant.clone(), *held))
            .max_by(|a, b| share(a.1).total_cmp(&share(b.1)))?;
        let own = self.held.get(&bid.tenant).map_or(0, |held| held.0);
        let not_above = if tenant == bid.tenant {
            Some(bid.priority) // its own, and only what is less urgent
        } else if share((most.0 - 1, most.1)) >= share((own + 1, bid.weight)) {
            None
        } else {
            return None;
        };
        let (priority, id) = self
            .classes
            .iter()
            .rev()
            .take_while(|(priority, _)| not_above.is_none_or(|own| **priority > own))
            .find_map(|(priority, lanes)| Some((*priority, lanes.youngest(&tenant)?)))?;
        let victim = Bid { tenant, weight: 1, priority, cost: 1 };
        self.remove(&victim, id)
    }

    /// Prompt tokens that will be served before a newcomer with this bid, if nobody else comes: its own tenant's, and of
    /// each other as many as its share allows meanwhile. Less urgent ones are left out.
    pub(super) fn ahead_of(&self, bid: &Bid) -> u64 {
        let mut backlog: HashMap<&Arc<str>, (u32, u64)> = HashMap::new();
        for (_, lanes) in self.classes.range(..=bid.priority) {
            for (tenant, weight, cost) in lanes.backlog() {
                let sum = backlog.entry(tenant).or_insert((weight, 0));
                sum.1 = sum.1.saturating_add(cost);
            }
        }
        let own = backlog.remove(&bid.tenant).map_or(0, |(_, cost)| cost).saturating_add(bid.cost);
        let per_weight = own as f64 / f64::from(bid.weight.max(1));
        let others: f64 = backlog
            .values()
            .map(|(weight, cost)| (*cost as f64).min(per_weight * f64::from((*weight).max(1))))
            .sum();
        own.saturating_add(others as u64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An item that knows whose it is.
    type Item = (Arc<str>, u32);

    fn bid(tenant: &str, priority: i64) -> Bid {
        Bid { tenant: tenant.into(), weight: 1, priority, cost: 100 }
    }

    fn push(queue: &mut FairQueue<Item>, bid: &Bid, number: u32, limit: usize) -> Option<Pushed<Item>> {
        queue.push(bid, Instant::now(), limit, (bid.tenant.clone(), number))
    }

    fn take(queue: &mut FairQueue<Item>) -> Option<(String, u32)> {
        let waiting = queue.take(|_| true, |item| item.0.clone())?;
        Some((waiting.item.0.to_string(), waiting.item.1))
    }

    #[test]
    fn the_lowest_priority_value_goes_first_and_every_fourth_place_to_whoever_has_waited_longest() {
        let mut queue = FairQueue::default();
        (0..3).for_each(|number| drop(push(&mut queue, &bid("late", 5), number, 100)));
        (0..9).for_each(|number| drop(push(&mut queue, &bid("soon", -1), number, 100)));
        let order: String = std::iter::from_fn(|| take(&mut queue))
            .map(|(tenant, _)| if tenant == "soon" { 's' } else { 'l' })
            .collect();
        assert_eq!(order, "ssslssslsssl");
        assert_eq!(queue.len(), 0);
    }

    #[test]
    fn whoever_holds_most_of_a_full_queue_makes_room_for_the_others() {
        let mut queue = FairQueue::default();
        (0..10).for_each(|number| assert!(push(&mut queue, &bid("greedy", 0), number, 10).is_some()));
        assert!(push(&mut queue, &bid("greedy", 0), 10, 10).is_none(), "not for itself");
        for number in 0..5 {
            let pushed = push(&mut queue, &bid("modest", 0), number, 10).expect("it has less than its share");
            assert_eq!(
                pushed.pushed_out.map(|(tenant, number)| (tenant.to_string(), number)),
                Some(("greedy".into(), 9 - number))
            );
        }
        assert!(push(&mut queue, &bid("modest", 0), 5, 10).is_none(), "half is its share");
        assert_eq!(queue.len(), 10);
    }

    #[test]
    fn a_tenants_urgent_request_pushes_out_its_own_less_urgent_one() {
        let mut queue = FairQueue::default();
        push(&mut queue, &bid("a", 7), 0, 2).expect("there is room");
        push(&mut queue, &bid("a", 0), 1, 2).expect("there is room");
        let pushed = push(&mut queue, &bid("a", 0), 2, 2).expect("more urgent than the first");
        assert_eq!(pushed.pushed_out.map(|item| item.1), Some(0));
        assert!(push(&mut queue, &bid("a", 0), 3, 2).is_none());
    }

    #[test]
    fn who_leaves_is_gone_and_who_is_put_back_is_first_again() {
        let mut queue = FairQueue::default();
        let ids: Vec<u64> =
            (0..3).map(|number| push(&mut queue, &bid("a", 0), number, 9).expect("room").id).collect();
        assert_eq!(queue.remove(&bid("a", 0), ids[1]).map(|item| item.1), Some(1));
        assert!(queue.remove(&bid("a", 0), ids[1]).is_none());
        let first = queue.take(|_| true, |item| item.0.clone()).expect("two are left");
        queue.put_back(&bid("a", 0), first);
        assert_eq!(queue.len(), 2);
        assert_eq!(std::iter::from_fn(|| take(&mut queue)).map(|item| item.1).collect::<Vec<_>>(), [0, 2]);
    }

    #[test]
    fn what_is_ahead_is_ones_own_and_the_others_share() {
        let mut queue = FairQueue::default();
        (0..50).for_each(|number| drop(push(&mut queue, &bid("greedy", 0), number, 100)));
        (0..2).for_each(|number| drop(push(&mut queue, &bid("modest", 0), number, 100)));
        (0..7).for_each(|number| drop(push(&mut queue, &bid("patient", 9), number, 100)));
        assert_eq!(queue.ahead_of(&bid("modest", 0)), 600, "three of its own, and three of the other");
        assert_eq!(queue.ahead_of(&bid("greedy", 0)), 5_300);
        assert_eq!(queue.ahead_of(&bid("new", 0)), 300);
        assert_eq!(queue.ahead_of(&Bid { weight: 3, ..bid("modest", 0) }), 400);
    }
}
