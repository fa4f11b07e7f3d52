//! `top` over the pinned BPF maps: what the kernel programs and the gateway write there, read without asking the gateway.
//! Rates and times are over what came since the maps were read a minute ago, or first.

use std::{
    cmp::Reverse,
    collections::{HashMap, VecDeque},
    net::{IpAddr, Ipv6Addr, SocketAddr},
    path::Path,
    time::Instant,
};

use router_common::{
    decisions::DecisionValue,
    flows::{FlowState, FlowValue},
    latency::{LatencyKind, LatencyValue},
    names,
    prefixes::PrefixValue,
    workers::WorkerValue,
};

use super::{
    Source, TopError,
    view::{DecisionLine, NO_TIMES, PrefixLine, StreamLine, Times, View, WorkerLine},
};
use crate::{
    admin::{Buckets, between},
    cli::maps::until_nul,
    kernel::{DEFAULT_ROOT, KernelError, PinnedMaps, Row, now_ns},
};

/// Readings that are kept: a minute of them, one a second.
const READINGS: usize = 60;

/// What is compared from one reading to the next.
struct Reading {
    at: Instant,
    /// By worker: requests, and both histograms.
    workers: HashMap<u32, (u64, Buckets, Buckets)>,
}

/// See the module.
pub(super) struct Pinned {
    maps: PinnedMaps,
    readings: VecDeque<Reading>,
}

impl Pinned {
    /// The maps of a gateway that runs; none if there are none, or not for this user.
    pub(super) fn open(instance: Option<&str>) -> Option<Self> {
        let maps = PinnedMaps::open(Path::new(DEFAULT_ROOT), instance).ok()?;
        let who = maps.instance().ok()?;
        let is_there = maps.is_live() && PinnedMaps::is_readable(&who);
        is_there.then(|| Self { maps, readings: VecDeque::new() })
    }

    fn look(&mut self) -> Result<View, KernelError> {
        let now_ns = now_ns();
        let who = self.maps.instance()?;
        let workers = self.maps.rows::<WorkerValue>(names::WORKERS)?;
        let name_of = |index: u32| {
            let found = workers.iter().find(|row| row.key == index);
            found.map_or_else(|| format!("#{index}"), |row| until_nul(&row.value.name))
        };
        let mut times: HashMap<u32, (Buckets, Buckets)> = HashMap::new();
        for Row { value, .. } in self.maps.rows::<LatencyValue>(names::LATENCY)? {
            let (first, gap) = times.entry(value.worker).or_insert((NO_TIMES, NO_TIMES));
            match value.kind {
                LatencyKind::TimeToFirstByte => *first = value.buckets,
                LatencyKind::EventGap => *gap = value.buckets,
            }
        }
        let of = |row: &Row<WorkerValue>| {
            let (first, gap) = times.get(&row.key).copied().unwrap_or((NO_TIMES, NO_TIMES));
            (row.key, (row.value.requests_total, first, gap))
        };
        let reading = Reading { at: Instant::now(), workers: workers.iter().map(of).collect() };
        let worker_lines: Vec<_> =
            workers.iter().map(|row| worker_line(row, self.readings.front(), &reading)).collect();
        let rates = worker_lines.iter().map(|line| line.requests_per_s).sum();
        if self.readings.len() == READINGS {
            self.readings.pop_front();
        }
        self.readings.push_back(reading);

        let mut flows = self.maps.rows::<FlowValue>(names::FLOWS)?;
        flows.retain(|row| row.value.state != FlowState::Free);
        flows.sort_by_key(|row| row.value.started_ns);
        let mut prefixes = self.maps.prefixes()?;
        prefixes.sort_by_key(|row| Reverse(row.value.hits));
        let mut decisions = self.maps.decisions()?;
        decisions.sort_by_key(|decision| Reverse(decision.sequence));
        Ok(View {
            source: "kernel maps".to_owned(),
            uptime_s: Some(now_ns.saturating_sub(who.started_ns) as f64 / 1e9),
            requests_per_s: rates,
            workers: worker_lines,
            streams: flows
                .iter()
                .map(|row| stream_line(&row.value, name_of(row.value.worker), now_ns))
                .collect(),
            prefixes: prefixes.iter().map(|row| prefix_line(row.key, &row.value, &name_of, now_ns)).collect(),
            decisions: decisions.iter().map(|it| decision_line(it, name_of(it.worker), now_ns)).collect(),
        })
    }
}

impl Source for Pinned {
    fn read(&mut self) -> Result<View, TopError> {
        if !self.maps.is_live() {
            return Err(TopError::Gone);
        }
        self.look().map_err(TopError::Kernel)
    }
}

fn worker_line(row: &Row<WorkerValue>, before: Option<&Reading>, now: &Reading) -> WorkerLine {
    let worker = &row.value;
    let (requests, first, gap) = now.workers[&row.key];
    let old = before.and_then(|reading| Some((reading.at, reading.workers.get(&row.key)?)));
    let requests_per_s = old.map(|(at, (old, ..))| {
        let seconds = now.at.duration_since(at).as_secs_f64().max(0.001);
        requests.saturating_sub(*old) as f64 / seconds
    });
    // Until there is something new: all that there was.
    let since = |old: Option<&Buckets>, new: &Buckets| {
        let new_ones = old.map_or(NO_TIMES, |old| between(old, new));
        if new_ones == NO_TIMES { *new } else { new_ones }
    };
    WorkerLine {
        name: until_nul(&worker.name),
        state: worker.state.name().to_lowercase(),
        breaker: worker.breaker.name().to_lowercase(),
        in_flight: worker.in_flight.into(),
        kv_cache: f64::from(worker.kv_usage_permille) / 1000.0,
        queued_prefill_tokens: worker.queued_prefill_tokens,
        requests_per_s,
        first_token: Times::of(&since(old.map(|(_, (_, first, _))| first), &first)),
        between_tokens: Times::of(&since(old.map(|(_, (_, _, gap))| gap), &gap)),
    }
}

fn stream_line(flow: &FlowValue, worker: String, now_ns: u64) -> StreamLine {
    let ip = Ipv6Addr::from(flow.client);
    let ip = ip.to_ipv4_mapped().map_or(IpAddr::V6(ip), IpAddr::V4);
    StreamLine {
        client: SocketAddr::new(ip, flow.client_port as u16).to_string(),
        worker,
        moved_by: flow.state.name().to_lowercase(),
        age_s: now_ns.saturating_sub(flow.started_ns) as f64 / 1e9,
        first_token_s: (flow.first_byte_ns != 0)
            .then(|| flow.first_byte_ns.saturating_sub(flow.started_ns) as f64 / 1e9),
        events: flow.events,
        bytes: flow.bytes,
    }
}

fn prefix_line(hash: u64, prefix: &PrefixValue, name_of: &impl Fn(u32) -> String, now_ns: u64) -> PrefixLine {
    let holds = |worker: &u32| prefix.workers[*worker as usize / 64] >> (worker % 64) & 1 == 1;
    PrefixLine {
        hash: format!("{hash:016x}"),
        blocks: prefix.depth_blocks.into(),
        hits: prefix.hits,
        idle_s: now_ns.saturating_sub(prefix.last_used_ns) as f64 / 1e9,
        workers: (0..prefix.workers.len() as u32 * 64).filter(holds).map(name_of).collect(),
    }
}

fn decision_line(decision: &DecisionValue, worker: String, now_ns: u64) -> DecisionLine {
    DecisionLine {
        age_s: now_ns.saturating_sub(decision.decided_ns) as f64 / 1e9,
        request_id: until_nul(&decision.request_id),
        worker,
        reason: snake(decision.reason.name()),
        prompt_tokens: decision.prompt_tokens.into(),
        matched_tokens: decision.matched_tokens.into(),
        new_tokens: decision.new_tokens.into(),
    }
}

/// `PrefixHit` as headers and metrics say it: `prefix_hit`.
fn snake(name: &str) -> String {
    let mut text = String::new();
    for (at, letter) in name.char_indices() {
        if letter.is_uppercase() && at > 0 {
            text.push('_');
        }
        text.extend(letter.to_lowercase());
    }
    text
}

#[cfg(test)]
mod tests {
    use router_common::latency::bucket;

    use super::*;

    #[test]
    fn reasons_are_called_as_everywhere() {
        assert_eq!((snake("PrefixHit"), snake("Session")), ("prefix_hit".into(), "session".into()));
    }

    #[test]
    fn rates_and_times_are_of_what_is_new_since_the_oldest_reading() {
        let address = "127.0.0.1:1".parse().expect("an address");
        let row = Row { key: 3, value: WorkerValue { requests_total: 30, ..WorkerValue::new("w", address) } };
        let reading = |at, requests, ms: &[u64]| {
            let mut first = NO_TIMES;
            for ms in ms {
                first[bucket(ms * 1_000_000)] += 1;
            }
            Reading { at, workers: HashMap::from([(3, (requests, first, NO_TIMES))]) }
        };
        let start = Instant::now();
        let old = reading(start, 10, &[1000, 1000, 1000]);
        let new = reading(start + std::time::Duration::from_secs(10), 30, &[1000, 1000, 1000, 2]);
        let line = worker_line(&row, Some(&old), &new);
        assert_eq!(line.requests_per_s, Some(2.0));
        assert!(line.first_token.p50.is_some_and(|p50| p50 < 0.01), "the new one: {line:?}");
        assert_eq!(line.between_tokens, Times::default());
        let first = worker_line(&row, None, &old);
        assert_eq!(first.requests_per_s, None);
        assert!(first.first_token.p50.is_some_and(|p50| p50 > 0.5), "all so far: {first:?}");
    }
}
