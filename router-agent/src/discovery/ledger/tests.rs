//! What becomes of answers.

use super::*;
use crate::config::{WorkerConfig, worker_config};

const GONE_AFTER: Duration = Duration::from_secs(5);

fn worker(host: &str) -> WorkerConfig {
    worker_config(&format!("http://{host}:8000"), None).expect("a test's URL")
}

fn found(host: &str, readiness: Readiness) -> Found {
    Found { worker: worker(host), readiness }
}

fn ready(hosts: &[&str]) -> Vec<Found> {
    hosts.iter().map(|host| found(host, Readiness::Ready)).collect()
}

/// A ledger of one source, and its clock.
struct Book {
    ledger: Ledger,
    now: Instant,
    healthy: bool,
}

impl Book {
    fn of(hosts: &[&str]) -> Self {
        let mut ledger = Ledger::default();
        ledger.keep(std::iter::once("s".into()));
        let mut book = Self { ledger, now: Instant::now(), healthy: true };
        book.answer(ready(hosts));
        book
    }

    fn answer(&mut self, found: Vec<Found>) {
        self.ledger.answer("s", found, self.now);
    }

    /// Later; when to look again.
    fn after(&mut self, seconds: u64) -> Option<Duration> {
        self.now += Duration::from_secs(seconds);
        let healthy = self.healthy;
        self.ledger.settle(self.now, GONE_AFTER, |_| healthy)
    }

    /// `HOST`, or `HOST!` if it is not ready.
    fn members(&self) -> Vec<String> {
        let shown =
            |member: &Member| format!("{}{}", member.worker.url.host, if member.is_ready { "" } else { "!" });
        self.ledger.members().iter().map(shown).collect()
    }
}

#[test]
fn a_worker_that_is_not_named_is_used_for_a_while_and_stays_if_it_is_named_again() {
    let mut book = Book::of(&["a", "b"]);
    book.answer(ready(&["a"]));
    assert_eq!(book.after(3), Some(Duration::from_secs(2)));
    assert_eq!((book.members(), book.ledger.counts("s")), (vec!["a".to_owned(), "b".to_owned()], [1, 0, 1]));
    book.answer(ready(&["a", "b"]));
    assert_eq!((book.after(60), book.members().len()), (None, 2), "it was back in time");
    book.answer(ready(&["a"]));
    book.after(2);
    book.answer(ready(&["a"]));
    assert_eq!(book.after(3), None, "it counts from when it was missed first");
    assert_eq!(book.members(), ["a"]);
}

#[test]
fn one_that_is_ending_leaves_at_once_even_if_it_is_the_last() {
    let mut book = Book::of(&["a", "b"]);
    book.answer(vec![found("a", Readiness::Ready), found("b", Readiness::Ending)]);
    assert_eq!(book.members(), ["a"]);
    book.answer(vec![found("a", Readiness::Ending)]);
    assert_eq!((book.after(0), book.members().len()), (None, 0));
    book.answer(Vec::new());
    assert_eq!((book.after(0), book.members().len()), (None, 0), "nobody is nobody");
}

#[test]
fn an_empty_answer_is_believed_only_when_nobody_is_healthy() {
    let mut book = Book::of(&["a", "b"]);
    book.answer(Vec::new());
    assert!(book.after(3600).is_some(), "health is looked at again");
    assert_eq!(book.members(), ["a", "b"]);
    book.answer(vec![found("b", Readiness::Ending)]);
    assert_eq!(book.members(), ["a"], "nobody but one that is ending: no reason to let the others go");
    book.answer(ready(&["a", "b"]));
    book.answer(ready(&["a"]));
    book.after(0);
    assert_eq!(book.members(), ["a", "b"], "named again, it is an answer as any other");
    book.after(5);
    assert_eq!(book.members(), ["a"]);
    book.answer(Vec::new());
    book.healthy = false;
    assert_eq!((book.after(0), book.members().len()), (None, 0));
}

#[test]
fn a_worker_is_taken_in_when_it_is_ready_and_stays_when_it_is_not() {
    let mut book = Book::of(&["a"]);
    book.answer(vec![found("a", Readiness::Unready), found("b", Readiness::Unready)]);
    assert_eq!((book.members(), book.ledger.counts("s")), (vec!["a!".to_owned()], [0, 2, 0]));
    book.answer(ready(&["a", "b"]));
    assert_eq!(book.members(), ["a", "b"]);
}

#[test]
fn another_incarnation_at_the_same_address_is_another_worker() {
    let of = |uid: &str, readiness| {
        let worker = WorkerConfig { incarnation: Some(uid.to_owned()), ..worker("a") };
        Found { worker, readiness }
    };
    let mut book = Book::of(&[]);
    book.answer(vec![of("one", Readiness::Ready)]);
    book.answer(vec![of("two", Readiness::Unready)]);
    assert!(book.members().is_empty(), "it has not been ready yet");
    book.answer(vec![of("two", Readiness::Ready)]);
    assert_eq!(book.ledger.members()[0].worker.incarnation.as_deref(), Some("two"));
}

#[test]
fn an_address_that_is_named_twice_has_the_better_readiness() {
    let mut book = Book::of(&[]);
    book.answer(vec![
        found("a", Readiness::Ending),
        found("a", Readiness::Ready),
        found("a", Readiness::Unready),
    ]);
    assert_eq!(book.members(), ["a"]);
}

#[test]
fn a_source_that_is_not_configured_any_more_has_said_nothing() {
    let mut ledger = Ledger::default();
    let sources = |names: &'static [&'static str]| names.iter().map(|name| Arc::from(*name));
    ledger.keep(sources(&["x", "y"]));
    let now = Instant::now();
    ledger.answer("x", ready(&["a"]), now);
    ledger.answer("y", ready(&["b"]), now);
    ledger.answer("z", ready(&["c"]), now);
    ledger.keep(sources(&["y"]));
    let hosts: Vec<_> = ledger.members().into_iter().map(|member| member.worker.url.host).collect();
    assert_eq!(hosts, ["b"]);
}
