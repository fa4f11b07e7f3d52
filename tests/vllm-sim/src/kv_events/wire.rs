//! Batches in msgpack: `[timestamp, [event, …], data parallel rank]`.
//!
//! Since vLLM 0.24 an event is a map tagged `type` whose unset optional fields are left out; up to 0.23 it was an array
//! with the type first and every field in its place.

use rmp_serde::Serializer;
use serde::Serialize;
use serde::ser::{SerializeMap as _, SerializeSeq as _, SerializeTuple as _};

use super::KvEvent;
use crate::config::{EventFormat, HashForm};
use crate::engine::hashing::BlockHash;

const MEDIUM: &str = "GPU";
const GROUP_IDX: u32 = 0;
const SPEC_KIND: &str = "full_attention";

/// How a worker writes its events.
#[derive(Clone, Debug)]
pub struct Wire {
    pub format: EventFormat,
    pub hash_form: HashForm,
    /// LoRA names; a name's position plus one is its deprecated id.
    pub loras: Vec<String>,
}

impl Wire {
    /// One batch. `timestamp_s` is the wall clock's, as a Unix time.
    pub fn encode(&self, timestamp_s: f64, events: &[KvEvent]) -> Vec<u8> {
        let mut out = Vec::with_capacity(256);
        let events: Vec<_> = events.iter().map(|event| WireEvent { event, wire: self }).collect();
        (timestamp_s, events, 0_u32)
            .serialize(&mut Serializer::new(&mut out))
            .expect("writing msgpack to memory cannot fail");
        out
    }

    fn hash(&self, hash: &BlockHash) -> WireHash {
        match self.hash_form {
            HashForm::Int => WireHash::Int(hash.low_u64()),
            HashForm::Bytes => WireHash::Bytes(*hash),
        }
    }
}

enum WireHash {
    Int(u64),
    Bytes(BlockHash),
}

impl Serialize for WireHash {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Int(value) => serializer.serialize_u64(*value),
            Self::Bytes(hash) => serializer.serialize_bytes(hash.as_bytes()),
        }
    }
}

struct WireEvent<'a> {
    event: &'a KvEvent,
    wire: &'a Wire,
}

impl Serialize for WireEvent<'_> {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let wire = self.wire;
        match (self.event, wire.format) {
            (KvEvent::Cleared, EventFormat::Map) => {
                let mut map = serializer.serialize_map(Some(1))?;
                map.serialize_entry("type", "AllBlocksCleared")?;
                map.end()
            }
            (KvEvent::Cleared, EventFormat::Array) => {
                let mut array = serializer.serialize_tuple(1)?;
                array.serialize_element("AllBlocksCleared")?;
                array.end()
            }
            (KvEvent::Removed { hash }, EventFormat::Map) => {
                let mut map = serializer.serialize_map(Some(4))?;
                map.serialize_entry("type", "BlockRemoved")?;
                map.serialize_entry("block_hashes", &[wire.hash(hash)])?;
                map.serialize_entry("medium", MEDIUM)?;
                map.serialize_entry("group_idx", &GROUP_IDX)?;
                map.end()
            }
            (KvEvent::Removed { hash }, EventFormat::Array) => {
                ("BlockRemoved", [wire.hash(hash)], MEDIUM, GROUP_IDX).serialize(serializer)
            }
            (stored @ KvEvent::Stored { .. }, format) => serialize_stored(serializer, wire, stored, format),
        }
    }
}

fn serialize_stored<S: serde::Serializer>(
    serializer: S,
    wire: &Wire,
    stored: &KvEvent,
    format: EventFormat,
) -> Result<S::Ok, S::Error> {
    let KvEvent::Stored { hashes, parent, token_ids, block_size, lora_name, extra_keys, session_id } = stored
    else {
        unreachable!("called with a stored event");
    };
    let block_hashes: Vec<_> = hashes.iter().map(|hash| wire.hash(hash)).collect();
    let parent = parent.as_ref().map(|hash| wire.hash(hash));
    let position = |name: &String| wire.loras.iter().position(|own| own == name);
    let lora_id = lora_name.as_ref().and_then(position).map(|position| position + 1);
    match format {
        EventFormat::Map => {
            let mut map = serializer.serialize_map(Some(11 + usize::from(session_id.is_some())))?;
            map.serialize_entry("type", "BlockStored")?;
            map.serialize_entry("block_hashes", &block_hashes)?;
            map.serialize_entry("parent_block_hash", &parent)?;
            map.serialize_entry("token_ids", token_ids)?;
            map.serialize_entry("block_size", block_size)?;
            map.serialize_entry("lora_id", &lora_id)?;
            map.serialize_entry("medium", MEDIUM)?;
            map.serialize_entry("lora_name", lora_name)?;
            map.serialize_entry("extra_keys", extra_keys)?;
            map.serialize_entry("group_idx", &GROUP_IDX)?;
            map.serialize_entry("kv_cache_spec_kind", SPEC_KIND)?;
            if let Some(session_id) = session_id {
                map.serialize_entry("session_id", session_id)?;
            }
            map.end()
        }
        EventFormat::Array => {
            let mut array = serializer.serialize_seq(Some(12))?;
            array.serialize_element("BlockStored")?;
            array.serialize_element(&block_hashes)?;
            array.serialize_element(&parent)?;
            array.serialize_element(token_ids)?;
            array.serialize_element(block_size)?;
            array.serialize_element(&lora_id)?;
            array.serialize_element(MEDIUM)?;
            array.serialize_element(lora_name)?;
            array.serialize_element(extra_keys)?;
            array.serialize_element(&GROUP_IDX)?;
            array.serialize_element(SPEC_KIND)?;
            array.serialize_element(&None::<u32>)?; // the sliding window
            array.end()
        }
    }
}
