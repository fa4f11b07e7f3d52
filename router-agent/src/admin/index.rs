//! `GET /index`: what is known of the workers' caches.

use std::sync::Arc;

use axum::{Json, extract::State};
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use super::{Admin, error::ErrorBody, extract::Asked};
use crate::{
    fleet::Worker,
    index::{IndexStats, Prefix, PrefixIndex},
    kernel::now_ns,
};

/// The prefix indices, and the prefixes that most requests share.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct IndexView {
    /// By bytes of prompts: what was sent where.
    bytes: SideView,
    /// By tokens: what the workers say of their caches (KV events).
    tokens: SideView,
    /// Bytes of a block of the first.
    block_bytes: usize,
    /// The most used first: a sample that is made about once a second.
    hottest_prefixes: Vec<PrefixView>,
}

/// One index.
#[derive(Debug, Serialize, ToSchema)]
struct SideView {
    /// Its memory.
    memory_bytes: usize,
    /// As it may grow.
    memory_bytes_max: usize,
    /// Different blocks.
    blocks: u64,
    /// Pairs of a block and a worker that holds it.
    held_blocks: u64,
    /// Pairs dropped because the worker has no room for more.
    evicted_by_capacity: u64,
    /// Pairs dropped because the index has no room for more.
    evicted_by_memory: u64,
    /// Blocks by worker.
    workers: Vec<HeldView>,
}

/// What one worker holds.
#[derive(Debug, Serialize, ToSchema)]
struct HeldView {
    /// Its name.
    worker: String,
    /// Blocks.
    blocks: u64,
}

/// A prefix that requests share.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct PrefixView {
    /// Hash of its last block, which names it.
    #[schema(example = "9a1f0c66d20b34e7")]
    hash: String,
    /// The same of the stretch before it; not there at a prompt's beginning.
    #[serde(skip_serializing_if = "Option::is_none")]
    parent_hash: Option<String>,
    /// Blocks from the prompt's beginning.
    depth_blocks: u32,
    /// Of these, blocks that are not in the stretch before.
    own_blocks: u32,
    /// Tokens from the prompt's beginning, about.
    depth_tokens: u64,
    /// Requests that went through it.
    hits: u32,
    /// Since the last of them.
    idle_seconds: f64,
    /// Who holds it.
    workers: Vec<String>,
}

/// Of `GET /index`.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct Which {
    /// The most prefixes that are listed.
    #[serde(default = "prefixes_shown")]
    #[param(default = 20, maximum = 256)]
    prefixes: usize,
}

fn prefixes_shown() -> usize {
    20
}

/// The index: memory, blocks per worker, and the hottest prefixes with who holds them.
#[utoipa::path(
    get, path = "/index", tag = "state", params(Which),
    responses(
        (status = 200, description = "the index", body = IndexView),
        (status = 400, description = "the query is wrong", body = ErrorBody),
    )
)]
pub(super) async fn show(State(admin): State<Admin>, Asked(which): Asked<Which>) -> Json<IndexView> {
    let config = admin.shared.config.get();
    let side = |index: &PrefixIndex| SideView::of(index, config.index.bytes_max, &admin);
    Json(IndexView {
        bytes: side(&admin.shared.index),
        tokens: side(&admin.shared.token_index),
        block_bytes: config.index.block_bytes,
        hottest_prefixes: hottest(&admin, which.prefixes),
    })
}

impl SideView {
    fn of(index: &PrefixIndex, memory_bytes_max: usize, admin: &Admin) -> Self {
        let IndexStats { bytes, blocks, held_blocks, evicted_by_capacity, evicted_by_bytes, .. } =
            index.stats();
        let workers = admin.shared.fleet.workers();
        let held = |worker: &Arc<Worker>| HeldView {
            worker: worker.name.clone(),
            blocks: index.blocks(worker.slot),
        };
        Self {
            memory_bytes: bytes,
            memory_bytes_max,
            blocks,
            held_blocks,
            evicted_by_capacity,
            evicted_by_memory: evicted_by_bytes,
            workers: workers.iter().map(held).collect(),
        }
    }
}

/// The most used prefixes of the last sample.
pub(super) fn hottest(admin: &Admin, count: usize) -> Vec<PrefixView> {
    let config = admin.shared.config();
    let (workers, now_ns) = (admin.shared.fleet.workers(), now_ns());
    let bytes_per_token = admin.shared.bytes_per_token();
    let view = |prefix: &Prefix| PrefixView {
        hash: hex(prefix.hash),
        parent_hash: (prefix.parent_hash != 0).then(|| hex(prefix.parent_hash)),
        depth_blocks: prefix.depth_blocks,
        own_blocks: prefix.own_blocks,
        depth_tokens: (f64::from(prefix.depth_blocks) * config.index.block_bytes as f64 / bytes_per_token)
            as u64,
        hits: prefix.hits,
        idle_seconds: now_ns.saturating_sub(prefix.last_used_ns) as f64 / 1e9,
        workers: workers
            .iter()
            .filter(|worker| prefix.is_held_by(worker.slot))
            .map(|worker| worker.name.clone())
            .collect(),
    };
    admin.hottest.load().iter().take(count).map(view).collect()
}

fn hex(hash: u64) -> String {
    format!("{hash:016x}")
}
