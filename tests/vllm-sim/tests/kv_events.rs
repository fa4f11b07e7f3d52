//! KV events: the wire form against recorded messages, and the live publisher.

use std::time::Duration;

use rmp_serde::decode::from_slice;
use serde::Deserialize;
use serde::de::IgnoredAny;
use serde_json::json;
use tokio::time::timeout;
use vllm_sim::engine::hashing::{BlockHash, BlockHasher, ExtraKeys};
use vllm_sim::kv_events::KvEvent;
use vllm_sim::kv_events::wire::Wire;
use vllm_sim::{EventFormat, HashAlgo, HashForm, KvEventsConfig, SimConfig};
use zeromq::{DealerSocket, Socket as _, SocketSend as _, SubSocket, ZmqMessage};

use crate::support::{Client, PATIENCE, fixture_lines, post, start, tiny};

/// A hash as published: an integer or bytes.
#[derive(Clone, Copy, Debug)]
struct Published(BlockHash);

impl<'de> Deserialize<'de> for Published {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;
        impl serde::de::Visitor<'_> for Visitor {
            type Value = Published;

            fn expecting(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                formatter.write_str("an integer or bytes")
            }

            fn visit_u64<E>(self, value: u64) -> Result<Published, E> {
                Ok(Published(BlockHash::from_bytes(&value.to_be_bytes()).unwrap()))
            }

            fn visit_bytes<E>(self, bytes: &[u8]) -> Result<Published, E> {
                Ok(Published(BlockHash::from_bytes(bytes).unwrap()))
            }
        }
        deserializer.deserialize_any(Visitor)
    }
}

/// A map event, all kinds in one: what a consumer of vLLM 0.24 and later would decode.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct MapEvent {
    r#type: String,
    #[serde(default)]
    block_hashes: Vec<Published>,
    parent_block_hash: Option<Published>,
    #[serde(default)]
    token_ids: Vec<u32>,
    #[serde(default)]
    block_size: usize,
    #[serde(default)]
    lora_id: Option<u32>,
    medium: Option<String>,
    lora_name: Option<String>,
    #[serde(default)]
    extra_keys: Vec<Option<Vec<String>>>,
    group_idx: Option<u32>,
    kv_cache_spec_kind: Option<String>,
    session_id: Option<String>,
}

impl From<&MapEvent> for KvEvent {
    fn from(event: &MapEvent) -> Self {
        match event.r#type.as_str() {
            "AllBlocksCleared" => Self::Cleared,
            "BlockRemoved" => Self::Removed { hash: event.block_hashes[0].0 },
            _ => Self::Stored {
                hashes: event.block_hashes.iter().map(|hash| hash.0).collect(),
                parent: event.parent_block_hash.map(|hash| hash.0),
                token_ids: event.token_ids.clone(),
                block_size: event.block_size,
                lora_name: event.lora_name.clone(),
                extra_keys: event.extra_keys.clone(),
                session_id: event.session_id.clone(),
            },
        }
    }
}

type MapBatch = (f64, Vec<MapEvent>, u32);

fn unhex(text: &str) -> Vec<u8> {
    (0..text.len()).step_by(2).map(|at| u8::from_str_radix(&text[at..at + 2], 16).unwrap()).collect()
}

/// The payloads of a recording.
fn payloads(name: &str) -> Vec<Vec<u8>> {
    let messages = fixture_lines(&format!("kv_events/{name}.jsonl"));
    messages.iter().map(|message| unhex(message["frames_hex"][2].as_str().unwrap())).collect()
}

fn wire(format: EventFormat, hash_form: HashForm) -> Wire {
    Wire { format, hash_form, loras: vec!["ad1".to_owned(), "ad2".to_owned()] }
}

#[test]
fn recorded_map_batches_are_written_byte_for_byte() {
    let mut kinds = std::collections::BTreeSet::new();
    for (name, form) in [
        ("int_map", HashForm::Int),
        ("bytes_map", HashForm::Bytes),
        ("lora_map", HashForm::Int),
        ("cleared_map", HashForm::Int),
    ] {
        for payload in payloads(name) {
            let (timestamp_s, events, rank): MapBatch = from_slice(&payload).unwrap();
            assert_eq!(rank, 0);
            let own: Vec<_> = events.iter().map(KvEvent::from).collect();
            assert_eq!(wire(EventFormat::Map, form).encode(timestamp_s, &own), payload, "{name}: {events:?}");
            kinds.extend(events.into_iter().map(|event| event.r#type));
        }
    }
    assert_eq!(kinds.len(), 3, "all kinds of event are among the recordings");
}

#[test]
fn recorded_array_batches_are_written_byte_for_byte() {
    // The recorded array batches are the map batches of the same server, re-encoded: so must ours be.
    let (maps, arrays) = (payloads("int_map"), payloads("int_array"));
    assert_eq!(maps.len(), arrays.len());
    for (map, array) in maps.iter().zip(&arrays) {
        let (timestamp_s, events, _): MapBatch = from_slice(map).unwrap();
        let own: Vec<_> = events.iter().map(KvEvent::from).collect();
        let written = wire(EventFormat::Array, HashForm::Int).encode(timestamp_s, &own);
        assert_eq!(from_slice::<(f64, Vec<IgnoredAny>, u32)>(&written).unwrap().1.len(), events.len());
        assert_eq!(&written, array, "{events:?}");
    }
}

#[test]
fn recorded_hashes_follow_from_their_tokens() {
    for (name, algo, seed) in
        [("int_map", HashAlgo::Sha256, None), ("bytes_map", HashAlgo::Sha256Cbor, Some("42"))]
    {
        let hasher = BlockHasher::new(algo, seed);
        let mut checked = 0;
        for payload in payloads(name) {
            let (_, events, _): MapBatch = from_slice(&payload).unwrap();
            for event in events.iter().filter(|event| event.r#type == "BlockStored") {
                if event.parent_block_hash.is_some() {
                    continue; // 64 bits of a parent do not continue a chain
                }
                let salt = event.extra_keys[0].as_ref().map(|keys| keys[0].clone());
                let extra = ExtraKeys { lora: None, cache_salt: salt };
                let mut hashes = Vec::new();
                hasher.extend(&event.token_ids, event.block_size, &extra, &mut hashes);
                let published: Vec<_> = event.block_hashes.iter().map(|hash| hash.0.low_u64()).collect();
                assert_eq!(hashes.iter().map(BlockHash::low_u64).collect::<Vec<_>>(), published);
                checked += hashes.len();
            }
        }
        assert!(checked > 20, "{name}: {checked} hashes checked");
    }
}

#[test]
fn the_endpoint_decides_who_binds() {
    for bound in ["tcp://*:5557", "tcp://[::]:5557", "ipc:///tmp/kv", "inproc://kv"] {
        assert!(vllm_sim::kv_events::binds(bound), "{bound}");
    }
    for connected in ["tcp://127.0.0.1:5557", "tcp://router:5557", "tcp://0.0.0.0:5557"] {
        assert!(!vllm_sim::kv_events::binds(connected), "{connected}");
    }
}

/// A worker with events, small enough to evict.
fn with_events(endpoint: &str) -> SimConfig {
    let mut config = tiny();
    config.engine.num_blocks = 33;
    config.kv_events = Some(KvEventsConfig {
        endpoint: endpoint.to_owned(),
        replay_endpoint: Some("tcp://*:0".to_owned()),
        topic: "kv@sim@tiny".to_owned(),
        ..KvEventsConfig::default()
    });
    config
}

async fn receive<S: zeromq::SocketRecv>(socket: &mut S) -> Vec<Vec<u8>> {
    let message = timeout(PATIENCE, socket.recv()).await.expect("a message").expect("an open socket");
    message.into_vec().iter().map(|frame| frame.to_vec()).collect()
}

/// Receives one batch: its number and events.
async fn receive_batch(socket: &mut SubSocket) -> (u64, Vec<MapEvent>) {
    let frames = receive(socket).await;
    let [topic, number, payload] = frames.as_slice() else { panic!("{} frames", frames.len()) };
    assert_eq!(topic, b"kv@sim@tiny");
    let (_, events, _): MapBatch = from_slice(payload).unwrap();
    (u64::from_be_bytes(number.as_slice().try_into().unwrap()), events)
}

/// Runs a completion of `tokens` equal prompt tokens.
async fn complete(client: &mut Client, token: u32, tokens: usize, extra: serde_json::Value) {
    let mut body = json!({"prompt": vec![token; tokens], "max_tokens": 1});
    body.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
    assert_eq!(client.call(&post("/v1/completions", &body)).await.status(), 200);
}

async fn replay(endpoint: &str, from: u64) -> Vec<Vec<Vec<u8>>> {
    let mut dealer = DealerSocket::new();
    dealer.connect(&endpoint.replace('*', "127.0.0.1")).await.unwrap();
    let frames = [bytes::Bytes::new(), bytes::Bytes::copy_from_slice(&from.to_be_bytes())];
    let request: std::collections::VecDeque<_> = frames.into_iter().collect();
    dealer.send(ZmqMessage::try_from(request).unwrap()).await.unwrap();
    let mut answers = Vec::new();
    loop {
        let frames = receive(&mut dealer).await;
        if frames[frames.len() - 2] == [0xff; 8] {
            assert!(frames.last().unwrap().is_empty() && frames[0].is_empty());
            return answers;
        }
        answers.push(frames);
    }
}

#[tokio::test]
async fn a_connecting_publisher_reaches_a_bound_subscriber() {
    let mut subscriber = SubSocket::new();
    let bound = subscriber.bind("tcp://127.0.0.1:0").await.unwrap();
    subscriber.subscribe("kv@").await.unwrap();
    let sim = start(with_events(&bound.to_string())).await;
    let mut client = Client::connect(sim.addr()).await;

    // The first batches may be lost: nobody knows when a subscription has arrived.
    let mut token = 10;
    let (first, _) = loop {
        complete(&mut client, token, 20, json!({})).await;
        token += 1;
        if let Ok(batch) = timeout(Duration::from_millis(100), receive_batch(&mut subscriber)).await {
            break batch;
        }
    };
    complete(&mut client, token, 40, json!({"session_id": "s-1", "cache_salt": "tenant"})).await;
    let (number, events) = receive_batch(&mut subscriber).await;
    assert_eq!(number, first + 1);
    let event = &events[0];
    assert_eq!(
        (event.r#type.as_str(), event.block_hashes.len(), event.token_ids.len()),
        ("BlockStored", 2, 32)
    );
    assert_eq!(event.session_id.as_deref(), Some("s-1"));
    assert_eq!(event.extra_keys, [Some(vec!["tenant".to_owned()]), None]);
    assert_eq!((event.medium.as_deref(), event.group_idx), (Some("GPU"), Some(0)));
    assert_eq!(event.kv_cache_spec_kind.as_deref(), Some("full_attention"));
    assert_eq!(event.lora_id, None);
    assert!(event.parent_block_hash.is_none());

    // Until the subscriber is gone and back: the worker connects again.
    assert!(subscriber.close().await.is_empty());
    let mut subscriber = SubSocket::new();
    timeout(PATIENCE, async {
        while subscriber.bind(&bound.to_string()).await.is_err() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    })
    .await
    .expect("the address is free again");
    subscriber.subscribe("").await.unwrap();
    loop {
        token += 1;
        complete(&mut client, token, 20, json!({})).await;
        if timeout(Duration::from_millis(100), receive_batch(&mut subscriber)).await.is_ok() {
            break;
        }
    }
}

#[tokio::test]
async fn replay_gives_every_batch_from_a_number_on_and_the_events_tell_what_is_cached() {
    let sim = start(with_events("tcp://*:0")).await;
    let events = sim.kv_events().unwrap().clone();
    assert!(!events.endpoint.ends_with(":0"), "the port is known: {}", events.endpoint);
    let mut client = Client::connect(sim.addr()).await;
    // 32 usable blocks: the fourth prompt of 10 full blocks evicts.
    for token in 1..=6 {
        complete(&mut client, token, 160 + 8, json!({})).await;
    }
    let endpoint = events.replay_endpoint.unwrap();
    let batches = replay(&endpoint, 0).await;
    assert_eq!(batches.len() as u64, sim.stats().event_batches);
    let mut cached = std::collections::BTreeMap::<u64, i32>::new();
    let mut removed = 0;
    for (position, frames) in batches.iter().enumerate() {
        let [delimiter, topic, number, payload] = frames.as_slice() else {
            panic!("{} frames", frames.len())
        };
        assert!(delimiter.is_empty());
        assert_eq!(topic, b"kv@sim@tiny");
        assert_eq!(number, &(position as u64).to_be_bytes());
        let (_, events, _): MapBatch = from_slice(payload).unwrap();
        for event in &events {
            let change = if event.r#type == "BlockStored" { 1 } else { -1 };
            removed += u32::from(change < 0);
            for hash in &event.block_hashes {
                *cached.entry(hash.0.low_u64()).or_default() += change;
            }
        }
    }
    assert!(removed > 0, "something was evicted");
    assert!(cached.values().all(|count| *count >= 0));
    let blocks: i32 = cached.values().sum();
    assert_eq!(blocks as u64, sim.stats().cached_blocks, "stored minus removed is what is there");

    assert_eq!(replay(&endpoint, 4).await.len(), batches.len() - 4);
    assert!(replay(&endpoint, 1 << 40).await.is_empty());
}

#[tokio::test]
async fn equal_sequences_store_a_hash_more_than_once() {
    let sim = start(with_events("tcp://*:0")).await;
    let mut client = Client::connect(sim.addr()).await;
    // A full hit recomputes its last block: the same hash in a second block.
    for _ in 0..2 {
        complete(&mut client, 9, 64, json!({})).await;
    }
    let endpoint = sim.kv_events().unwrap().replay_endpoint.clone().unwrap();
    let batches = replay(&endpoint, 0).await;
    let stored: Vec<Vec<u64>> = batches
        .iter()
        .map(|frames| from_slice::<MapBatch>(&frames[3]).unwrap().1)
        .flat_map(|events| {
            events.into_iter().map(|event| event.block_hashes.iter().map(|h| h.0.low_u64()).collect())
        })
        .collect();
    assert_eq!(stored[0].len(), 4);
    assert_eq!(stored[1], stored[0][3..], "the last block once more");
    assert_eq!(sim.stats().cached_blocks, 5);
}

#[tokio::test]
async fn a_reset_shows_with_the_next_batch_and_hits_are_published_on_request() {
    let sim = start(with_events("tcp://*:0")).await;
    let mut client = Client::connect(sim.addr()).await;
    complete(&mut client, 3, 40, json!({})).await;
    let before = sim.stats().event_batches;
    let response = client.call(&post("/reset_prefix_cache", &json!({}))).await;
    assert_eq!(response.body_text(), "{\"success\":true}");
    assert_eq!(sim.stats().event_batches, before, "an idle engine publishes nothing");
    complete(&mut client, 3, 40, json!({})).await;
    complete(&mut client, 3, 40, json!({"vllm_xargs": {"kv_cache_report_mode": "full"}})).await;
    let endpoint = sim.kv_events().unwrap().replay_endpoint.clone().unwrap();
    let batches: Vec<_> = replay(&endpoint, before)
        .await
        .iter()
        .map(|frames| from_slice::<MapBatch>(&frames[3]).unwrap().1)
        .map(|events| events.into_iter().map(|e| (e.r#type, e.block_hashes.len())).collect::<Vec<_>>())
        .collect();
    let stored = ("BlockStored".to_owned(), 2);
    assert_eq!(batches, [vec![("AllBlocksCleared".to_owned(), 0), stored.clone()], vec![stored]]);
}

#[tokio::test]
async fn the_old_format_has_arrays_and_replays_without_topic() {
    let mut config = with_events("tcp://*:0");
    config.kv_events.as_mut().unwrap().format = EventFormat::Array;
    let sim = start(config).await;
    let mut client = Client::connect(sim.addr()).await;
    complete(&mut client, 3, 40, json!({})).await;
    let batches = replay(&sim.kv_events().unwrap().replay_endpoint.clone().unwrap(), 0).await;
    let [delimiter, number, payload] = batches[0].as_slice() else { panic!("{} frames", batches[0].len()) };
    assert!(delimiter.is_empty() && number == &0_u64.to_be_bytes());
    let (_, events, _): (f64, Vec<serde_json::Value>, u32) = from_slice(payload).unwrap();
    assert_eq!(events[0][0], "BlockStored");
    assert_eq!(events[0].as_array().unwrap().len(), 12);
}

#[tokio::test]
async fn sources_are_discoverable_and_sockets_end_with_the_worker() {
    let sim = start(with_events("tcp://*:0")).await;
    let mut client = Client::connect(sim.addr()).await;
    let events = sim.kv_events().unwrap().clone();
    let sources = client.call(&crate::support::get("/kv_event_sources")).await.json();
    assert_eq!(sources["0"]["endpoint"], events.endpoint);
    assert_eq!(sources["0"]["replay_endpoint"], *events.replay_endpoint.as_ref().unwrap());
    assert_eq!(sources["0"]["buffer_steps"], 10_000);
    assert_eq!(sources["0"]["topic"], "kv@sim@tiny");
    sim.kill().await;
    // A new worker takes the same addresses.
    let mut config = with_events(&events.endpoint);
    config.listen = sim.addr();
    config.kv_events.as_mut().unwrap().replay_endpoint = events.replay_endpoint;
    let again = timeout(PATIENCE, async {
        loop {
            match vllm_sim::Sim::start(config.clone()).await {
                Ok(sim) => return sim,
                Err(_) => tokio::time::sleep(Duration::from_millis(10)).await,
            }
        }
    })
    .await
    .expect("the addresses are free again");
    assert_eq!(again.addr(), sim.addr());
}
