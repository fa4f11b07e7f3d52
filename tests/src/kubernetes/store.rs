//! The objects of an API server, every change of them under a resource version of its own, and the changes that a watch may
//! still ask for.

use std::collections::BTreeMap;

use serde_json::{Value, json};

/// Where objects of a kind are: `pods`, or `endpointslices.discovery.k8s.io`; their namespace, and their name.
pub(super) type Key = (String, String, String);

/// A change.
#[derive(Debug, Clone)]
pub(super) struct Change {
    pub(super) version: u64,
    pub(super) key: Key,
    /// None: it was not there.
    pub(super) before: Option<Value>,
    /// None: it is not there any more.
    pub(super) after: Option<Value>,
}

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Store {
    pub(super) version: u64,
    objects: BTreeMap<Key, Value>,
    changes: Vec<Change>,
    /// Changes up to this version are forgotten: a watch from before it is told 410.
    pub(super) forgotten: u64,
}

impl Store {
    /// The objects of a kind, of one namespace or of all.
    pub(super) fn list(&self, kind: &str, namespace: Option<&str>) -> Vec<Value> {
        let is_meant = |key: &Key| key.0 == kind && namespace.is_none_or(|namespace| key.1 == namespace);
        self.objects.iter().filter(|(key, _)| is_meant(key)).map(|(_, object)| object.clone()).collect()
    }

    pub(super) fn get(&self, key: &Key) -> Option<&Value> {
        self.objects.get(key)
    }

    /// Puts an object in place; none: takes it away.
    pub(super) fn put(&mut self, key: Key, object: Option<Value>) -> Option<Value> {
        self.version += 1;
        let version = self.version.to_string();
        let before = self.objects.remove(&key);
        let after = object.map(|mut object| {
            object["metadata"]["resourceVersion"] = json!(version);
            object["metadata"]["name"] = json!(key.2);
            object["metadata"]["namespace"] = json!(key.1);
            if object["metadata"]["uid"].is_null() {
                let uid = before
                    .as_ref()
                    .map_or(json!(format!("uid-{version}")), |before| before["metadata"]["uid"].clone());
                object["metadata"]["uid"] = uid;
            }
            object
        });
        if let Some(object) = &after {
            self.objects.insert(key.clone(), object.clone());
        }
        self.changes.push(Change { version: self.version, key, before, after: after.clone() });
        after
    }

    /// What has changed since.
    pub(super) fn since(&self, version: u64) -> Vec<Change> {
        self.changes.iter().filter(|change| change.version > version).cloned().collect()
    }

    /// Forgets what was.
    pub(super) fn forget(&mut self) {
        self.forgotten = self.version;
        self.changes.clear();
    }
}

/// JSON merge patch (RFC 7386).
pub(super) fn merge(target: &mut Value, patch: &Value) {
    let Some(members) = patch.as_object() else {
        *target = patch.clone();
        return;
    };
    if !target.is_object() {
        *target = json!({});
    }
    for (name, value) in members {
        if value.is_null() {
            target.as_object_mut().map(|target| target.remove(name));
        } else {
            merge(&mut target[name], value);
        }
    }
}
