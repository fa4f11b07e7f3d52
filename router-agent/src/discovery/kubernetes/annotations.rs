//! What a pod's annotations say of the worker in it. One that cannot be understood is as one that is not there, and named in
//! the log: a typing error shall not take GPUs out of service.

use std::collections::{BTreeMap, HashSet};

use crate::config::{KvEndpoints, WorkerConfig, WorkerKvEvents, WorkerRole, check_models};

/// Of every annotation that is read.
const PREFIX: &str = "warmpath.dev/";
/// Where the worker listens: a number, or the name of a container's port.
pub(super) const PORT: &str = "warmpath.dev/port";
/// The models that it serves, between commas.
const MODELS: &str = "warmpath.dev/models";
/// `both`, `prefill` or `decode`.
const ROLE: &str = "warmpath.dev/role";
/// `auto`, `off`, or an endpoint such as `tcp://*:5557`.
const KV_EVENTS: &str = "warmpath.dev/kv-events";
/// The endpoint where it replays.
const KV_EVENTS_REPLAY: &str = "warmpath.dev/kv-events-replay";
/// First frame of its messages.
const KV_EVENTS_TOPIC: &str = "warmpath.dev/kv-events-topic";

/// Says what is wrong with annotations: once of each pod.
#[derive(Debug, Default)]
pub(super) struct Complaints {
    made: HashSet<(String, String)>,
}

/// Pods that may be complained of before it is done all over again.
const COMPLAINTS_MAX: usize = 1_000;

impl Complaints {
    /// The annotation of this pod is not used, and why.
    pub(super) fn make(&mut self, pod: &str, key: &str, why: &str) {
        if self.made.len() >= COMPLAINTS_MAX {
            self.made.clear();
        }
        if self.made.insert((pod.to_owned(), format!("{key}: {why}"))) {
            tracing::warn!(pod, annotation = key, "discovery: the annotation is not used: {why}");
        }
    }
}

/// Lays what the annotations say over the worker.
pub(super) fn apply(
    annotations: &BTreeMap<String, String>,
    pod: &str,
    worker: &mut WorkerConfig,
    complaints: &mut Complaints,
) {
    let known = [PORT, MODELS, ROLE, KV_EVENTS, KV_EVENTS_REPLAY, KV_EVENTS_TOPIC];
    for key in annotations.keys().filter(|key| key.starts_with(PREFIX) && !known.contains(&key.as_str())) {
        complaints.make(pod, key, &format!("there is none of this name: {}", known.join(", ")));
    }
    if let Some(list) = annotations.get(MODELS) {
        let models: Vec<String> =
            list.split(',').map(|model| model.trim().to_owned()).filter(|model| !model.is_empty()).collect();
        match check_models("models", &models) {
            Ok(()) => worker.models = models,
            Err(error) => complaints.make(pod, MODELS, &error.to_string()),
        }
    }
    if let Some(role) = annotations.get(ROLE) {
        let known = [WorkerRole::Both, WorkerRole::Prefill, WorkerRole::Decode];
        match known.into_iter().find(|known| known.label() == role) {
            Some(role) => worker.role = role,
            None => complaints.make(pod, ROLE, &format!("{role:?} is none of both, prefill, decode")),
        }
    }
    match kv_events(annotations) {
        Ok(Some(kv_events)) => worker.kv_events = kv_events,
        Ok(None) => {}
        Err(why) => complaints.make(pod, KV_EVENTS, &why),
    }
}

fn kv_events(annotations: &BTreeMap<String, String>) -> Result<Option<WorkerKvEvents>, String> {
    let replay_endpoint = annotations.get(KV_EVENTS_REPLAY).cloned();
    let topic = annotations.get(KV_EVENTS_TOPIC).cloned();
    let kv_events = match annotations.get(KV_EVENTS).map(String::as_str) {
        None if replay_endpoint.is_some() || topic.is_some() => {
            return Err(format!("{KV_EVENTS_REPLAY} and {KV_EVENTS_TOPIC} have no meaning without it"));
        }
        None => return Ok(None),
        Some("auto") => WorkerKvEvents::Auto,
        Some("off") => WorkerKvEvents::Off,
        Some(endpoint) => {
            let endpoint = endpoint.to_owned();
            WorkerKvEvents::At(KvEndpoints { endpoint, replay_endpoint, topic: topic.unwrap_or_default() })
        }
    };
    kv_events.validate().map_err(|error| error.to_string())?;
    Ok(Some(kv_events))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::worker_config;

    fn read(annotations: &[(&str, &str)]) -> (WorkerConfig, usize) {
        let annotations =
            annotations.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
        let mut worker = worker_config("http://10.0.0.1:8000", None).expect("a URL");
        let mut complaints = Complaints::default();
        apply(&annotations, "ns/pod", &mut worker, &mut complaints);
        (worker, complaints.made.len())
    }

    #[test]
    fn annotations_say_models_roles_and_kv_events() {
        let (worker, complaints) = read(&[
            ("warmpath.dev/role", "prefill"),
            ("warmpath.dev/models", "base, sql-lora,"),
            ("warmpath.dev/kv-events", "tcp://*:5557"),
            ("warmpath.dev/kv-events-replay", "tcp://*:5558"),
            ("warmpath.dev/kv-events-topic", "kv"),
            ("prometheus.io/scrape", "true"),
        ]);
        assert_eq!(worker.role, WorkerRole::Prefill);
        assert_eq!((worker.models, complaints), (vec!["base".to_owned(), "sql-lora".to_owned()], 0));
        let endpoints = KvEndpoints {
            endpoint: "tcp://*:5557".to_owned(),
            replay_endpoint: Some("tcp://*:5558".to_owned()),
            topic: "kv".to_owned(),
        };
        assert_eq!(worker.kv_events, WorkerKvEvents::At(endpoints));
        assert_eq!(read(&[("warmpath.dev/kv-events", "off")]).0.kv_events, WorkerKvEvents::Off);
    }

    #[test]
    fn a_wrong_annotation_is_named_and_the_worker_is_used_without_it() {
        for annotation in [
            ("warmpath.dev/kv-events", "5557"),
            ("warmpath.dev/kv-events-topic", "kv"),
            ("warmpath.dev/modles", "base"),
            ("warmpath.dev/role", "prefil"),
        ] {
            let (worker, complaints) = read(&[annotation]);
            assert_eq!((worker.kv_events, worker.models.len(), complaints), (WorkerKvEvents::Auto, 0, 1));
        }
    }
}
