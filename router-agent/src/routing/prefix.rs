//! `prefix`: the longest match, with a valve for a worker that has too many requests.
//!
//! llm-cache-router's rule, in whole blocks: candidates by blocks matched, then by requests in flight. If the best has
//! fewer than `blocks_min`, the least loaded is chosen. If it has `saturation` requests or more, the next one that
//! matches enough and has fewer is; if there is none, the least loaded. Equals go to the one chosen longest ago (there: to
//! a random one), and a block's hash covers all before it (there: each chunk for itself).

use std::cmp::Reverse;

use super::{Candidate, Choice, Reason, Router, load};

impl Router {
    pub(super) fn longest_match(&self, candidates: &[Candidate]) -> Option<(Choice, Option<Reason>)> {
        let settings = self.settings.prefix;
        let rank = |at: usize| {
            let candidate = &candidates[at];
            (Reverse(candidate.matched_blocks), candidate.in_flight, self.last_chosen(candidate))
        };
        let matches = |at: &usize| candidates[*at].matched_blocks >= settings.blocks_min.max(1);
        let Some(longest) = (0..candidates.len()).filter(matches).min_by_key(|at| rank(*at)) else {
            return self.least_loaded(candidates).map(|choice| (choice, None));
        };
        let has_room = |at: &usize| candidates[*at].in_flight < settings.saturation;
        if has_room(&longest) {
            let equals = |at: usize| {
                let (a, b) = (&candidates[at], &candidates[longest]);
                (a.matched_blocks, a.in_flight) == (b.matched_blocks, b.in_flight)
            };
            let runner_up = (0..candidates.len()).filter(|at| *at != longest).min_by_key(|at| rank(*at));
            let tied = (0..candidates.len()).filter(|at| equals(*at)).count() as u32;
            let cost = |at: usize| load(&candidates[at]).0;
            let runner_up = runner_up.map(|at| (at, cost(at)));
            let choice = Choice { at: longest, cost: cost(longest), runner_up, tied };
            return Some((choice, Some(Reason::PrefixHit)));
        }
        let next = (0..candidates.len()).filter(matches).filter(has_room).min_by_key(|at| rank(*at));
        let choice = match next {
            Some(at) => Choice {
                at,
                cost: load(&candidates[at]).0,
                runner_up: Some((longest, load(&candidates[longest]).0)),
                tied: 1,
            },
            None => self.least_loaded(candidates)?,
        };
        // Where even the least loaded one is the one with the longest match, nothing was given up.
        let reason = if choice.at == longest { Reason::PrefixHit } else { Reason::Saturated };
        Some((choice, Some(reason)))
    }
}
