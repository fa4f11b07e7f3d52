//! Whether a worker's engine still works: `GET /health` says 200 while it hangs.
//!
//! A worker that has requests and says nothing, not a byte on any of its responses, for longer than it is silent as a
//! rule, is *suspect*: it is asked for one token. If that does not come it is *hung*: routed around, and requests that
//! have not been answered yet go to other workers ([`Liveness::until_hung`]). The probe is repeated until it passes; a
//! byte of any response clears the worker as well.
//!
//! As a rule: the 99.9th percentile of the silences it has had while it had requests, by powers of two, not less than
//! `health.silence`, and what its queue is expected to take is added. Silences are looked at every [`TICK`]; they come
//! from the counts that all relays keep (the kernel's of the streams that it moves among them), so nothing is added to
//! the path of a byte.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU8, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use http::StatusCode;
use router_common::latency::LatencyKind;
use tokio::{sync::watch, time::MissedTickBehavior};

use super::Worker;
use crate::{config::Health as Settings, kernel::Flows, limits, upstream::fetch};

/// How often a worker's output is looked at.
const TICK: Duration = Duration::from_millis(250);

/// What is thought of a worker's engine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Pulse {
    /// It works, or has nothing to do.
    Live = 0,
    /// It is silent for longer than usual, and is being asked for a token.
    Suspect = 1,
    /// It did not give one.
    Hung = 2,
}

impl Pulse {
    /// Every state, for metrics that show one series per state.
    pub const ALL: [Self; 3] = [Self::Live, Self::Suspect, Self::Hung];

    /// The name in metrics and logs.
    pub fn label(self) -> &'static str {
        match self {
            Self::Live => "live",
            Self::Suspect => "suspect",
            Self::Hung => "hung",
        }
    }
}

/// One worker's pulse, for whoever sends there.
#[derive(Debug)]
pub struct Liveness {
    pulse: AtomicU8,
    hung: watch::Sender<bool>,
}

impl Default for Liveness {
    fn default() -> Self {
        Self { pulse: AtomicU8::new(Pulse::Live as u8), hung: watch::Sender::new(false) }
    }
}

impl Liveness {
    /// What is thought of it now.
    pub fn pulse(&self) -> Pulse {
        match self.pulse.load(Relaxed) {
            1 => Pulse::Suspect,
            2 => Pulse::Hung,
            _ => Pulse::Live,
        }
    }

    /// Completes when the worker is found hung; at once if it is.
    pub async fn until_hung(&self) {
        // The sender is in this value: it cannot be gone.
        let _ = self.hung.subscribe().wait_for(|hung| *hung).await;
    }

    fn set(&self, pulse: Pulse) {
        self.pulse.store(pulse as u8, Relaxed);
        self.hung
            .send_if_modified(|hung| std::mem::replace(hung, pulse == Pulse::Hung) != (pulse == Pulse::Hung));
    }
}

/// The silences of one worker while it had requests.
#[derive(Debug)]
struct Silence {
    /// Since when it has said nothing, or has had nothing to say.
    since: Instant,
    outputs: u64,
    /// Bucket `i`: up to 2^i ticks.
    ended: [u32; 16],
}

impl Silence {
    fn new(now: Instant) -> Self {
        Self { since: now, outputs: 0, ended: [0; 16] }
    }

    /// Looks at the counts; how long the silence has lasted.
    fn look(&mut self, now: Instant, in_flight: u32, outputs: u64) -> Duration {
        if outputs != self.outputs {
            self.outputs = outputs;
            self.learn(now.duration_since(self.since));
            self.since = now;
        } else if in_flight == 0 {
            self.since = now;
        }
        now.duration_since(self.since)
    }

    fn learn(&mut self, lasted: Duration) {
        let ticks = lasted.as_millis().div_ceil(TICK.as_millis()).max(1) as u64;
        let bucket = (ticks.next_power_of_two().ilog2() as usize).min(self.ended.len() - 1);
        self.ended[bucket] += 1;
        if self.ended.iter().sum::<u32>() >= 100_000 {
            self.ended.iter_mut().for_each(|count| *count /= 2); // what is long ago counts less
        }
    }

    /// The 99.9th percentile; none while there were none.
    fn usual(&self) -> Option<Duration> {
        let total: u64 = self.ended.iter().map(|count| u64::from(*count)).sum();
        let mut below = 0;
        let bucket = self.ended.iter().position(|count| {
            below += u64::from(*count);
            total > 0 && below * 1_000 >= total * 999
        })?;
        Some(TICK * (1 << bucket))
    }
}

/// Everything that the worker has said so far: events of streams, bytes that were copied, whole answers.
fn outputs(worker: &Worker, flows: &Flows) -> u64 {
    let count = |kind| flows.latency(u32::from(worker.slot.0), kind).map_or(0, |histogram| histogram.count);
    let metrics = &worker.metrics;
    let answered = metrics.completed.get() + metrics.failed.get() + metrics.rejected.get();
    let events = count(LatencyKind::TimeToFirstByte) + count(LatencyKind::EventGap);
    events.wrapping_add(worker.load.chunks()).wrapping_add(answered)
}

/// Watches a worker's silences for ever.
pub(super) async fn watch(worker: Arc<Worker>, flows: Flows, settings: impl Fn() -> Settings) {
    let mut silence = Silence::new(Instant::now());
    let mut ticks = tokio::time::interval(TICK);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        let settings = settings();
        let silent_for = silence.look(Instant::now(), worker.load.in_flight(), outputs(&worker, &flows));
        let usual = silence.usual().unwrap_or_default().max(settings.silence);
        let queue = expected_queue_time(&worker);
        if silent_for <= usual.saturating_add(queue) {
            continue;
        }
        tracing::info!(worker = %worker.name, ?silent_for, ?usual, "worker says nothing: it is asked for a token");
        worker.liveness.set(Pulse::Suspect);
        while !ask(&worker, &flows, settings.probe_timeout.saturating_add(queue), &mut silence).await {
            if worker.liveness.pulse() != Pulse::Hung {
                tracing::warn!(worker = %worker.name, ?silent_for, "worker hangs: it gives no token; it is routed around");
                worker.liveness.set(Pulse::Hung);
            }
            tokio::time::sleep(settings.interval).await;
        }
        if worker.liveness.pulse() == Pulse::Suspect {
            silence.learn(silent_for); // it was no fault: next time it is given longer
        } else {
            tracing::info!(worker = %worker.name, "worker gives tokens again");
        }
        worker.liveness.set(Pulse::Live);
        silence.outputs = outputs(&worker, &flows);
        silence.since = Instant::now();
    }
}

/// What the engine is expected to take for the prompts that this gateway has sent it.
fn expected_queue_time(worker: &Worker) -> Duration {
    let tokens = worker.load.queued_prefill_tokens() as f64;
    let seconds = worker.speed.get().map_or(0.0, |speed| speed.token_s * tokens);
    Duration::try_from_secs_f64(seconds).unwrap_or_default().min(limits::RESPONSE_HEAD_TIMEOUT)
}

/// Asks for one token. Whether the worker can go on: it gave one, or said something else meanwhile, or cannot be asked.
async fn ask(worker: &Worker, flows: &Flows, timeout: Duration, silence: &mut Silence) -> bool {
    let models = worker.models();
    let model =
        models.as_ref().and_then(|models| models.entries().first()?["id"].as_str().map(str::to_owned));
    let mut body = serde_json::json!({"prompt": "Hello", "max_tokens": 1, "temperature": 0});
    if let Some(model) = model {
        body["model"] = model.into();
    }
    let said_something = async {
        loop {
            tokio::time::sleep(TICK).await;
            if outputs(worker, flows) != silence.outputs {
                return;
            }
        }
    };
    let answer = tokio::select! {
        answer = fetch::probe(worker, "/v1/completions", body.to_string().into(), timeout, limits::PROBE_ANSWER_BYTES_MAX) => answer,
        () = said_something => {
            worker.metrics.faults.probes_overtaken.inc();
            return true;
        }
    };
    let probes = &worker.metrics.faults;
    match answer {
        Ok((StatusCode::OK, _)) => {
            probes.probes_passed.inc();
            true
        }
        // It wants a key, or does not complete texts: then this tells nothing.
        Ok((status, _)) if status.is_client_error() => {
            probes.probes_refused.inc();
            tracing::debug!(worker = %worker.name, %status, "worker cannot be asked for a token");
            true
        }
        Ok((status, _)) => {
            probes.probes_failed.inc();
            tracing::debug!(worker = %worker.name, %status, "worker gives no token");
            false
        }
        Err(error) => {
            probes.probes_failed.inc();
            tracing::debug!(worker = %worker.name, %error, "worker gives no token");
            false
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn silence_lasts_from_the_last_word_while_there_are_requests() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let mut silence = Silence::new(start);
        assert_eq!(silence.look(at(50), 0, 0), Duration::ZERO, "it has nothing to say");
        assert_eq!(silence.look(at(53), 1, 0), Duration::from_secs(3));
        assert_eq!(silence.look(at(54), 1, 7), Duration::ZERO);
        assert_eq!(silence.look(at(60), 2, 7), Duration::from_secs(6));
    }

    #[test]
    fn what_is_usual_is_learned_and_rare_silences_do_not_count() {
        let mut silence = Silence::new(Instant::now());
        assert_eq!(silence.usual(), None);
        (0..5_000).for_each(|_| silence.learn(TICK));
        assert_eq!(silence.usual(), Some(TICK));
        silence.learn(Duration::from_mins(1));
        assert_eq!(silence.usual(), Some(TICK), "one of 5,000");
        (0..10).for_each(|_| silence.learn(Duration::from_secs(20)));
        let usual = silence.usual().expect("there were some");
        assert!(usual >= Duration::from_secs(20) && usual <= Duration::from_secs(40), "{usual:?}");
    }

    #[tokio::test]
    async fn those_who_wait_for_a_worker_hear_that_it_hangs() {
        let liveness = Arc::new(Liveness::default());
        let waiter = {
            let liveness = liveness.clone();
            tokio::spawn(async move { liveness.until_hung().await })
        };
        tokio::task::yield_now().await;
        liveness.set(Pulse::Suspect);
        tokio::task::yield_now().await;
        assert!(!waiter.is_finished(), "suspicion is not enough");
        liveness.set(Pulse::Hung);
        waiter.await.expect("it hears of it");
        liveness.until_hung().await;
        liveness.set(Pulse::Live);
        assert_eq!(liveness.pulse(), Pulse::Live);
    }
}
