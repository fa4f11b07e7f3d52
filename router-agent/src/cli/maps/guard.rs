//! `warmpath maps guard_…`: the XDP guard's maps. Rules and sources have ranges as text; per-CPU counters are summed.

use std::collections::BTreeMap;

use router_common::{
    guard::{Counts, Hits, Settings},
    names,
};
use serde_json::json;

use super::{
    duration,
    table::{Line, age, line},
};
use crate::kernel::{GuardRuleCount, KernelError, PinnedMaps, PinnedSource, Row};

/// The map `name` of a gateway that has a guard.
pub(super) fn lines(maps: &PinnedMaps, name: &str, now_ns: u64) -> Result<Vec<Line>, KernelError> {
    let lines = match name {
        names::GUARD_RULES => maps.guard_rules()?.iter().map(rule_line).collect(),
        names::GUARD_HITS => {
            let hits = hits(maps)?.into_iter();
            hits.map(|(rule, sum)| line(Some(("rule", rule.into())), &sum, now_ns)).collect()
        }
        names::GUARD_SRC => maps.guard_sources()?.iter().map(|source| source_line(source, now_ns)).collect(),
        names::GUARD_STATS => {
            let cpus = maps.rows::<Counts>(name)?;
            let sum = cpus.iter().fold(Counts::ZERO, |sum, cpu| sum.plus(&cpu.value));
            vec![line(None, &sum, now_ns)]
        }
        _ => maps.rows::<Settings>(names::GUARD_SETTINGS)?.iter().map(settings_line).collect(),
    };
    Ok(lines)
}

/// The rules that have decided on packets, by the numbers that `guard_rules` has for them.
fn hits(maps: &PinnedMaps) -> Result<BTreeMap<u32, Hits>, KernelError> {
    let mut sums = BTreeMap::new();
    for row in maps.rows::<Hits>(names::GUARD_HITS)? {
        if row.value.packets > 0 {
            sums.entry(row.key).or_insert(Hits { packets: 0 }).packets += row.value.packets;
        }
    }
    Ok(sums)
}

/// Durations here, where `line` takes what ends in `_ns` for moments.
fn settings_line(row: &Row<Settings>) -> Line {
    let Settings { set, rules, syn_interval_ns, syn_window_ns } = row.value;
    let mut line = Line::new();
    for (name, number) in [("set", set), ("rules", rules)] {
        line.push((name, number.to_string(), json!(number)));
    }
    for (name, ns) in [("syn_interval_ns", syn_interval_ns), ("syn_window_ns", syn_window_ns)] {
        line.push((name, duration(ns), json!(ns)));
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

#[cfg(test)]
mod tests {
    use std::path::Path;

    use serde_json::{Value, json};

    use super::super::{KNOWN, MapsArgs, print};
    use crate::{
        config::GuardMode,
        kernel::{DEFAULT_ROOT, GuardAction, GuardOptions, GuardRule, Kernel, Options, SynLimit},
    };

    #[test]
    fn a_guards_maps_are_printed() {
        let instance = format!("test-print-guard-{}", std::process::id());
        let rule = |cidr: &str, action| GuardRule { cidr: cidr.parse().expect("a range"), action };
        let guard = GuardOptions {
            port: 8080,
            interfaces: Vec::new(),
            mode: GuardMode::Auto,
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

        let print = |name: Option<&str>, json| {
            let (name, instance) = (name.map(str::to_owned), Some(instance.clone()));
            let args = MapsArgs { name, json, instance, ..MapsArgs::default() };
            print(Path::new(DEFAULT_ROOT), &args).expect("printed")
        };
        let text = print(None, false);
        assert_eq!(text.lines().count(), 2 + KNOWN.len(), "{text}");
        assert!(KNOWN.iter().all(|(name, says)| text.contains(name) && text.contains(says)), "{text}");
        assert_eq!(
            print(Some("guard_rules"), false),
            "cidr           action  packets\n10.0.0.0/8     Deny          0\n2001:db8::/32  Allow         0\n"
        );
        let text = print(Some("guard_src"), false);
        assert!(text.lines().nth(1).is_some_and(|row| row.starts_with("192.0.2.7/32")), "{text}");
        let value: Value = serde_json::from_str(&print(Some("guard_stats"), true)).expect("JSON");
        assert_eq!(value[0]["passed_syn"], 1);
        assert_eq!(print(Some("guard_hits"), false), "guard_hits is empty\n");
        let mut deny = frame;
        deny[26] = 10;
        assert!(kernel.guard_verdict(&deny, 3).expect("it runs").dropped);
        let text = print(Some("guard_hits"), false);
        assert!(text.starts_with("rule  packets\n") && text.trim_end().ends_with("  3"), "{text}");
        let text = print(Some("guard_rules"), false);
        assert!(text.contains("10.0.0.0/8     Deny          3"), "{text}");
        let value: Value = serde_json::from_str(&print(Some("guard_settings"), true)).expect("JSON");
        assert_eq!((&value[0]["rules"], &value[0]["syn_interval_ns"]), (&json!(2), &json!(1_000_000_000)));
    }
}
