//! What is to be said of each worker.

use super::{
    super::survey::{KvEventsState, Surveyed},
    Finding,
};

/// How vLLM is told to publish its KV events.
const KV_EVENTS: &str = r#"start vLLM with --kv-events-config '{"enable_kv_cache_events": true, "publisher": "zmq", "endpoint": "tcp://*:5557", "replay_endpoint": "tcp://*:5558"}' (docs/kv-events.md); without, what was sent there is what counts"#;

/// The lines of all workers.
pub(super) fn judge(workers: &[Surveyed]) -> Vec<Finding> {
    workers.iter().flat_map(lines).collect()
}

fn lines(worker: &Surveyed) -> Vec<Finding> {
    let what = format!("worker {}", worker.name);
    if let Some(fault) = &worker.fault {
        let remedy = format!("is vLLM up and its port open from here? curl -v {}/health", worker.url);
        return vec![Finding::wrong(what, fault, remedy)];
    }
    let version = worker.version.as_ref().map_or_else(
        || "reachable; it does not tell its version".to_owned(),
        |version| format!("reachable, vLLM {version}"),
    );
    let models = if worker.models.is_empty() {
        String::new()
    } else {
        format!(", serves {}", worker.models.join(", "))
    };
    let mut lines = vec![Finding::ok(&what, format!("{version}{models}"))];
    if worker.prefix_caching == Some(false) {
        lines.push(Finding::wrong(
            format!("{what}: prefix caching"),
            "switched off: every prompt is prefilled anew, wherever it goes",
            "start vLLM without --no-enable-prefix-caching",
        ));
    }
    let kv_events = format!("{what}: KV events");
    lines.push(match worker.kv_events {
        KvEventsState::On => Finding::ok(kv_events, "on"),
        KvEventsState::Off => Finding::no(kv_events, "off", KV_EVENTS),
        KvEventsState::Unwanted => {
            Finding::no(kv_events, "switched off in the configuration", "kv_events: {mode: auto}")
        }
        KvEventsState::Unknown => {
            Finding::no(kv_events, "it gives no answer to GET /kv_event_sources", KV_EVENTS)
        }
    });
    lines
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::doctor::State;

    fn healthy() -> Surveyed {
        Surveyed {
            name: "gpu1".to_owned(),
            url: "http://gpu1:8000".to_owned(),
            fault: None,
            health_ms: Some(1),
            version: Some("0.32.0".to_owned()),
            models: vec!["llama".to_owned()],
            kv_events: KvEventsState::On,
            prefix_caching: Some(true),
        }
    }

    #[test]
    fn each_fault_has_its_remedy() {
        let states = |worker: &Surveyed| lines(worker).iter().map(|line| line.state).collect::<Vec<_>>();
        assert_eq!(states(&healthy()), [State::Ok, State::Ok]);
        let quiet = Surveyed { kv_events: KvEventsState::Off, ..healthy() };
        assert_eq!(states(&quiet), [State::Ok, State::No]);
        let forgetful = Surveyed { prefix_caching: Some(false), ..healthy() };
        assert_eq!(states(&forgetful), [State::Ok, State::Wrong, State::Ok]);
        let gone = Surveyed { fault: Some("connection refused".to_owned()), ..healthy() };
        assert_eq!(states(&gone), [State::Wrong]);
        for line in [quiet, forgetful, gone].iter().flat_map(lines) {
            assert_eq!(line.remedy.is_some(), line.state != State::Ok, "{line:?}");
        }
    }
}
