//! The load: requests at random moments, whatever becomes of those before them.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    time::{Duration, Instant},
};

use tokio::task::JoinSet;

use super::{
    answers::{Answers, WORDS_MAX},
    client::{Outcome, Question, ask},
};

/// One in so many flighty clients hangs up.
const LEAVES_ONE_IN: u32 = 15;
/// Findings that are told one by one.
const EXAMPLES_MAX: usize = 20;

/// What clients are like.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Clients {
    /// They wait for the end.
    Patient,
    /// Some hang up.
    Flighty,
}

/// Where to, and how much.
#[derive(Debug, Clone, Copy)]
pub(super) struct Load {
    pub(super) gateway: SocketAddr,
    /// Requests per second.
    pub(super) rate: f64,
    pub(super) seed: u64,
}

/// How many requests ended how.
#[derive(Debug, Default, Clone)]
pub(super) struct Tally {
    pub(super) exact: u64,
    /// Cut behind the first byte.
    pub(super) cut: u64,
    /// Cut before it: another worker could have begun anew.
    pub(super) cut_at_once: u64,
    pub(super) left: u64,
    /// By status and code.
    pub(super) refused: BTreeMap<(u16, String), u64>,
    pub(super) wrong: u64,
    /// The first of them, in words.
    pub(super) examples: Vec<String>,
}

impl Tally {
    fn count(&mut self, outcome: Outcome) {
        match outcome {
            Outcome::Exact => self.exact += 1,
            Outcome::CutAtOnce => self.cut_at_once += 1,
            Outcome::Cut => self.cut += 1,
            Outcome::Left => self.left += 1,
            Outcome::Refused(status, code) => *self.refused.entry((status, code)).or_default() += 1,
            Outcome::Wrong(what) => {
                self.wrong += 1;
                if self.examples.len() < EXAMPLES_MAX {
                    self.examples.push(what);
                }
            }
        }
    }

    pub(super) fn requests(&self) -> u64 {
        self.exact + self.cut + self.cut_at_once + self.left + self.wrong + self.refused.values().sum::<u64>()
    }

    /// What must not be. Without trouble (`calm`), nothing but exact answers.
    pub(super) fn findings(&self, calm: bool) -> Vec<String> {
        let mut findings = Vec::new();
        if self.wrong > 0 {
            findings.push(format!("{} wrong answers, such as {}", self.wrong, self.examples.join("; ")));
        }
        if self.cut_at_once > 0 {
            findings.push(format!("{} answers cut before their first byte", self.cut_at_once));
        }
        let refused: Vec<_> =
            self.refused.iter().map(|((status, code), count)| format!("{count} × {status} {code}")).collect();
        if !refused.is_empty() {
            findings.push(format!("requests refused although workers were there: {}", refused.join(", ")));
        }
        if calm && self.cut > 0 {
            findings.push(format!("{} answers cut without any trouble", self.cut));
        }
        findings
    }
}

impl Load {
    /// Sends requests for `duration`, and waits for the last answer.
    pub(super) async fn run(&self, answers: &Answers, duration: Duration, clients: Clients) -> Tally {
        let mut random = fastrand::Rng::with_seed(self.seed);
        let (mut tally, mut running) = (Tally::default(), JoinSet::new());
        let begin = Instant::now();
        let mut due = Duration::ZERO;
        while due < duration {
            due += Duration::from_secs_f64(-(1.0 - random.f64()).ln() / self.rate);
            let (prompt, answer) = answers.draw(&mut random);
            let question = Question {
                prompt: prompt.to_owned(),
                answer: answer.to_owned(),
                words: random.usize(1..=WORDS_MAX),
                stream: random.u8(..4) > 0,
                leaves_after: (clients == Clients::Flighty && random.u32(..LEAVES_ONE_IN) == 0)
                    .then(|| if random.bool() { 0 } else { random.usize(1..4_000) }),
            };
            tokio::time::sleep_until((begin + due).into()).await;
            let gateway = self.gateway;
            running.spawn(async move { ask(gateway, &question).await });
            while let Some(outcome) = running.try_join_next() {
                tally.count(outcome.expect("a client does not panic"));
            }
        }
        while let Some(outcome) = running.join_next().await {
            tally.count(outcome.expect("a client does not panic"));
        }
        tally
    }
}
