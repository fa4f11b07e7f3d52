//! The published maps, read back as other processes read them.

use router_agent::kernel::{DEFAULT_ROOT, PinnedMaps};
use router_common::{
    decisions::{DecisionPolicy, DecisionReason, DecisionValue},
    limits::{DECISIONS_MAX, PREFIXES_MAX, WORKERS_MAX},
    names,
    prefixes::PrefixValue,
    workers::{BreakerState, WorkerState, WorkerValue},
};
use std::path::Path;

use super::{bpftool_dump, instance, open};

fn worker() -> WorkerValue {
    let mut worker = WorkerValue::new("vllm-0", "127.0.0.1:8001".parse().expect("an address"));
    worker.state = WorkerState::Draining;
    worker.breaker = BreakerState::HalfOpen;
    worker.in_flight = 7;
    worker.queued_prefill_tokens = 98_304;
    worker.kv_usage_permille = 412;
    worker
}

#[test]
fn the_object_loads_and_everything_it_holds_is_available() {
    let Some((_kernel, capabilities)) = open("load", 2) else { return };
    for capability in
        [&capabilities.load, &capabilities.workers_map, &capabilities.steering, &capabilities.pins]
    {
        assert!(capability.is_available(), "{capabilities:?}");
    }
    assert!(!capabilities.splice.is_available() && !capabilities.guard.is_available());
}

#[test]
fn workers_are_published_updated_and_removed() {
    let Some((mut kernel, _)) = open("workers", 1) else { return };
    let mut workers = kernel.take_workers().expect("the object is loaded");
    let maps = PinnedMaps::open(Path::new(DEFAULT_ROOT), Some(&instance("workers"))).expect("pinned");

    workers.publish(3, &worker()).expect("publish");
    workers.publish(1, &WorkerValue { in_flight: 1, ..worker() }).expect("publish");
    workers.publish(3, &WorkerValue { in_flight: 8, ..worker() }).expect("publish again");
    let rows = maps.rows::<WorkerValue>(names::WORKERS).expect("readable");
    assert_eq!(rows.iter().map(|row| (row.key, row.value.in_flight)).collect::<Vec<_>>(), [(1, 1), (3, 8)]);
    assert!(rows[0].value.updated_ns < rows[1].value.updated_ns, "stamped, in order");
    assert_eq!(WorkerValue { updated_ns: 0, ..rows[0].value }, WorkerValue { in_flight: 1, ..worker() });

    workers.remove(3).expect("remove");
    workers.remove(3).expect("removing what is not there is no error");
    let rows = maps.rows::<WorkerValue>(names::WORKERS).expect("readable");
    assert_eq!(rows.iter().map(|row| row.key).collect::<Vec<_>>(), [1]);

    let who = maps.instance().expect("readable");
    assert!(PinnedMaps::is_readable(&who));
    assert_eq!(who.pid, std::process::id());
}

#[test]
fn the_map_holds_as_many_workers_as_it_says_and_refuses_more() {
    let Some((mut kernel, _)) = open("full", 1) else { return };
    let mut workers = kernel.take_workers().expect("the object is loaded");
    for index in 0..WORKERS_MAX {
        workers.publish(index, &worker()).expect("within the limit");
    }
    workers.publish(WORKERS_MAX, &worker()).expect_err("beyond the limit");
    workers.publish(0, &worker()).expect("an update needs no room");
}

fn decision() -> DecisionValue {
    let mut decision = DecisionValue::new(4, DecisionPolicy::PowerOfTwo, DecisionReason::LoadOverPrefix);
    decision.request_id[..2].copy_from_slice(b"ab");
    decision.prompt_tokens = 812;
    decision
}

#[test]
fn decisions_are_read_oldest_first_with_number_and_time() {
    let Some((mut kernel, _)) = open("decisions", 1) else { return };
    let decisions = kernel.take_decisions().expect("the object is loaded");
    let maps = PinnedMaps::open(Path::new(DEFAULT_ROOT), Some(&instance("decisions"))).expect("pinned");
    assert!(maps.decisions().expect("readable").is_empty());
    for _ in 0..DECISIONS_MAX + 2 {
        decisions.record(&decision());
    }
    let rows = maps.decisions().expect("readable");
    let numbers: Vec<u64> = rows.iter().map(|row| row.sequence).collect();
    assert_eq!(
        numbers,
        (3..=u64::from(DECISIONS_MAX) + 2).collect::<Vec<_>>(),
        "the first two are overwritten"
    );
    assert!(rows.windows(2).all(|pair| 0 < pair[0].decided_ns && pair[0].decided_ns <= pair[1].decided_ns));
    let DecisionValue { sequence, decided_ns, claimed, .. } = rows[0];
    assert_eq!(rows[0], DecisionValue { sequence, decided_ns, claimed, ..decision() });
}

#[test]
fn prefixes_are_replaced_as_a_whole() {
    let Some((mut kernel, _)) = open("prefixes", 1) else { return };
    let mut map = kernel.take_prefixes().expect("the object is loaded");
    let maps = PinnedMaps::open(Path::new(DEFAULT_ROOT), Some(&instance("prefixes"))).expect("pinned");
    let row = |hash: u64| {
        let workers = [1, 0, 0, 1 << 63];
        let value = PrefixValue {
            parent_hash: 1,
            hits: hash,
            last_used_ns: 3,
            workers,
            depth_blocks: 4,
            own_blocks: 5,
        };
        (hash, value)
    };
    let keys = |maps: &PinnedMaps| -> Vec<u64> {
        maps.prefixes().expect("readable").iter().map(|row| row.key).collect()
    };
    map.publish(&[row(1), row(2), row(u64::MAX)]).expect("publish");
    assert_eq!(keys(&maps), [1, 2, u64::MAX]);
    map.publish(&[row(2), row(3)]).expect("publish");
    assert_eq!(keys(&maps), [2, 3]);
    assert_eq!(maps.prefixes().expect("readable")[1].value, row(3).1);
    // A full map that changes altogether, and more than it holds.
    let many = |from: u64| (from..from + 2 * u64::from(PREFIXES_MAX)).map(row).collect::<Vec<_>>();
    map.publish(&many(1)).expect("publish");
    map.publish(&many(1000)).expect("publish");
    assert_eq!(keys(&maps), (1000..1000 + u64::from(PREFIXES_MAX)).collect::<Vec<_>>());
}

#[test]
fn bpftool_prints_fields_and_states_by_name() {
    let Some((mut kernel, _)) = open("bpftool", 2) else { return };
    let mut workers = kernel.take_workers().expect("the object is loaded");
    workers.publish(0, &worker()).expect("publish");
    let directory = kernel.pin_directory().expect("pinned").to_owned();

    let Some(dump) = bpftool_dump(&directory.join(names::WORKERS)) else { return };
    let value = &dump[0]["formatted"]["value"];
    assert_eq!(value["state"], "Draining", "{dump}");
    assert_eq!(value["breaker"], "HalfOpen");
    assert_eq!(value["in_flight"], 7);
    assert_eq!(value["queued_prefill_tokens"], 98_304);
    assert_eq!(value["kv_usage_permille"], 412);
    assert_eq!(value["port"], 8001);
    assert_eq!(value["name"][0], b'v');

    let dump = bpftool_dump(&directory.join(names::CORES)).expect("it was there a moment ago");
    assert_eq!(dump.as_array().map(Vec::len), Some(2), "one entry per data thread");
    assert_eq!(dump[1]["formatted"]["value"]["connections"], 0);
    let dump = bpftool_dump(&directory.join(names::STEERING)).expect("as above");
    assert_eq!(dump[0]["formatted"]["values"][0]["value"]["selected"], 0, "{dump}");
    let dump = bpftool_dump(&directory.join(names::INSTANCE)).expect("as above");
    assert_eq!(dump[0]["formatted"]["value"]["pid"], std::process::id());

    kernel.take_decisions().expect("loaded").record(&decision());
    let dump = bpftool_dump(&directory.join(names::DECISIONS)).expect("as above");
    assert_eq!(dump.as_array().map(Vec::len), Some(DECISIONS_MAX as usize));
    let value = &dump[0]["formatted"]["value"];
    assert_eq!(
        (&value["policy"], &value["reason"]),
        (&"PowerOfTwo".into(), &"LoadOverPrefix".into()),
        "{value}"
    );
    assert_eq!(
        (&value["worker"], &value["prompt_tokens"], &value["sequence"]),
        (&4.into(), &812.into(), &1.into())
    );
    assert_eq!(value["sequence"], value["claimed"]);
    assert_eq!(value["request_id"][0], b'a');
    let prefix = PrefixValue {
        parent_hash: 0,
        hits: 3,
        last_used_ns: 1,
        workers: [9, 0, 0, 0],
        depth_blocks: 2,
        own_blocks: 2,
    };
    kernel.take_prefixes().expect("loaded").publish(&[(77, prefix)]).expect("publish");
    let dump = bpftool_dump(&directory.join(names::PREFIXES)).expect("as above");
    assert_eq!(dump[0]["formatted"]["key"], 77);
    let value = &dump[0]["formatted"]["value"];
    assert_eq!(
        (&value["workers"][0], &value["depth_blocks"], &value["hits"]),
        (&9.into(), &2.into(), &3.into())
    );
}
