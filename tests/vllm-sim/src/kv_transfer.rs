//! KV blocks that go from one worker to another: vLLM's NIXL connector, as its users see it.
//!
//! A request with `kv_transfer_params.do_remote_decode` has its blocks kept when it ends by its length, and is told in its
//! answer where they are: engine, request, block ids, host and port of the side channel. A request with
//! `do_remote_prefill` fetches such blocks before it is scheduled and computes its last token only. Blocks are kept until
//! they are fetched, once, or until the lease is over. What cannot be fetched fails the request, as
//! `kv_load_failure_policy: fail` (vLLM's default) does.
//!
//! The side channel of vLLM is ZMQ for the handshake, and RDMA; here it is one line of JSON each way over TCP, with the
//! transfer's time beside it.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::{TcpListener, TcpStream};

use crate::api::{ApiError, Fields};
use crate::config::KvTransferConfig;
use crate::engine::EngineHandle;
use crate::engine::block_pool::BlockId;
use crate::stats::Counter;

/// How long the side channel may take to answer.
const PATIENCE: Duration = Duration::from_secs(5);

/// What a request says of its blocks.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) enum Transfer {
    /// Nothing.
    #[default]
    None,
    /// They are to be kept for another worker.
    Keep,
    /// They are elsewhere.
    Load(Remote),
}

/// Where blocks are, as the side channel is asked for them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Remote {
    #[serde(rename = "remote_engine_id")]
    engine_id: String,
    #[serde(rename = "remote_request_id")]
    request_id: String,
    /// By KV cache group.
    #[serde(rename = "remote_block_ids")]
    block_ids: Vec<Vec<BlockId>>,
    #[serde(rename = "remote_host")]
    host: String,
    #[serde(rename = "remote_port")]
    port: u16,
}

impl Transfer {
    /// Reads `kv_transfer_params`. Where something is missing there is no transfer, as in vLLM.
    pub(crate) fn read(fields: &Fields<'_>) -> Result<Self, ApiError> {
        let Some(params) = fields.object("kv_transfer_params")? else { return Ok(Self::None) };
        let is = |name: &str| params.get::<bool>(name).ok().flatten().unwrap_or(false);
        if is("do_remote_decode") {
            return Ok(Self::Keep);
        }
        let raw = fields.raw("kv_transfer_params").map_or("null", |raw| raw.get());
        let remote = serde_json::from_str::<Remote>(raw).ok();
        let remote = remote.filter(|remote| is("do_remote_prefill") && !remote.block_ids.concat().is_empty());
        Ok(remote.map_or(Self::None, Self::Load))
    }
}

/// Blocks that the engine keeps beyond their sequence.
#[derive(Debug)]
pub(crate) struct Kept {
    pub(crate) request_id: String,
    /// Set when the sequence has ended by its length.
    pub(crate) blocks: OnceLock<Vec<BlockId>>,
}

/// A worker's end of the connector.
pub(crate) struct Connector {
    config: KvTransferConfig,
    engine_id: String,
    /// Of the side channel.
    addr: SocketAddr,
    engine: EngineHandle,
    kept: Mutex<HashMap<String, Vec<BlockId>>>,
    pub(crate) sent: Counter,
    pub(crate) loaded: Counter,
    pub(crate) expired: Counter,
}

impl Connector {
    /// Listens for those who fetch blocks.
    pub(crate) async fn bind(
        config: &KvTransferConfig,
        engine: EngineHandle,
        host: std::net::IpAddr,
    ) -> std::io::Result<(Arc<Self>, TcpListener)> {
        let listener = TcpListener::bind((host, 0)).await?;
        let addr = listener.local_addr()?;
        let connector = Self {
            config: config.clone(),
            engine_id: format!("sim-{addr}"),
            addr,
            engine,
            kept: Mutex::default(),
            sent: Counter::default(),
            loaded: Counter::default(),
            expired: Counter::default(),
        };
        Ok((Arc::new(connector), listener))
    }

    /// Requests whose blocks are kept now.
    pub(crate) fn kept(&self) -> usize {
        self.kept.lock().len()
    }

    /// Fetches a prompt's blocks. The error is for the log.
    pub(crate) async fn load(&self, remote: &Remote, tokens: usize) -> Result<(), String> {
        let exchange = async {
            let mut stream = TcpStream::connect((remote.host.as_str(), remote.port)).await?;
            let mut line = serde_json::to_vec(remote)?;
            line.push(b'\n');
            stream.write_all(&line).await?;
            let mut answer = String::new();
            BufReader::new(stream).read_line(&mut answer).await?;
            std::io::Result::Ok(answer)
        };
        let answer = tokio::time::timeout(PATIENCE, exchange).await.map_err(|_| "no answer".to_owned())?;
        let answer = answer.map_err(|error| error.to_string())?;
        if answer.trim_end() != "ok" {
            return Err(answer);
        }
        tokio::time::sleep(Duration::from_secs_f64(tokens as f64 / self.config.tokens_per_s)).await;
        self.loaded.add();
        Ok(())
    }

    /// What a request with [`Transfer::Keep`] is answered. The lease begins.
    pub(crate) fn keep(self: &Arc<Self>, kept: &Kept, tokens: usize) -> Option<Value> {
        let blocks = kept.blocks.get()?.clone();
        self.kept.lock().insert(kept.request_id.clone(), blocks.clone());
        let (lease, id, connector) = (self.config.lease, kept.request_id.clone(), self.clone());
        tokio::spawn(async move {
            tokio::time::sleep(lease).await;
            if connector.take(&id) {
                connector.expired.add();
            }
        });
        Some(json!({
            "do_remote_prefill": true,
            "do_remote_decode": false,
            "remote_block_ids": [blocks],
            "remote_engine_id": self.engine_id,
            "remote_request_id": kept.request_id,
            "remote_host": self.addr.ip().to_string(),
            "remote_port": self.addr.port(),
            "tp_size": 1,
            "remote_num_tokens": tokens,
        }))
    }

    /// Ends the keeping of a request's blocks; false if it had ended before.
    fn take(&self, request_id: &str) -> bool {
        let were_kept = self.kept.lock().remove(request_id).is_some();
        if were_kept {
            self.engine.release_kept(request_id.to_owned());
        }
        were_kept
    }

    /// Answers one who wants blocks.
    fn give(&self, line: &str) -> Result<(), String> {
        let wanted: Remote = serde_json::from_str(line).map_err(|error| error.to_string())?;
        if wanted.engine_id != self.engine_id {
            return Err(format!("engine {} is not here", wanted.engine_id));
        }
        if self.kept.lock().get(&wanted.request_id).is_none_or(|kept| wanted.block_ids != [kept.clone()]) {
            return Err(format!("request {} has no such blocks here", wanted.request_id));
        }
        self.take(&wanted.request_id);
        self.sent.add();
        Ok(())
    }
}

/// Serves the side channel; for as long as the worker lives.
pub(crate) async fn serve(connector: Arc<Connector>, listener: TcpListener) {
    while let Ok((stream, _)) = listener.accept().await {
        let connector = connector.clone();
        tokio::spawn(async move {
            let mut stream = BufReader::new(stream);
            let mut line = String::new();
            if !matches!(tokio::time::timeout(PATIENCE, stream.read_line(&mut line)).await, Ok(Ok(1..))) {
                return;
            }
            let answer = match connector.give(&line) {
                Ok(()) => "ok\n".to_owned(),
                Err(why) => format!("{why}\n"),
            };
            let _ = stream.write_all(answer.as_bytes()).await; // who asked may have gone
        });
    }
}
