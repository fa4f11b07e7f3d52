//! `warmpath maps [NAME]`: a running gateway's BPF maps, read by their pins from this other process. The same as
//! `bpftool map dump pinned …`, but without bpftool and `CAP_SYS_ADMIN`, and for people: names and addresses as text,
//! times as ages, per-CPU counters summed. `--json` gives the numbers as they are.

use std::{
    io::{self, Write as _},
    net::{IpAddr, Ipv6Addr, SocketAddr},
    path::{Path, PathBuf},
};

use router_common::{
    Cell, MapValue,
    cores::{CoreValue, SteeringCounts},
    guard::Counts,
    instance::InstanceValue,
    names,
    workers::WorkerValue,
};
use serde_json::{Map, Value, json};

use crate::{
    config::DEFAULT_INSTANCE,
    kernel::{DEFAULT_ROOT, GuardRuleCount, KernelError, PinnedMaps, PinnedSource, Row, chain, now_ns},
};

/// Arguments of `warmpath maps`.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  warmpath maps\n  warmpath maps workers\n  warmpath maps workers --json | jq '.[].in_flight'"
)]
pub struct MapsArgs {
    /// A map to print: workers, cores, steering, instance, or with a guard guard_rules, guard_src, guard_stats. Without
    /// it, what there is.
    name: Option<String>,
    /// Print JSON instead of a table.
    #[arg(long)]
    json: bool,
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
    #[error("no map `{name}`: there are {}", KNOWN.join(", "))]
    Unknown {
        /// The name given.
        name: String,
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

const KNOWN: [&str; 7] = [
    names::WORKERS,
    names::CORES,
    names::STEERING,
    names::INSTANCE,
    names::GUARD_RULES,
    names::GUARD_SRC,
    names::GUARD_STATS,
];

/// A row to print: each column's name, text and JSON.
type Line = Vec<(&'static str, String, Value)>;

pub(super) fn run(args: &MapsArgs) -> Result<(), MapsError> {
    let instance = args.instance.as_deref().filter(|name| *name != DEFAULT_INSTANCE);
    let text = print(Path::new(DEFAULT_ROOT), args.name.as_deref(), args.json, instance)?;
    match io::stdout().write_all(text.as_bytes()) {
        // `warmpath maps | head -1`
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        other => Ok(other?),
    }
}

/// What the command prints.
fn print(root: &Path, name: Option<&str>, json: bool, instance: Option<&str>) -> Result<String, MapsError> {
    if let Some(name) = name
        && !KNOWN.contains(&name)
    {
        return Err(MapsError::Unknown { name: name.to_owned() });
    }
    let maps = PinnedMaps::open(root, instance).map_err(|error| no_pins(root, error))?;
    let who = maps.instance().map_err(MapsError::Kernel)?;
    if !PinnedMaps::is_readable(&who) {
        return Err(MapsError::Schema { pid: who.pid, theirs: who.schema_version });
    }
    let now_ns = now_ns();
    let Some(name) = name else { return overview(&maps, &who, now_ns, json) };
    if name.starts_with("guard_") && !maps.directory().join(name).exists() {
        return Err(MapsError::NoGuard { name: name.to_owned() });
    }
    let lines = lines(&maps, name, now_ns).map_err(MapsError::Kernel)?;
    if json {
        return Ok(pretty(&Value::Array(lines.into_iter().map(object).collect())));
    }
    if lines.is_empty() {
        return Ok(format!("{name} is empty\n"));
    }
    Ok(table(&lines))
}

/// What is pinned, and by whom.
fn overview(maps: &PinnedMaps, who: &InstanceValue, now_ns: u64, json: bool) -> Result<String, MapsError> {
    let mut list = Vec::new();
    for map in maps.list().map_err(MapsError::Kernel)? {
        let entries = match map.name.as_str() {
            // Arrays are always full.
            names::WORKERS => maps.rows::<WorkerValue>(&map.name).map_err(MapsError::Kernel)?.len(),
            names::GUARD_RULES => maps.guard_rules().map_err(MapsError::Kernel)?.len(),
            names::GUARD_SRC => maps.guard_sources().map_err(MapsError::Kernel)?.len(),
            _ => map.max_entries as usize,
        };
        let number = |name, number: u32| (name, number.to_string(), json!(number));
        list.push(vec![
            ("map", map.name.clone(), json!(map.name)),
            ("kind", map.kind.clone(), json!(map.kind)),
            ("entries", entries.to_string(), json!(entries)),
            number("max_entries", map.max_entries),
            number("key_bytes", map.key_bytes),
            number("value_bytes", map.value_bytes),
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

fn lines(maps: &PinnedMaps, name: &str, now_ns: u64) -> Result<Vec<Line>, KernelError> {
    let lines = match name {
        names::WORKERS => {
            maps.rows::<WorkerValue>(name)?.iter().map(|row| worker_line(row, now_ns)).collect()
        }
        names::CORES => maps
            .rows::<CoreValue>(name)?
            .iter()
            .map(|row| line(Some(("thread", row.key)), &row.value, now_ns))
            .collect(),
        names::STEERING => {
            let cpus = maps.rows::<SteeringCounts>(name)?;
            let sum = cpus.iter().fold(SteeringCounts::ZERO, |sum, cpu| sum.plus(&cpu.value));
            vec![line(None, &sum, now_ns)]
        }
        names::GUARD_RULES => maps.guard_rules()?.iter().map(rule_line).collect(),
        names::GUARD_SRC => maps.guard_sources()?.iter().map(|source| source_line(source, now_ns)).collect(),
        names::GUARD_STATS => {
            let cpus = maps.rows::<Counts>(name)?;
            let sum = cpus.iter().fold(Counts::ZERO, |sum, cpu| sum.plus(&cpu.value));
            vec![line(None, &sum, now_ns)]
        }
        _ => vec![line(None, &maps.instance()?, now_ns)],
    };
    Ok(lines)
}

/// A worker, with address and port in one column.
fn worker_line(row: &Row<WorkerValue>, now_ns: u64) -> Line {
    let mut line = line(Some(("index", row.key)), &row.value, now_ns);
    let ip = Ipv6Addr::from(row.value.address);
    let ip = ip.to_ipv4_mapped().map_or(IpAddr::V6(ip), IpAddr::V4);
    let address = SocketAddr::new(ip, row.value.port).to_string();
    line.retain(|(name, ..)| *name != "port");
    for (name, text, value) in &mut line {
        if *name == "address" {
            (*text, *value) = (address.clone(), json!(address));
        }
    }
    line
}

fn rule_line(count: &GuardRuleCount) -> Line {
    let cidr = count.rule.cidr.to_string();
    let action = count.rule.action.name();
    vec![
        ("cidr", cidr.clone(), json!(cidr)),
        ("action", action.to_owned(), json!(action)),
        ("packets", count.packets.to_string(), json!(count.packets)),
    ]
}

/// A source, with the time that its bucket needs to be full instead of the moment at which it will be.
fn source_line(source: &PinnedSource, now_ns: u64) -> Line {
    let cidr = source.source.to_string();
    let missing_ns = source.value.full_at_ns.saturating_sub(now_ns);
    let full =
        if missing_ns == 0 { "now".to_owned() } else { format!("in {}", age(now_ns, now_ns + missing_ns)) };
    vec![
        ("source", cidr.clone(), json!(cidr)),
        ("passed", source.value.passed.to_string(), json!(source.value.passed)),
        ("dropped", source.value.dropped.to_string(), json!(source.value.dropped)),
        ("full_at_ns", full, json!(source.value.full_at_ns)),
    ]
}

fn line(key: Option<(&'static str, u32)>, value: &impl MapValue, now_ns: u64) -> Line {
    let mut line: Line = key.iter().map(|(name, key)| (*name, key.to_string(), json!(key))).collect();
    value.visit(&mut |name, cell| {
        let (text, value) = match cell {
            Cell::Number(number) if name.ends_with("_ns") => (age(number, now_ns), json!(number)),
            Cell::Number(number) => (number.to_string(), json!(number)),
            Cell::Name(variant) => (variant.to_owned(), json!(variant)),
            Cell::Bytes(bytes) => {
                let text = until_nul(bytes);
                (text.clone(), json!(text))
            }
        };
        line.push((name, text, value));
    });
    line
}

fn until_nul(bytes: &[u8]) -> String {
    let end = bytes.iter().position(|byte| *byte == 0).unwrap_or(bytes.len());
    // A name is shown on a terminal, and was given from outside.
    String::from_utf8_lossy(&bytes[..end]).chars().map(|c| if c.is_control() { '?' } else { c }).collect()
}

/// How long ago `then_ns` was.
fn age(then_ns: u64, now_ns: u64) -> String {
    if then_ns == 0 {
        return "never".to_owned();
    }
    let seconds = now_ns.saturating_sub(then_ns) as f64 / 1e9;
    match seconds {
        ..1.0 => format!("{:.0} ms", seconds * 1e3),
        ..120.0 => format!("{seconds:.1} s"),
        ..7200.0 => format!("{:.0} min", seconds / 60.0),
        _ => format!("{:.1} h", seconds / 3600.0),
    }
}

/// Aligned columns, numbers to the right.
fn table(lines: &[Line]) -> String {
    let Some(first) = lines.first() else { return String::new() };
    let headers = first.iter().map(|(name, ..)| name.strip_suffix("_ns").unwrap_or(name));
    let columns: Vec<(&str, usize, bool)> = headers
        .enumerate()
        .map(|(column, header)| {
            let widest = lines.iter().map(|line| line[column].1.chars().count()).max().unwrap_or(0);
            (header, widest.max(header.len()), first[column].2.is_number())
        })
        .collect();
    let mut text = String::new();
    let mut push = |cells: &mut dyn Iterator<Item = &str>| {
        let row: Vec<String> = cells
            .zip(&columns)
            .map(
                |(cell, (_, width, right))| {
                    if *right { format!("{cell:>width$}") } else { format!("{cell:<width$}") }
                },
            )
            .collect();
        text.push_str(row.join("  ").trim_end());
        text.push('\n');
    };
    push(&mut columns.iter().map(|(header, ..)| *header));
    for line in lines {
        push(&mut line.iter().map(|(_, text, _)| text.as_str()));
    }
    text
}

fn object(line: Line) -> Value {
    Value::Object(line.into_iter().map(|(name, _, value)| (name.to_owned(), value)).collect::<Map<_, _>>())
}

fn pretty(value: &Value) -> String {
    format!("{value:#}\n")
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
    use crate::kernel::{GuardAction, GuardOptions, GuardRule, Kernel, Options, SynLimit};
    use router_common::workers::{BreakerState, WorkerState};

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

    #[test]
    fn ages_have_units() {
        assert_eq!(age(0, SECOND), "never");
        assert_eq!(age(SECOND - 5_000_000, SECOND), "5 ms");
        assert_eq!(age(SECOND, 11 * SECOND), "10.0 s");
        assert_eq!(age(SECOND, 601 * SECOND), "10 min");
        assert_eq!(age(SECOND, 36_001 * SECOND), "10.0 h");
        assert_eq!(age(2 * SECOND, SECOND), "0 ms", "clocks of two CPUs");
    }

    #[test]
    fn columns_are_aligned() {
        let line = |name: &str, number: u32| {
            vec![("map", name.to_owned(), json!(name)), ("entries", number.to_string(), json!(number))]
        };
        assert_eq!(
            table(&[line("workers", 3), line("é", 1024)]),
            "map      entries\nworkers        3\né           1024\n"
        );
    }

    #[test]
    fn what_is_not_there_is_said() {
        let root = tempfile::tempdir().expect("a directory");
        let error = print(root.path(), None, false, None).expect_err("no pins").to_string();
        assert!(error.contains("no gateway is running with pins here"), "{error}");
        let other = root.path().join("warmpath-b");
        std::fs::create_dir(&other).expect("another instance");
        let error = print(root.path(), None, false, None).expect_err("no pins").to_string();
        assert!(!error.contains("running: b"), "left behind, not running: {error}");
        let lock = std::fs::File::open(&other).expect("its directory");
        lock.lock().expect("as a running gateway holds it");
        let error = print(root.path(), None, false, None).expect_err("no pins").to_string();
        assert!(error.contains("running: b"), "{error}");
        let error = print(root.path(), Some("wokers"), false, None).expect_err("no such map").to_string();
        assert!(error.contains("workers, cores"), "{error}");
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
        let print =
            |name, json| print(Path::new(DEFAULT_ROOT), name, json, Some(&instance)).expect("printed");
        assert_eq!(print(Some("workers"), false), "workers is empty\n");
        let mut workers = kernel.take_workers().expect("loaded");
        workers.publish(5, &worker()).expect("publish");

        let text = print(None, false);
        assert!(text.contains(&format!("by process {}, up for", std::process::id())), "{text}");
        assert_eq!(text.lines().count(), 2 + 4, "{text}");
        let text = print(Some("workers"), false);
        assert!(text.contains("10.0.0.7:8000") && text.contains(" ms"), "{text}");
        let value: Value = serde_json::from_str(&print(Some("workers"), true)).expect("JSON");
        assert_eq!(value[0]["in_flight"], 12);
        assert_eq!(print(Some("cores"), false).lines().count(), 3, "a header and two threads");
        assert!(print(Some("cores"), false).contains("never"));
        let value: Value = serde_json::from_str(&print(Some("steering"), true)).expect("JSON");
        assert_eq!(value[0]["selected"], 0);
        let value: Value = serde_json::from_str(&print(Some("instance"), true)).expect("JSON");
        assert_eq!(value[0]["threads"], 2);
        let error = super::print(Path::new(DEFAULT_ROOT), Some("guard_rules"), false, Some(&instance));
        assert!(error.expect_err("there is none").to_string().contains("--guard"));
    }

    #[test]
    fn a_guards_maps_are_printed() {
        let instance = format!("test-print-guard-{}", std::process::id());
        let rule = |cidr: &str, action| GuardRule { cidr: cidr.parse().expect("a range"), action };
        let guard = GuardOptions {
            port: 8080,
            interfaces: Vec::new(),
            mode: crate::config::GuardMode::Auto,
            rules: vec![rule("10.0.0.0/8", GuardAction::Deny), rule("2001:db8::/32", GuardAction::Allow)],
            limit: SynLimit::new(1, 1),
        };
        let options = Options { instance: Some(instance.clone()), guard: Some(guard), ..Options::default() };
        let (mut kernel, capabilities) = Kernel::open(&options);
        if !capabilities.pins.is_available() || !capabilities.guard.is_available() {
            println!("skipped: {} {}", capabilities.pins, capabilities.guard);
            return;
        }
        // A SYN of 192.0.2.7 to port 8080.
        let mut frame = [0; 54];
        frame[12..15].copy_from_slice(&[8, 0, 0x45]);
        (frame[17], frame[23], frame[46], frame[47]) = (40, 6, 5 << 4, 2);
        frame[26..30].copy_from_slice(&[192, 0, 2, 7]);
        frame[36..38].copy_from_slice(&8080_u16.to_be_bytes());
        assert!(!kernel.guard_verdict(&frame, 1).expect("it runs").dropped);

        let print =
            |name, json| print(Path::new(DEFAULT_ROOT), name, json, Some(&instance)).expect("printed");
        let text = print(None, false);
        assert!(text.contains("guard_rules") && text.contains("guard_stats"), "{text}");
        assert_eq!(
            print(Some("guard_rules"), false),
            "cidr           action  packets\n10.0.0.0/8     Deny          0\n2001:db8::/32  Allow         0\n"
        );
        let text = print(Some("guard_src"), false);
        assert!(text.lines().nth(1).is_some_and(|row| row.starts_with("192.0.2.7/32")), "{text}");
        let value: Value = serde_json::from_str(&print(Some("guard_stats"), true)).expect("JSON");
        assert_eq!(value[0]["passed_syn"], 1);
    }
}
