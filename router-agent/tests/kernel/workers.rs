//! The published maps, read back as other processes read them.

use router_agent::kernel::{DEFAULT_ROOT, PinnedMaps};
use router_common::{
    limits::WORKERS_MAX,
    names,
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
}
