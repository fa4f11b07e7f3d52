//! What the LMCache controller knows of a prompt: for the policy `lmcache`.
//!
//! `POST /lookup` with the prompt's token ids answers, per instance, how many leading tokens it has, wherever they lie
//! (`{"layout_info": {instance: [location, tokens]}}`). A request waits for that no longer than `routing.lmcache.timeout`;
//! without an answer it is decided as by `warm`, from this gateway's own index. Where the controller fails again and again
//! it is not asked for a while: a breaker, as for workers.
//!
//! `GET /controller/workers` lists the instances, with their address and the number of chunks that they hold; it is read at
//! the pace of the scrapes. An instance is a worker by `routing.lmcache.instances`, else by its id being the worker's name,
//! else by an address that only one worker has.

use std::{
    collections::{HashMap, HashSet},
    net::IpAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use arc_swap::ArcSwap;
use bytes::Bytes;
use http::{Method, Request, header};
use http_body_util::{BodyExt, Full, Limited};
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::TokioExecutor,
};
use serde::{Deserialize, Serialize};

use super::Shared;
use crate::{
    config::{self, WorkerUrl},
    fleet::{Breaker, Fleet, Outcome},
    index::WorkerSlot,
    limits,
    routing::Policy,
    telemetry::LookupOutcome,
};

/// Leading tokens of a prompt by worker.
pub(super) type Matched = Vec<(WorkerSlot, u32)>;

/// The instances that the controller lists, as workers.
pub(super) type Instances = ArcSwap<HashMap<String, WorkerSlot>>;

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
enum LookupError {
    #[error("no answer within {0:?}")]
    Timeout(Duration),
    #[error(transparent)]
    Http(#[from] hyper_util::client::legacy::Error),
    #[error("the controller answered {0}")]
    Status(http::StatusCode),
    #[error("broken answer: {0}")]
    Body(Box<dyn std::error::Error + Send + Sync>),
    #[error("not the answer of an LMCache controller: {0}")]
    Json(#[from] serde_json::Error),
}

/// One thread's connections to the controller, kept for as long as its configuration is the same.
pub(super) struct Controller {
    client: Client<HttpConnector, Full<Bytes>>,
    authority: String,
    timeout: Duration,
    breaker: Breaker,
}

#[derive(Serialize)]
struct Lookup<'a> {
    tokens: &'a [u32],
}

#[derive(Deserialize)]
struct Layout {
    #[serde(default)]
    layout_info: HashMap<String, (String, u32)>,
}

#[derive(Deserialize)]
struct Listed {
    workers: Vec<Instance>,
}

#[derive(Deserialize)]
struct Instance {
    #[serde(rename = "instance_id")]
    id: String,
    #[serde(default)]
    ip: Option<IpAddr>,
    #[serde(default)]
    key_count: u64,
}

impl Controller {
    /// For the current runtime; none where no controller is configured.
    pub(super) fn new(config: &config::Config) -> Option<Self> {
        if config.routing.settings.policy != Policy::Lmcache {
            return None;
        }
        let controller: &WorkerUrl = config.routing.lmcache.controller.as_ref()?;
        let breaker = Breaker::new(config.breaker);
        Some(Self {
            client: Client::builder(TokioExecutor::new()).build_http(),
            authority: controller.authority(),
            timeout: config.routing.lmcache.timeout,
            breaker,
        })
    }

    /// What the controller knows of these tokens; none if it does not say so in time, or the tokens are not known.
    pub(super) async fn matched(&self, shared: &Shared, tokens: Option<&[u32]>) -> Option<Matched> {
        let now = Instant::now();
        let metrics = &shared.metrics.lmcache;
        let Some(tokens) = tokens else {
            metrics.count(LookupOutcome::NoTokens);
            return None;
        };
        if !self.breaker.admits(now) {
            metrics.count(LookupOutcome::NotAsked);
            return None;
        }
        let role = self.breaker.begin(now);
        let answer = self.lookup(shared, tokens).await;
        metrics.seconds.observe(now.elapsed().as_secs_f64());
        match answer {
            Ok(matched) => {
                self.breaker.ended(role, Outcome::Success, Instant::now());
                metrics.count(LookupOutcome::Answered);
                Some(matched)
            }
            Err(error) => {
                self.breaker.ended(role, Outcome::Fault, Instant::now());
                let is_late = matches!(error, LookupError::Timeout(_));
                metrics.count(if is_late { LookupOutcome::Late } else { LookupOutcome::Failed });
                tracing::debug!(%error, "LMCache controller: decided without it");
                None
            }
        }
    }

    /// As [`Controller::matched`], for a request that is not served: nothing is counted.
    pub(super) async fn look(&self, shared: &Shared, tokens: &[u32]) -> Option<Matched> {
        self.lookup(shared, tokens).await.ok()
    }

    async fn lookup(&self, shared: &Shared, tokens: &[u32]) -> Result<Matched, LookupError> {
        let body = serde_json::to_vec(&Lookup { tokens }).expect("numbers serialise");
        let answer = self.exchange(Method::POST, "/lookup", body.into(), self.timeout).await;
        let Layout { layout_info } = answer?;
        let instances = shared.lmcache_instances.load();
        // A worker may have several instances: what the best of them has, it has.
        let mut matched = Matched::new();
        for (id, (_, tokens)) in layout_info {
            let Some(slot) = instances.get(&id) else { continue };
            match matched.iter_mut().find(|(of, _)| of == slot) {
                Some((_, most)) => *most = tokens.max(*most),
                None => matched.push((*slot, tokens)),
            }
        }
        Ok(matched)
    }

    async fn exchange<T: serde::de::DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        body: Bytes,
        timeout: Duration,
    ) -> Result<T, LookupError> {
        let request = Request::builder()
            .method(method)
            .uri(format!("http://{}{path}", self.authority))
            .header(header::CONTENT_TYPE, "application/json")
            .body(Full::new(body))
            .expect("a checked authority and a constant path make a URI");
        let answer = async {
            let response = self.client.request(request).await?;
            if !response.status().is_success() {
                return Err(LookupError::Status(response.status()));
            }
            let body = Limited::new(response.into_body(), limits::LMCACHE_ANSWER_BYTES_MAX);
            let body = body.collect().await.map_err(LookupError::Body)?.to_bytes();
            Ok(serde_json::from_slice(&body)?)
        };
        tokio::time::timeout(timeout, answer).await.map_err(|_| LookupError::Timeout(timeout))?
    }
}

/// Reads the controller's list of instances again and again; for the control thread, for ever.
pub async fn watch_lmcache(shared: Arc<Shared>) {
    let mut changes = shared.config.changes();
    loop {
        let config = shared.config.get();
        let controller = Controller::new(&config).map(Arc::new);
        shared.lmcache_control.store(controller.clone());
        let following = async {
            match &controller {
                Some(controller) => follow(&shared, &config, controller).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = following => {}
            changed = changes.changed() => if changed.is_err() {
                return;
            },
        }
    }
}

async fn follow(shared: &Shared, config: &config::Config, controller: &Controller) {
    let timeout = config.health.timeout; // nobody waits for this one
    let mut said = HashSet::new();
    let mut is_silent = false;
    let mut polls = tokio::time::interval(config.scrape_interval);
    polls.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        polls.tick().await;
        match controller.exchange::<Listed>(Method::GET, "/controller/workers", Bytes::new(), timeout).await {
            Ok(listed) => {
                if std::mem::take(&mut is_silent) {
                    tracing::info!("LMCache controller: it lists its instances again");
                }
                let instances = by_worker(&shared.fleet, &config.routing.lmcache, &listed.workers);
                for worker in shared.fleet.workers().iter() {
                    let is_of = |instance: &&Instance| instances.get(&instance.id) == Some(&worker.slot);
                    let keys =
                        listed.workers.iter().filter(is_of).map(|instance| instance.key_count).sum::<u64>();
                    shared.metrics.lmcache.set_keys(&worker.name, keys);
                }
                let strangers =
                    listed.workers.iter().filter(|instance| !instances.contains_key(&instance.id));
                let strangers: HashSet<&str> = strangers.map(|instance| instance.id.as_str()).collect();
                shared.metrics.lmcache.strangers.set(strangers.len() as i64);
                for instance in strangers {
                    if said.len() < limits::LMCACHE_STRANGERS_SAID && said.insert(instance.to_owned()) {
                        tracing::warn!(
                            instance,
                            "LMCache controller: an instance that is no worker here: name its worker in routing.lmcache.instances"
                        );
                    }
                }
                shared.lmcache_instances.store(Arc::new(instances));
            }
            Err(error) => {
                tracing::debug!(%error, "LMCache controller: no list of instances");
                if !std::mem::replace(&mut is_silent, true) {
                    tracing::warn!(%error, "LMCache controller: it does not list its instances; those that are known stay");
                }
            }
        }
    }
}

fn by_worker(fleet: &Fleet, config: &config::Lmcache, listed: &[Instance]) -> HashMap<String, WorkerSlot> {
    let workers = fleet.workers();
    let named = |name: &str| workers.iter().find(|worker| worker.name == name).map(|worker| worker.slot);
    let at = |ip: IpAddr| {
        let mut there = workers.iter().filter(|worker| worker.address().is_some_and(|own| own.ip() == ip));
        there.next().filter(|_| there.next().is_none()).map(|worker| worker.slot)
    };
    let configured = config.instances.iter().filter_map(|(id, name)| Some((id.clone(), named(name)?)));
    let mut slots: HashMap<String, WorkerSlot> = configured.collect();
    for instance in listed {
        let slot = || named(&instance.id).or_else(|| instance.ip.and_then(at));
        if !slots.contains_key(&instance.id)
            && let Some(slot) = slot()
        {
            slots.insert(instance.id.clone(), slot);
        }
    }
    slots
}
