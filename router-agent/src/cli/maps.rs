//! `warmpath maps [NAME]`: a running gateway's BPF maps, read by their pins from this other process. The same as
//! `bpftool map dump pinned …`, but without bpftool and `CAP_SYS_ADMIN`, and for people: names and addresses as text,
//! times as ages, per-CPU counters summed. `--json` gives the numbers as they are.

use std::{
    cmp::Reverse,
    io::{self, Write as _},
    net::{IpAddr, Ipv6Addr, SocketAddr},
    path::{Path, PathBuf},
};

use router_common::{
    cores::{CoreValue, SteeringCounts},
    flows::{FlowState, FlowValue},
    instance::InstanceValue,
    latency::{BUCKETS, LatencyValue, bucket_end_seconds},
    names,
    workers::WorkerValue,
};
use serde_json::{Value, json};

use self::{
    decisions::Wanted,
    table::{Line, age, line, list, object, pretty, table},
};
use crate::{
    config::DEFAULT_INSTANCE,
    kernel::{DEFAULT_ROOT, KernelError, PinnedMaps, Row, chain, now_ns},
};

mod decisions;
mod guard;
mod table;

pub(super) use self::table::until_nul;

/// Arguments of `warmpath maps`.
#[derive(Debug, Default, clap::Args)]
#[command(after_help = "Examples:\n  \
    warmpath maps\n  \
    warmpath maps workers\n  \
    warmpath maps workers --json | jq '.[].in_flight'\n  \
    warmpath maps decisions --last 5\n  \
    warmpath maps decisions --request 4b1d0f6e\n  \
    warmpath maps prefixes")]
pub struct MapsArgs {
    /// A map to print: workers, flows, latency, prefixes, decisions, cores, steering or instance; with a guard,
    /// guard_rules, guard_src or guard_stats. Without it, what there is.
    name: Option<String>,
    /// Print JSON instead of a table.
    #[arg(long)]
    json: bool,
    /// The N newest decisions [default: 20], or the N prefixes used last [default: all].
    #[arg(long, value_name = "N")]
    last: Option<usize>,
    /// The decisions on one request, by the whole of its `x-request-id`.
    #[arg(long, value_name = "ID")]
    request: Option<String>,
    /// The gateway's name, if it has one (`warmpath serve --instance`).
    #[arg(long, value_name = "NAME", env = "WARMPATH_INSTANCE")]
    instance: Option<String>,
}

/// Why there is nothing to print.
#[derive(Debug, thiserror::Error)]
pub enum MapsError {
    /// The pin directory is missing or empty.
    #[error(
        "no gateway is running with pins here: {} is not there ({hint})",
        directory.display()
    )]
    NoPins {
        /// Where pins were looked for.
        directory: PathBuf,
        /// What may be the matter.
        hint: String,
    },
    /// The pins are somebody else's.
    #[error("{}: only its owner and root may read it", directory.display())]
    Forbidden {
        /// The pin directory.
        directory: PathBuf,
    },
    /// A gateway of another version.
    #[error(
        "the gateway with process id {pid} publishes maps of schema {theirs}; this program reads {}",
        router_common::SCHEMA_VERSION
    )]
    Schema {
        /// The gateway's process.
        pid: u32,
        /// Its `SCHEMA_VERSION`.
        theirs: u32,
    },
    /// A name that no map has.
    #[error("no map `{name}`: there are {}", KNOWN.map(|(name, _)| name).join(", "))]
    Unknown {
        /// The name given.
        name: String,
    },
    /// A flag that says nothing about this map.
    #[error("{flag} goes with {maps}")]
    Unfit {
        /// The flag given.
        flag: &'static str,
        /// Where it would say something.
        maps: &'static str,
    },
    /// The gateway has no guard.
    #[error("this gateway has no guard, so no map `{name}` (`warmpath serve --guard IFACE`)")]
    NoGuard {
        /// The map.
        name: String,
    },
    /// The kernel said no.
    #[error("{}", chain(_0))]
    Kernel(KernelError),
    /// Nobody reads what is printed.
    #[error("cannot print: {0}")]
    Output(#[from] io::Error),
}

/// What the names of the guard's maps begin with; they are there where there is a guard.
const GUARD: &str = "guard_";

/// Every map that is pinned, and what it says.
const KNOWN: [(&str, &str); 13] = [
    (names::WORKERS, "state and load of each worker"),
    (names::FLOWS, "every stream now, and who moves its bytes"),
    (names::LATENCY, "times to first byte and between events, per worker"),
    (names::PREFIXES, "prompt prefixes that most requests share, and who holds them"),
    (names::DECISIONS, "why each of the last requests went where it went"),
    (names::CORES, "lag and connections of each data thread"),
    (names::STEERING, "where new connections were placed, and why not elsewhere"),
    (names::INSTANCE, "the process behind these maps"),
    (names::GUARD_RULES, "who may connect, and the packets that each rule decided on"),
    (names::GUARD_HITS, "the packets of guard_rules, by the rules' numbers"),
    (names::GUARD_SRC, "new connections of each source that no rule holds"),
    (names::GUARD_STATS, "packets that the guard let pass and dropped, by reason"),
    (names::GUARD_SETTINGS, "the set of rules in use, and how fast a source may connect"),
];

pub(super) fn run(args: &MapsArgs) -> Result<(), MapsError> {
    let text = print(Path::new(DEFAULT_ROOT), args)?;
    match io::stdout().write_all(text.as_bytes()) {
        // `warmpath maps | head -1`
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        other => Ok(other?),
    }
}

/// What the command prints.
fn print(root: &Path, args: &MapsArgs) -> Result<String, MapsError> {
    let name = args.name.as_deref();
    if let Some(name) = name
        && !KNOWN.iter().any(|(known, _)| *known == name)
    {
        return Err(MapsError::Unknown { name: name.to_owned() });
    }
    if args.last.is_some() && !matches!(name, Some(names::DECISIONS | names::PREFIXES)) {
        return Err(MapsError::Unfit { flag: "--last", maps: "decisions and prefixes" });
    }
    if args.request.is_some() && name != Some(names::DECISIONS) {
        return Err(MapsError::Unfit { flag: "--request", maps: "decisions" });
    }
    let instance = args.instance.as_deref().filter(|name| *name != DEFAULT_INSTANCE);
    let maps = PinnedMaps::open(root, instance).map_err(|error| no_pins(root, error))?;
    let who = maps.instance().map_err(|error| match error {
        error if error.is_permission_denied() => {
            MapsError::Forbidden { directory: maps.directory().to_owned() }
        }
        error => MapsError::Kernel(error),
    })?;
    if !PinnedMaps::is_readable(&who) {
        return Err(MapsError::Schema { pid: who.pid, theirs: who.schema_version });
    }
    let now_ns = now_ns();
    let Some(name) = name else { return overview(&maps, &who, now_ns, args.json) };
    if name.starts_with(GUARD) && !maps.directory().join(name).exists() {
        return Err(MapsError::NoGuard { name: name.to_owned() });
    }
    let lines = lines(&maps, name, args, now_ns).map_err(MapsError::Kernel)?;
    if args.json {
        return Ok(pretty(&Value::Array(lines.into_iter().map(object).collect())));
    }
    match (&args.request, lines.is_empty()) {
        (Some(id), true) => Ok(format!("no decision on request {id} among those kept\n")),
        (None, true) => Ok(format!("{name} is empty\n")),
        (Some(_), false) => Ok(lines.iter().map(list).collect::<Vec<_>>().join("\n")),
        (None, false) => Ok(table(&lines)),
    }
}

/// What is pinned, and by whom.
fn overview(maps: &PinnedMaps, who: &InstanceValue, now_ns: u64, json: bool) -> Result<String, MapsError> {
    let mut list = Vec::new();
    for map in maps.list().map_err(MapsError::Kernel)? {
        let entries = match map.name.as_str() {
            names::FLOWS => {
                let rows = maps.rows::<FlowValue>(&map.name).map_err(MapsError::Kernel)?;
                rows.iter().filter(|row| row.value.state != FlowState::Free).count()
            }
            names::WORKERS => maps.rows::<WorkerValue>(&map.name).map_err(MapsError::Kernel)?.len(),
            names::PREFIXES => maps.prefixes().map_err(MapsError::Kernel)?.len(),
            names::DECISIONS => maps.decisions().map_err(MapsError::Kernel)?.len(),
            names::GUARD_RULES => maps.guard_rules().map_err(MapsError::Kernel)?.len(),
            names::GUARD_SRC => maps.guard_sources().map_err(MapsError::Kernel)?.len(),
            // Arrays are always full.
            _ => map.max_entries as usize,
        };
        let says = KNOWN.iter().find(|(name, _)| *name == map.name).map_or("", |(_, says)| says);
        let number = |name, number: u32| (name, number.to_string(), json!(number));
        list.push(vec![
            ("map", map.name.clone(), json!(map.name)),
            ("kind", map.kind.clone(), json!(map.kind)),
            ("entries", entries.to_string(), json!(entries)),
            number("max_entries", map.max_entries),
            number("key_bytes", map.key_bytes),
            number("value_bytes", map.value_bytes),
            ("says", says.to_owned(), json!(says)),
        ]);
    }
    let alive = maps.is_live();
    let directory = maps.directory().display().to_string();
    if json {
        let maps: Vec<_> = list.into_iter().map(object).collect();
        return Ok(pretty(&json!({ "directory": directory, "pid": who.pid, "alive": alive, "maps": maps })));
    }
    let state = if alive {
        format!("by process {}, up for {}", who.pid, age(who.started_ns, now_ns))
    } else {
        format!("by process {}, which is gone: stale until the next gateway starts here", who.pid)
    };
    Ok(format!("{directory}, {state}\n{}", table(&list)))
}

fn lines(maps: &PinnedMaps, name: &str, args: &MapsArgs, now_ns: u64) -> Result<Vec<Line>, KernelError> {
    let lines = match name {
        names::WORKERS => {
            maps.rows::<WorkerValue>(name)?.iter().map(|row| worker_line(row, now_ns)).collect()
        }
        names::CORES => maps
            .rows::<CoreValue>(name)?
            .iter()
            .map(|row| line(Some(("thread", row.key.into())), &row.value, now_ns))
            .collect(),
        names::STEERING => {
            let cpus = maps.rows::<SteeringCounts>(name)?;
            let sum = cpus.iter().fold(SteeringCounts::ZERO, |sum, cpu| sum.plus(&cpu.value));
            vec![line(None, &sum, now_ns)]
        }
        names::FLOWS => {
            let rows = maps.rows::<FlowValue>(name)?;
            let taken = rows.iter().filter(|row| row.value.state != FlowState::Free);
            taken.map(|row| flow_line(row, now_ns)).collect()
        }
        names::LATENCY => {
            let rows = maps.rows::<LatencyValue>(name)?;
            rows.iter().filter(|row| row.value.count > 0).map(|row| latency_line(&row.value)).collect()
        }
        names::PREFIXES => prefix_lines(maps, args.last, now_ns)?,
        names::DECISIONS => {
            let wanted = Wanted { last: args.last, request: args.request.as_deref() };
            decisions::lines(maps, &wanted, args.json, now_ns)?
        }
        name if name.starts_with(GUARD) => guard::lines(maps, name, now_ns)?,
        _ => vec![line(None, &maps.instance()?, now_ns)],
    };
    Ok(lines)
}

/// The most used first.
fn prefix_lines(maps: &PinnedMaps, last: Option<usize>, now_ns: u64) -> Result<Vec<Line>, KernelError> {
    let mut rows = maps.prefixes()?;
    rows.sort_by_key(|row| Reverse(row.value.last_used_ns));
    rows.truncate(last.unwrap_or(usize::MAX));
    rows.sort_by_key(|row| (Reverse(row.value.hits), row.value.depth_blocks));
    Ok(rows.iter().map(|row| line(Some(("hash", row.key)), &row.value, now_ns)).collect())
}

/// A worker, with address and port in one column.
fn worker_line(row: &Row<WorkerValue>, now_ns: u64) -> Line {
    let mut line = line(Some(("index", row.key.into())), &row.value, now_ns);
    join_address(&mut line, "address", "port", row.value.address, row.value.port);
    line
}

/// A response under way, with the client's address and port in one column.
fn flow_line(row: &Row<FlowValue>, now_ns: u64) -> Line {
    let mut line = line(Some(("slot", row.key.into())), &row.value, now_ns);
    join_address(&mut line, "client", "client_port", row.value.client, row.value.client_port as u16);
    line
}

fn join_address(line: &mut Line, address: &str, port: &str, ip: [u8; 16], port_number: u16) {
    let ip = Ipv6Addr::from(ip);
    let ip = ip.to_ipv4_mapped().map_or(IpAddr::V6(ip), IpAddr::V4);
    let both = SocketAddr::new(ip, port_number).to_string();
    line.retain(|(name, ..)| *name != port);
    for (name, text, value) in line {
        if *name == address {
            (*text, *value) = (both.clone(), json!(both));
        }
    }
}

/// A histogram as its mean and percentiles; JSON has the buckets.
fn latency_line(value: &LatencyValue) -> Line {
    let mut line: Line = vec![
        ("worker", value.worker.to_string(), json!(value.worker)),
        ("kind", value.kind.name().to_owned(), json!(value.kind.name())),
        ("count", value.count.to_string(), json!(value.count)),
    ];
    let mean = value.sum_ns.checked_div(value.count).unwrap_or(0);
    line.push(("mean", duration(mean), json!(mean as f64 / 1e9)));
    for (name, share) in [("p50", 0.5), ("p90", 0.9), ("p99", 0.99)] {
        let end = percentile_end(&value.buckets, share);
        line.push((name, format!("< {}", duration((end * 1e9) as u64)), json!(end)));
    }
    line.push((
        "buckets",
        value.buckets.iter().filter(|count| **count > 0).count().to_string(),
        json!(&value.buckets[..]),
    ));
    line
}

/// Where the bucket ends in which `share` of all is reached, in seconds.
fn percentile_end(buckets: &[u64; BUCKETS], share: f64) -> f64 {
    let wanted = buckets.iter().sum::<u64>() as f64 * share;
    let mut sum = 0;
    let reached = buckets.iter().position(|count| {
        sum += count;
        sum as f64 >= wanted
    });
    bucket_end_seconds(reached.unwrap_or(BUCKETS - 1))
}

fn duration(ns: u64) -> String {
    match ns {
        0..10_000 => format!("{ns} ns"),
        10_000..10_000_000 => format!("{:.0} µs", ns as f64 / 1e3),
        10_000_000..10_000_000_000 => format!("{:.0} ms", ns as f64 / 1e6),
        _ => format!("{:.0} s", ns as f64 / 1e9),
    }
}

fn no_pins(root: &Path, error: KernelError) -> MapsError {
    match error {
        KernelError::Io { path, source } if source.kind() == io::ErrorKind::NotFound => {
            let others = PinnedMaps::instances(root);
            let hint = if others.is_empty() {
                "the gateway's start-up lines say why it could not pin".to_owned()
            } else {
                let names = others.iter().map(|name| name.as_deref().unwrap_or(DEFAULT_INSTANCE));
                format!("`--instance NAME` reads another; running: {}", names.collect::<Vec<_>>().join(", "))
            };
            MapsError::NoPins { directory: path, hint }
        }
        KernelError::Io { path, source } if source.kind() == io::ErrorKind::PermissionDenied => {
            MapsError::Forbidden { directory: path }
        }
        other => MapsError::Kernel(other),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::{Kernel, Options};
    use router_common::{
        decisions::{DecisionPolicy, DecisionReason, DecisionValue},
        prefixes::PrefixValue,
        workers::{BreakerState, WorkerState},
    };

    const SECOND: u64 = 1_000_000_000;

    fn worker() -> WorkerValue {
        let mut worker = WorkerValue::new("gpu\u{1b}[31m-a", "10.0.0.7:8000".parse().expect("an address"));
        worker.state = WorkerState::Healthy;
        worker.breaker = BreakerState::HalfOpen;
        worker.in_flight = 12;
        worker.updated_ns = 40 * SECOND;
        worker
    }

    #[test]
    fn a_worker_is_a_readable_row() {
        let text = table(&[worker_line(&Row { key: 3, value: worker() }, 42 * SECOND)]);
        let (header, row) = text.trim_end().split_once('\n').expect("two lines");
        assert!(header.starts_with("index  name") && header.ends_with("updated"), "{text}");
        for cell in ["gpu?[31m-a", "10.0.0.7:8000", "Healthy", "HalfOpen", "12", "2.0 s"] {
            assert!(row.contains(cell), "{text}");
        }
        assert!(!header.contains("port") && !header.contains("padding"), "{text}");
    }

    #[test]
    fn json_has_the_numbers_as_they_are() {
        let value = object(worker_line(&Row { key: 3, value: worker() }, 0));
        assert_eq!(value["index"], 3);
        assert_eq!(value["updated_ns"], 40 * SECOND);
        assert_eq!(value["address"], "10.0.0.7:8000");
        assert_eq!(value["state"], "Healthy");
    }

    fn named(name: &str) -> MapsArgs {
        MapsArgs { name: Some(name.to_owned()), ..MapsArgs::default() }
    }

    #[test]
    fn flags_that_say_nothing_about_a_map_are_refused() {
        let root = Path::new(DEFAULT_ROOT);
        let error = print(root, &MapsArgs { last: Some(1), ..named("workers") }).expect_err("no order");
        assert_eq!(error.to_string(), "--last goes with decisions and prefixes");
        let error = print(root, &MapsArgs { request: Some("a".to_owned()), ..named("prefixes") });
        assert_eq!(error.expect_err("no requests").to_string(), "--request goes with decisions");
    }

    #[test]
    fn what_is_not_there_is_said() {
        let root = tempfile::tempdir().expect("a directory");
        let error = print(root.path(), &MapsArgs::default()).expect_err("no pins").to_string();
        assert!(error.contains("no gateway is running with pins here"), "{error}");
        let other = root.path().join("warmpath-b");
        std::fs::create_dir(&other).expect("another instance");
        let error = print(root.path(), &MapsArgs::default()).expect_err("no pins").to_string();
        assert!(!error.contains("running: b"), "left behind, not running: {error}");
        let lock = std::fs::File::open(&other).expect("its directory");
        lock.lock().expect("as a running gateway holds it");
        let error = print(root.path(), &MapsArgs::default()).expect_err("no pins").to_string();
        assert!(error.contains("running: b"), "{error}");
        let error = print(root.path(), &named("wokers")).expect_err("no such map").to_string();
        assert!(error.contains("workers, flows"), "{error}");
    }

    #[test]
    fn a_running_gateways_maps_are_printed() {
        let instance = format!("test-print-{}", std::process::id());
        let options = Options { instance: Some(instance.clone()), threads: 2, ..Options::default() };
        let (mut kernel, capabilities) = Kernel::open(&options);
        if !capabilities.pins.is_available() {
            println!("skipped: {}", capabilities.pins);
            return;
        }
        let print = |args: MapsArgs| {
            let args = MapsArgs { instance: Some(instance.clone()), ..args };
            print(Path::new(DEFAULT_ROOT), &args).expect("printed")
        };
        let json = |name| -> Value {
            let text = print(MapsArgs { json: true, ..named(name) });
            serde_json::from_str(&text).expect("JSON")
        };
        assert_eq!(print(named("workers")), "workers is empty\n");
        assert_eq!(print(named("decisions")), "decisions is empty\n");
        let mut workers = kernel.take_workers().expect("loaded");
        workers.publish(5, &worker()).expect("publish");

        let text = print(MapsArgs::default());
        assert!(text.contains(&format!("by process {}, up for", std::process::id())), "{text}");
        let known = KNOWN.iter().filter(|(name, _)| !name.starts_with(GUARD));
        assert_eq!(text.lines().count(), 2 + known.clone().count(), "{text}");
        assert!(known.into_iter().all(|(name, says)| text.contains(name) && text.contains(says)), "{text}");
        let text = print(named("workers"));
        assert!(text.contains("10.0.0.7:8000") && text.contains(" ms"), "{text}");
        assert_eq!(json("workers")[0]["in_flight"], 12);
        assert_eq!(print(named("cores")).lines().count(), 3, "a header and two threads");
        assert!(print(named("cores")).contains("never"));
        assert_eq!(json("steering")[0]["selected"], 0);
        assert_eq!(json("instance")[0]["threads"], 2);

        let prefix = PrefixValue {
            parent_hash: 0,
            hits: 9,
            last_used_ns: 1,
            workers: [1 << 5, 0, 0, 0],
            depth_blocks: 3,
            own_blocks: 3,
        };
        let rows = [(u64::MAX, prefix), (7, PrefixValue { hits: 10, last_used_ns: 2, ..prefix })];
        kernel.take_prefixes().expect("loaded").publish(&rows).expect("publish");
        let prefixes = json("prefixes");
        assert_eq!((&prefixes[0]["hits"], &prefixes[1]["hits"]), (&json!(10), &json!(9)));
        assert_eq!(prefixes[1]["hash"], "ffffffffffffffff");
        assert_eq!(prefixes[1]["workers"], json!([5]));
        let text = print(MapsArgs { last: Some(1), ..named("prefixes") });
        assert_eq!(text.lines().count(), 2, "the one used last: {text}");

        let decisions = kernel.take_decisions().expect("loaded");
        for (id, worker) in [("first", 5), ("second", 5), ("second", 0)] {
            let mut decision = DecisionValue::new(worker, DecisionPolicy::Warm, DecisionReason::PrefixHit);
            decision.request_id[..id.len()].copy_from_slice(id.as_bytes());
            decision.request_hash = xxhash_rust::xxh3::xxh3_64(id.as_bytes());
            decisions.record(&decision);
        }
        let text = print(MapsArgs { last: Some(2), ..named("decisions") });
        assert_eq!(text.lines().count(), 3, "{text}");
        assert!(text.contains("second") && !text.contains("first") && text.contains("gpu?[31m-a"), "{text}");
        let text = print(MapsArgs { request: Some("first".to_owned()), ..named("decisions") });
        assert!(text.contains("first") && text.contains("PrefixHit") && !text.contains("second"), "{text}");
        let text = print(MapsArgs { request: Some("third".to_owned()), ..named("decisions") });
        assert_eq!(text, "no decision on request third among those kept\n");
        let rows = json("decisions");
        assert_eq!((&rows[0]["sequence"], &rows[2]["worker"]), (&json!(1), &json!(0)));
        assert_eq!(rows[0]["runner_up"], Value::Null);
        let error = super::print(
            Path::new(DEFAULT_ROOT),
            &MapsArgs { instance: Some(instance.clone()), ..named("guard_rules") },
        );
        assert!(error.expect_err("there is none").to_string().contains("--guard"));
    }
}
