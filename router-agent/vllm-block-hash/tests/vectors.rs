//! Block hashes against recorded vectors, and against the events that real servers published.

use serde_json::Value;
use vllm_block_hash::{BlockHash, BlockHasher, ExtraKeys, HashAlgo};

fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write;
    bytes.iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

#[test]
fn every_recorded_vector_comes_out() {
    let vectors: Vec<Value> =
        serde_json::from_str(include_str!("../../../tests/fixtures/vllm/hash_vectors.json")).unwrap();
    let mut blocks = 0;
    for vector in &vectors {
        let algo = HashAlgo::from_name(vector["algo"].as_str().unwrap()).unwrap();
        let hasher = BlockHasher::new(algo, vector["seed"].as_str());
        assert_eq!(hex(hasher.none_hash().as_bytes()), vector["none_hash"], "{algo:?}");
        let mut parent = hasher.none_hash();
        for (index, block) in vector["blocks"].as_array().unwrap().iter().enumerate() {
            let tokens: Vec<u32> = serde_json::from_value(block["tokens"].clone()).unwrap();
            let salt = block["extra"].as_array().map(|keys| keys[0][1].as_str().unwrap().to_owned());
            let first = block["parent"] == "NONE_HASH" || index == 0;
            let parent_digest = if first { hasher.none_hash() } else { parent };
            let extra = ExtraKeys { lora: None, cache_salt: salt };
            let mut serialised = Vec::new();
            let position = if first { 0 } else { index };
            parent = hasher.hash_block(parent_digest, &tokens, &extra, position, &mut serialised);
            assert_eq!(hex(&serialised), block["serialized_hex"], "{algo:?}");
            assert_eq!(hex(parent.as_bytes()), block["digest"], "{algo:?}");
            assert_eq!(parent.low_u64(), block["published_int"].as_u64().unwrap(), "{algo:?}");
            blocks += 1;
        }
    }
    assert_eq!((vectors.len(), blocks), (12, 36));
}

#[test]
fn a_salt_marks_the_first_block_and_an_adapter_all() {
    let hasher = BlockHasher::new(HashAlgo::Sha256, None);
    let tokens: Vec<u32> = (0..48).collect();
    let hashes = |extra: &ExtraKeys| {
        let mut hashes = Vec::new();
        hasher.extend(&tokens, 16, extra, &mut hashes);
        hashes
    };
    let salted = ExtraKeys { cache_salt: Some("tenant-a".to_owned()), ..ExtraKeys::default() };
    let adapted = ExtraKeys { lora: Some(("ad1".to_owned(), "/ad1".to_owned())), ..ExtraKeys::default() };
    let all: Vec<BlockHash> =
        [&ExtraKeys::default(), &salted, &adapted].into_iter().flat_map(hashes).collect();
    for (position, hash) in all.iter().enumerate() {
        assert!(!all[..position].contains(hash), "each prefix has its own hash");
    }
    assert_eq!(salted.published(0), Some(vec!["tenant-a".to_owned()]));
    assert_eq!(salted.published(1), None);
    assert_eq!(adapted.published(1), Some(vec!["ad1".to_owned()]));
}

#[test]
fn short_blocks_are_pickled_as_python_does() {
    // python3 -c 'import pickle; print(pickle.dumps((b"parentxx", (1, 2), None), protocol=5).hex())'
    let hasher = BlockHasher::new(HashAlgo::Sha256, None);
    let parent = BlockHash::from_bytes(b"parentxx").unwrap();
    let mut serialised = Vec::new();
    for (tokens, expected) in [
        (&[1_u32, 2][..], "80059515000000000000004308706172656e747878944b014b0286944e87942e"),
        (&[1, 2, 3], "80059517000000000000004308706172656e747878944b014b024b0387944e87942e"),
        (&[7], "80059513000000000000004308706172656e747878944b0785944e87942e"),
    ] {
        hasher.hash_block(parent, tokens, &ExtraKeys::default(), 0, &mut serialised);
        assert_eq!(hex(&serialised), expected);
    }
}
