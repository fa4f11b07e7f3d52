//! `session`: every request of a session to the same worker, within a bound.
//!
//! Consistent hashing with bounded loads (Mirrokni, Thorup, Zadimoghaddam, arXiv 1608.01350): a worker may have `bound`
//! times the mean number of requests, this one counted in; where the session's own worker has that many, the next one in
//! the session's order takes the request. The order is by rendezvous hashing (highest hash of session and worker first)
//! instead of a ring: it needs no state, moves a session only if its own worker goes, and spreads what overflows over
//! all others. O(candidates) per decision, a few nanoseconds each.
//!
//! A request without a key goes to the least loaded worker.

use xxhash_rust::xxh3::xxh3_64_with_seed;

use super::{Candidate, Choice, Reason, Router, load};

impl Router {
    pub(super) fn of_session(
        &self,
        session: Option<u64>,
        candidates: &[Candidate],
    ) -> Option<(Choice, Option<Reason>)> {
        let Some(session) = session else {
            return self.least_loaded(candidates).map(|choice| (choice, None));
        };
        let total: u64 = candidates.iter().map(|candidate| u64::from(candidate.in_flight)).sum();
        let mean = (total + 1) as f64 / candidates.len() as f64;
        let bound = (mean * self.settings.session.bound).ceil();
        let has_room = |candidate: &Candidate| f64::from(candidate.in_flight) < bound;
        let rank = |at: &usize| affinity(session, &candidates[*at]);
        let cost = |at: usize| load(&candidates[at]).0;
        let choice = |at: usize, runner_up: Option<usize>| Choice {
            at,
            cost: cost(at),
            runner_up: runner_up.map(|at| (at, cost(at))),
            tied: 1,
        };
        let own = (0..candidates.len()).max_by_key(rank)?;
        if has_room(&candidates[own]) {
            return Some((choice(own, None), Some(Reason::Session)));
        }
        // One has at most the mean, so there is room somewhere.
        let next = (0..candidates.len()).filter(|at| has_room(&candidates[*at])).max_by_key(rank)?;
        Some((choice(next, Some(own)), Some(Reason::SessionOverflow)))
    }
}

/// The higher, the sooner the session goes there.
pub(super) fn affinity(session: u64, candidate: &Candidate) -> u64 {
    xxh3_64_with_seed(&candidate.identity.to_le_bytes(), session)
}
