//! What a scrape shows that events do not.
//!
//! - **A reset that no event tells of.** vLLM publishes `AllBlocksCleared` with the next step that has output, so an idle
//!   engine's `POST /reset_prefix_cache` is not to be seen in the stream. But the server counts its requests
//!   (`http_requests_total{handler="/reset_prefix_cache"}`): more of those than of the events means that a cache is empty
//!   of which we still believe otherwise.
//! - **Sleep.** A sleeping engine has given its cache up (`vllm:engine_sleep_state`).
//! - **Silence.** An engine that computes tokens stores blocks and says so. Tokens without events: messages were lost at
//!   the end of the stream (a probe finds them), or none are coming.

use crate::fleet::KvFacts;

/// Blocks' worth of computed tokens without an event that make an engine silent. Short requests fill no block, so one
/// block's worth proves nothing.
const SILENT_BLOCKS: u64 = 64;

/// What to do after a scrape.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Verdict {
    /// The cache was emptied without our knowing.
    pub(super) emptied: Option<Emptied>,
    /// Something was computed and nothing was heard: ask for what may be missing.
    pub(super) probe: bool,
    /// So much was computed that something must have been stored.
    pub(super) silent: bool,
}

/// How a cache came to be empty.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Emptied {
    /// It was reset while the engine was idle.
    Reset,
    /// The engine sleeps, or has slept since the last scrape.
    Asleep,
    /// It was reset, and of what has been stored since, some may have been heard and some not.
    ResetUnheard,
}

/// Watches one stream.
#[derive(Debug, Default)]
pub(super) struct Vigil {
    /// `AllBlocksCleared` since the process's start, as far as seen.
    cleared: u64,
    /// Whether no `AllBlocksCleared` can have been missed since the process's start, or since a scrape.
    is_certain: bool,
    /// Resets that were taken from a scrape, and whose event has not come.
    ahead: u64,
    /// Events beyond the resets at the last scrape: the server clears for reasons of its own, too.
    surplus: u64,
    sleeps: Option<u64>,
    /// The engine's tokens at the last scrape.
    tokens: Option<u64>,
    /// Of these, those before which nothing can be missing: no more than there were at the last message or probe.
    tokens_probed: u64,
    /// No fewer than there were at the last message.
    tokens_heard: u64,
    messages: u64,
}

impl Vigil {
    /// The history is read again; `from_start`: from number 0.
    pub(super) fn start_over(&mut self, from_start: bool) {
        (self.cleared, self.ahead, self.surplus) = (0, 0, 0);
        self.is_certain = from_start;
    }

    /// What was in them cannot be known.
    pub(super) fn missed_messages(&mut self) {
        self.is_certain = false;
    }

    /// An `AllBlocksCleared` was applied.
    pub(super) fn heard_clear(&mut self) {
        self.cleared += 1;
        self.ahead = self.ahead.saturating_sub(1);
    }

    /// A scrape was made; `messages` have been heard so far on the stream of `rank`.
    pub(super) fn scraped(
        &mut self,
        facts: &KvFacts,
        rank: usize,
        messages: u64,
        block_tokens: u32,
    ) -> Verdict {
        let mut verdict = Verdict::default();
        let slept_before = self.sleeps.replace(facts.sleeps);
        let was_certain = std::mem::replace(&mut self.is_certain, true);
        let was_reset = self.check_resets(facts.resets);
        if facts.is_asleep || slept_before.is_some_and(|before| facts.sleeps > before) {
            verdict.emptied = Some(Emptied::Asleep);
        } else if was_reset {
            verdict.emptied = Some(if was_certain { Emptied::Reset } else { Emptied::ResetUnheard });
        }

        let tokens = facts.computed_tokens.get(rank).copied().unwrap_or(0);
        let heard = std::mem::replace(&mut self.messages, messages) != messages;
        match self.tokens.replace(tokens) {
            Some(before) if before <= tokens && heard => {
                // What was computed since the last scrape may have been announced before that message or behind it.
                self.tokens_probed = before;
                self.tokens_heard = tokens;
            }
            Some(before) if before <= tokens => {
                verdict.probe = tokens > self.tokens_probed;
                verdict.silent = verdict.probe
                    && tokens - self.tokens_heard >= SILENT_BLOCKS * u64::from(block_tokens.max(1));
                self.tokens_probed = tokens;
            }
            // The first scrape, or another process.
            _ => (self.tokens_probed, self.tokens_heard) = (0, tokens),
        }
        verdict
    }

    fn check_resets(&mut self, resets: u64) -> bool {
        let accounted = self.cleared + self.ahead;
        if resets > accounted {
            self.ahead += resets - accounted;
            self.surplus = 0;
            return true;
        }
        // An event may be here before its request is counted. What is too many for longer came from elsewhere, and must
        // not make up for the next reset.
        let surplus = accounted - resets;
        let lasting = surplus.min(std::mem::replace(&mut self.surplus, surplus));
        self.cleared -= lasting.min(self.cleared);
        self.surplus -= lasting;
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn facts(resets: u64, tokens: u64) -> KvFacts {
        KvFacts { resets, computed_tokens: vec![0, tokens], ..KvFacts::default() }
    }

    fn resets(vigil: &mut Vigil, resets: u64) -> bool {
        vigil.scraped(&facts(resets, 0), 1, 0, 16).emptied == Some(Emptied::Reset)
    }

    #[test]
    fn a_reset_that_may_have_been_announced_in_a_gap_leaves_doubt_once() {
        let mut vigil = Vigil::default();
        let mut emptied = |resets| vigil.scraped(&facts(resets, 0), 1, 0, 16).emptied;
        assert_eq!(
            [emptied(2), emptied(2), emptied(3)],
            [Some(Emptied::ResetUnheard), None, Some(Emptied::Reset)]
        );
        vigil.missed_messages();
        let mut emptied = |resets| vigil.scraped(&facts(resets, 0), 1, 0, 16).emptied;
        assert_eq!([emptied(3), emptied(4)], [None, Some(Emptied::Reset)], "no reset was missed");
    }

    #[test]
    fn a_reset_without_its_event_is_noticed_once() {
        let mut vigil = Vigil::default();
        assert!(!resets(&mut vigil, 0));
        assert!(resets(&mut vigil, 1));
        assert!(!resets(&mut vigil, 1));
        vigil.heard_clear(); // late
        assert!(!resets(&mut vigil, 1));
        assert!(resets(&mut vigil, 3));
    }

    #[test]
    fn a_reset_whose_event_came_first_is_none() {
        let mut vigil = Vigil::default();
        vigil.heard_clear();
        assert!(!resets(&mut vigil, 0), "not counted yet");
        assert!(!resets(&mut vigil, 1));
        assert!(resets(&mut vigil, 2));
    }

    #[test]
    fn clears_of_the_servers_own_do_not_hide_a_reset() {
        let mut vigil = Vigil::default();
        vigil.heard_clear();
        vigil.heard_clear();
        assert!(!resets(&mut vigil, 0) && !resets(&mut vigil, 0));
        assert!(resets(&mut vigil, 1));
        assert!(!resets(&mut vigil, 1));
    }

    #[test]
    fn a_reset_before_the_gateway_started_counts() {
        let mut vigil = Vigil::default();
        vigil.start_over(true);
        vigil.heard_clear(); // in the history
        assert!(resets(&mut vigil, 2), "the second one came after the last step");
    }

    #[test]
    fn sleep_is_seen_while_it_lasts_and_afterwards() {
        let mut vigil = Vigil::default();
        let mut slept = |sleeps, is_asleep| {
            let facts = KvFacts { sleeps, is_asleep, ..KvFacts::default() };
            vigil.scraped(&facts, 0, 0, 16).emptied == Some(Emptied::Asleep)
        };
        assert!(!slept(4, false), "before our time");
        assert!(slept(5, true) && slept(5, true));
        assert!(!slept(5, false));
        assert!(slept(6, false), "asleep and awake again between two scrapes");
    }

    #[test]
    fn tokens_without_messages_are_probed_and_many_of_them_are_silence() {
        let mut vigil = Vigil::default();
        let mut scrape = |tokens, messages| {
            let verdict = vigil.scraped(&facts(0, tokens), 1, messages, 16);
            (verdict.probe, verdict.silent)
        };
        assert_eq!(scrape(5000, 7), (false, false), "the first scrape is where it begins");
        assert_eq!(scrape(5000, 7), (true, false), "something may have been lost before it");
        assert_eq!(scrape(5000, 7), (false, false));
        assert_eq!(scrape(5015, 7), (true, false));
        assert_eq!(scrape(5015, 7), (false, false), "probed already");
        assert_eq!(scrape(5000 + 1023, 7), (true, false));
        assert_eq!(scrape(5000 + 1024, 7), (true, true));
        assert_eq!(scrape(9000, 8), (false, false), "heard again");
        assert_eq!(scrape(9000, 8), (true, false), "something may have been lost behind that message");
        assert_eq!(scrape(9000, 8), (false, false));
        assert_eq!(scrape(10, 8), (false, false), "another process");
        assert_eq!(scrape(20, 8), (true, false));
    }
}
