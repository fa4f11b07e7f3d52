//! vLLM's KV event batches, in msgpack: `[timestamp, [event, …], data parallel rank]`.
//!
//! Since vLLM 0.24 an event is a map tagged `type`; up to 0.23 it was an array with the type first. A hash is an unsigned
//! integer (the low 64 bits of the digest) or the digest's bytes. What this version does not know (fields, types of event)
//! is passed over, and an event that cannot be read costs that event only.

mod values;

use std::fmt;

use serde::{
    Deserialize, Deserializer,
    de::{IgnoredAny, MapAccess, SeqAccess, Visitor},
};

pub use self::values::{EngineHash, ExtraKey};

/// Nesting beyond this is no event of vLLM's.
const DEPTH_MAX: usize = 16;

/// One message's payload.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Batch {
    /// In their order.
    pub events: Vec<Event>,
    /// Data parallel rank; 0 where the message does not say.
    pub rank: u32,
    /// Events that could not be read.
    pub undecodable: u32,
}

/// What happened to the engine's blocks.
#[derive(Debug, Clone, PartialEq)]
pub enum Event {
    /// Consecutive blocks of one sequence have content.
    Stored(Stored),
    /// Blocks lost their content.
    Removed(Removed),
    /// All blocks lost their content.
    Cleared,
    /// A type that this version does not know.
    Other,
}

/// `BlockStored`.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Stored {
    /// One per block.
    pub hashes: Vec<EngineHash>,
    /// The block before the first one; none at the start of a sequence.
    pub parent: Option<EngineHash>,
    /// The tokens of all these blocks.
    pub tokens: Vec<u32>,
    /// Tokens per block.
    pub block_tokens: u32,
    /// LoRA adapter.
    pub adapter: Option<String>,
    /// Per block; empty where the message has none.
    pub extra_keys: Vec<Vec<ExtraKey>>,
    /// Which memory, which KV cache group.
    pub place: Place,
    /// `full_attention`, `sliding_window`, …
    pub kind: Option<String>,
}

/// `BlockRemoved`.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Removed {
    /// The blocks.
    pub hashes: Vec<EngineHash>,
    /// Which memory, which KV cache group.
    pub place: Place,
}

/// Where a block is.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Place {
    /// `GPU` (also for a CPU's own backend), or a tier behind it.
    pub medium: Option<String>,
    /// KV cache group of a model with several.
    pub group: Option<u32>,
}

impl Place {
    /// In the memory that the engine computes with.
    pub fn is_device(&self) -> bool {
        self.medium.as_deref().is_none_or(|medium| medium.eq_ignore_ascii_case("gpu"))
    }
}

/// A payload that is no batch.
#[derive(Debug, thiserror::Error)]
#[error("not a batch of KV events: {0}")]
pub struct NotABatch(String);

/// Reads one payload.
pub fn decode(payload: &[u8]) -> Result<Batch, NotABatch> {
    let wrong = |why: &dyn fmt::Display| NotABatch(why.to_string());
    let mut rest = payload;
    let fields = rmp::decode::read_array_len(&mut rest).map_err(|error| wrong(&error))?;
    if fields < 2 {
        return Err(wrong(&format_args!("{fields} fields instead of timestamp, events and rank")));
    }
    take_value(&mut rest).ok_or_else(|| wrong(&"no timestamp"))?;
    let count = rmp::decode::read_array_len(&mut rest).map_err(|error| wrong(&error))?;
    let mut batch = Batch::default();
    for number in 0..count {
        let event = take_value(&mut rest)
            .ok_or_else(|| wrong(&format_args!("event {number} of {count} is cut off")))?;
        match read(event) {
            Some(event) => batch.events.push(event),
            None => batch.undecodable += 1,
        }
    }
    if fields > 2 {
        let rank = take_value(&mut rest).ok_or_else(|| wrong(&"the rank is cut off"))?;
        batch.rank = read::<Option<u32>>(rank).ok_or_else(|| wrong(&"the rank is no number"))?.unwrap_or(0);
    }
    Ok(batch)
}

/// The bytes of the value at the start of `rest`, which is moved behind it.
fn take_value<'a>(rest: &mut &'a [u8]) -> Option<&'a [u8]> {
    let all = *rest;
    let mut deserializer = rmp_serde::Deserializer::new(rest);
    deserializer.set_max_depth(DEPTH_MAX);
    IgnoredAny::deserialize(&mut deserializer).ok()?;
    let left = deserializer.into_inner().len();
    Some(&all[..all.len() - left])
}

fn read<'a, T: Deserialize<'a>>(value: &'a [u8]) -> Option<T> {
    let mut deserializer = rmp_serde::Deserializer::from_read_ref(value);
    deserializer.set_max_depth(DEPTH_MAX);
    T::deserialize(&mut deserializer).ok()
}

impl<'de> Deserialize<'de> for Event {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(EventVisitor)
    }
}

/// Every field that any event has, until its type is known.
#[derive(Default)]
struct Fields {
    kind: Option<String>,
    hashes: Option<Vec<EngineHash>>,
    stored: Stored,
    place: Place,
}

impl Fields {
    fn event<E: serde::de::Error>(self) -> Result<Event, E> {
        let hashes = || self.hashes.ok_or_else(|| E::missing_field("block_hashes"));
        match self.kind.as_deref() {
            Some("BlockStored") => {
                let stored = Stored { hashes: hashes()?, place: self.place, ..self.stored };
                let tokens = stored.hashes.len() as u64 * u64::from(stored.block_tokens);
                if stored.block_tokens == 0 || tokens != stored.tokens.len() as u64 {
                    return Err(E::custom("tokens, blocks and block size do not fit"));
                }
                if !stored.extra_keys.is_empty() && stored.extra_keys.len() != stored.hashes.len() {
                    return Err(E::custom("extra keys and blocks do not fit"));
                }
                Ok(Event::Stored(stored))
            }
            Some("BlockRemoved") => Ok(Event::Removed(Removed { hashes: hashes()?, place: self.place })),
            Some("AllBlocksCleared") => Ok(Event::Cleared),
            Some(_) => Ok(Event::Other),
            None => Err(E::missing_field("type")),
        }
    }
}

struct EventVisitor;

impl<'de> Visitor<'de> for EventVisitor {
    type Value = Event;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an event: a map with a type, or an array that begins with one")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Event, A::Error> {
        let mut fields = Fields::default();
        while let Some(key) = map.next_key::<String>()? {
            match key.as_str() {
                "type" => fields.kind = Some(map.next_value()?),
                "block_hashes" => fields.hashes = Some(map.next_value()?),
                "parent_block_hash" => fields.stored.parent = map.next_value()?,
                "token_ids" => fields.stored.tokens = map.next_value()?,
                "block_size" => fields.stored.block_tokens = map.next_value()?,
                "lora_name" => fields.stored.adapter = map.next_value()?,
                "extra_keys" => fields.stored.extra_keys = extra_keys(map.next_value()?),
                "medium" => fields.place.medium = map.next_value()?,
                "group_idx" => fields.place.group = map.next_value()?,
                "kv_cache_spec_kind" => fields.stored.kind = map.next_value()?,
                _ => drop(map.next_value::<IgnoredAny>()?),
            }
        }
        fields.event()
    }

    /// Fields in the order of vLLM 0.23's structs; the later ones were added at the end, one version after another.
    fn visit_seq<A: SeqAccess<'de>>(self, mut array: A) -> Result<Event, A::Error> {
        let mut fields = Fields { kind: array.next_element()?, ..Fields::default() };
        match fields.kind.as_deref() {
            Some("BlockStored") => {
                fields.hashes = array.next_element()?;
                fields.stored.parent = array.next_element()?.flatten();
                fields.stored.tokens = array.next_element()?.unwrap_or_default();
                fields.stored.block_tokens = array.next_element()?.unwrap_or_default();
                array.next_element::<IgnoredAny>()?; // lora_id
                fields.place.medium = array.next_element()?.flatten();
                fields.stored.adapter = array.next_element()?.flatten();
                fields.stored.extra_keys = extra_keys(array.next_element()?.flatten());
                fields.place.group = array.next_element()?.flatten();
                fields.stored.kind = array.next_element()?.flatten();
            }
            Some("BlockRemoved") => {
                fields.hashes = array.next_element()?;
                fields.place.medium = array.next_element()?.flatten();
                fields.place.group = array.next_element()?.flatten();
            }
            _ => {}
        }
        while array.next_element::<IgnoredAny>()?.is_some() {}
        fields.event()
    }
}

type PublishedExtraKeys = Option<Vec<Option<Vec<ExtraKey>>>>;

fn extra_keys(published: PublishedExtraKeys) -> Vec<Vec<ExtraKey>> {
    published.unwrap_or_default().into_iter().map(Option::unwrap_or_default).collect()
}

#[cfg(test)]
mod tests;
