//! What happens to the workers and to the gateway, and when: a few at a time, so that another worker can always serve.

use std::{
    collections::BTreeMap,
    fmt::Write as _,
    path::Path,
    thread::JoinHandle,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, anyhow};
use rustix::process::Signal;
use tokio::sync::watch;

use super::{
    gateway::{Gateway, RELOAD_EVERY},
    worker::Worker,
};

/// Workers in trouble at once, of eight.
const AT_ONCE_OF_EIGHT: usize = 3;

/// What happens to a worker.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Kind {
    /// SIGKILL, and started again later.
    Killed,
    /// SIGTERM, and started again at once.
    Restarted,
    /// SIGSTOP: nothing answers, connections stay.
    Stopped,
    /// The engine hangs; `/health` says 200.
    Hung,
    /// Requests are read and never answered; `/health` says 200.
    Mute,
    /// Streams are reset in the middle.
    Resets,
    /// Streams end in the middle of a chunk.
    Truncates,
    /// Streams end with vLLM's error event.
    Errs,
    /// Streams pause for a while.
    Stalls,
    /// Connections are reset as they are accepted.
    ResetsAll,
    /// 503 to everything.
    Refuses,
    /// A tenth of its speed, from a new start to the next.
    Slow,
    /// Its cable is pulled.
    CutOff,
}

impl Kind {
    const ALL: [Self; 13] = [
        Self::Killed,
        Self::Restarted,
        Self::Stopped,
        Self::Hung,
        Self::Mute,
        Self::Resets,
        Self::Truncates,
        Self::Errs,
        Self::Stalls,
        Self::ResetsAll,
        Self::Refuses,
        Self::Slow,
        Self::CutOff,
    ];

    fn label(self) -> &'static str {
        match self {
            Self::Killed => "killed",
            Self::Restarted => "restarted",
            Self::Stopped => "stopped (SIGSTOP)",
            Self::Hung => "engine hung",
            Self::Mute => "requests never answered",
            Self::Resets => "streams reset",
            Self::Truncates => "streams cut in a chunk",
            Self::Errs => "error events",
            Self::Stalls => "streams pause",
            Self::ResetsAll => "connections reset",
            Self::Refuses => "503",
            Self::Slow => "ten times slower",
            Self::CutOff => "cable pulled",
        }
    }

    /// As the simulation's faults, if it is one of them.
    fn faults(self) -> Option<&'static str> {
        Some(match self {
            Self::Hung => r#"[{"kind": "freeze"}]"#,
            Self::Mute => r#"[{"kind": "hang"}]"#,
            Self::Resets => r#"[{"kind": "die", "after_events": 3, "how": "rst", "share": 0.5}]"#,
            Self::Truncates => r#"[{"kind": "truncated_chunk", "after_events": 2, "share": 0.5}]"#,
            Self::Errs => r#"[{"kind": "error_event", "after_events": 2, "share": 0.5}]"#,
            Self::Stalls => r#"[{"kind": "stall", "after_events": 2, "for_ms": 1500, "share": 0.5}]"#,
            Self::ResetsAll => r#"[{"kind": "reset_on_accept"}]"#,
            Self::Refuses => r#"[{"kind": "status", "status": 503, "retry_after_s": 1}]"#,
            _ => return None,
        })
    }

    fn begin(self, worker: &mut Worker) -> Result<()> {
        match self {
            Self::Killed => worker.end(Signal::KILL),
            Self::Restarted => worker.end(Signal::TERM).and_then(|()| worker.run(1.0)),
            Self::Stopped => worker.signal(Signal::STOP),
            Self::Slow => worker.end(Signal::TERM).and_then(|()| worker.run(0.1)),
            Self::CutOff => worker.set_cable(false),
            other => worker.set_faults(other.faults().unwrap_or("[]")),
        }
    }

    fn end(self, worker: &mut Worker) -> Result<()> {
        match self {
            Self::Killed => worker.run(1.0),
            Self::Restarted => Ok(()),
            Self::Stopped => worker.signal(Signal::CONT),
            Self::Slow => worker.end(Signal::TERM).and_then(|()| worker.run(1.0)),
            Self::CutOff => worker.set_cable(true),
            // One that resets whoever connects cannot be told to stop: it is started anew.
            Self::ResetsAll => worker.end(Signal::KILL).and_then(|()| worker.run(1.0)),
            _ => worker.set_faults("[]"),
        }
    }
}

/// How often what happened.
#[derive(Debug, Default, Clone)]
pub(super) struct Log {
    counts: BTreeMap<Kind, u64>,
    pub(super) reloads: u64,
}

impl Log {
    /// In words.
    pub(super) fn summary(&self) -> String {
        let mut text = String::new();
        for (kind, count) in &self.counts {
            write!(text, "{} × {}, ", count, kind.label()).expect("a String takes everything");
        }
        write!(text, "{} × the gateway reloaded", self.reloads).expect("a String takes everything");
        text
    }
}

/// The threads that make trouble.
pub(super) struct Makers {
    workers: JoinHandle<Result<(Log, Vec<Worker>)>>,
    gateway: JoinHandle<Result<(u64, Gateway)>>,
}

impl Makers {
    /// Makes trouble until `stop`; then all is mended.
    pub(super) fn start(
        workers: Vec<Worker>,
        gateway: Gateway,
        seed: u64,
        logs: &Path,
        stop: watch::Receiver<bool>,
    ) -> Self {
        let (log, also) = (logs.join("trouble.log"), stop.clone());
        Self {
            workers: std::thread::spawn(move || trouble(workers, seed, &log, &stop)),
            gateway: std::thread::spawn(move || reload(gateway, &also)),
        }
    }

    /// Waits for them, and gives back what they had.
    pub(super) async fn join(self) -> Result<(Log, Vec<Worker>, Gateway)> {
        let joined = tokio::task::spawn_blocking(|| (self.workers.join(), self.gateway.join())).await?;
        let panicked = |_| anyhow!("a thread panicked");
        let (mut log, workers) = joined.0.map_err(panicked)??;
        let (reloads, gateway) = joined.1.map_err(panicked)??;
        log.reloads = reloads;
        Ok((log, workers, gateway))
    }
}

fn reload(mut gateway: Gateway, stop: &watch::Receiver<bool>) -> Result<(u64, Gateway)> {
    let (mut reloads, mut due) = (0, Instant::now() + RELOAD_EVERY);
    while !*stop.borrow() {
        if Instant::now() >= due {
            gateway.reload().context("reloading the gateway")?;
            reloads += 1;
            due += RELOAD_EVERY;
        }
        std::thread::sleep(Duration::from_millis(100));
    }
    Ok((reloads, gateway))
}

/// What a worker suffers, and until when.
struct Suffering {
    worker: usize,
    kind: Kind,
    until: Instant,
}

fn trouble(
    mut workers: Vec<Worker>,
    seed: u64,
    log: &Path,
    stop: &watch::Receiver<bool>,
) -> Result<(Log, Vec<Worker>)> {
    let mut random = fastrand::Rng::with_seed(seed);
    let at_once = (workers.len() * AT_ONCE_OF_EIGHT / 8).max(1);
    let (begin, mut told, mut result) = (Instant::now(), String::new(), Log::default());
    let mut suffering: Vec<Suffering> = Vec::new();
    // Every kind as often as any other, in a random order.
    let mut next: Vec<Kind> = Vec::new();
    while !*stop.borrow() {
        let now = Instant::now();
        for done in suffering.extract_if(.., |one| one.until <= now) {
            let worker = &mut workers[done.worker];
            done.kind.end(worker).with_context(|| format!("mending worker {}", worker.number))?;
        }
        if suffering.len() < at_once && random.u8(..4) == 0 {
            if next.is_empty() {
                next = Kind::ALL.to_vec();
                random.shuffle(&mut next);
            }
            let kind = next.pop().expect("just filled");
            let fits = |number: &usize| {
                suffering.iter().all(|one| one.worker != *number)
                    && (kind != Kind::CutOff || workers[*number].has_cable())
            };
            let free: Vec<usize> = (0..workers.len()).filter(fits).collect();
            if !free.is_empty() {
                let worker = free[random.usize(..free.len())];
                let pause = Duration::from_millis(random.u64(1_000..4_000));
                let at = begin.elapsed().as_secs_f64();
                writeln!(told, "{at:8.3} s worker {worker}: {} for {pause:?}", kind.label())?;
                kind.begin(&mut workers[worker])
                    .with_context(|| format!("{} on worker {worker}", kind.label()))?;
                *result.counts.entry(kind).or_default() += 1;
                suffering.push(Suffering { worker, kind, until: Instant::now() + pause });
            }
        }
        std::thread::sleep(Duration::from_millis(100));
    }
    for done in suffering {
        done.kind.end(&mut workers[done.worker])?;
    }
    std::fs::write(log, told).with_context(|| log.display().to_string())?;
    Ok((result, workers))
}
