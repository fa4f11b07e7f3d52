//! The tokenizers of a gateway: which model's tokens come from where, and the threads and the cache that all share.

use std::{
    collections::HashMap,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
};

use bytes::Bytes;

use super::{Encoded, LoadError, LocalTokenizer, TokenCache, Unknown, pool::Pool};
use crate::{
    config::{self, TokenSource},
    prompt::ApiKind,
};

/// Where a model's token ids come from.
#[derive(Debug, Clone)]
pub enum Source {
    /// Nowhere.
    Off,
    /// A worker's `/tokenize`.
    Worker,
    /// This process.
    Local(Arc<Local>),
}

/// A tokenizer of this process, in use.
#[derive(Debug)]
pub struct Local {
    /// As in `tokenizers.models`; none for the default.
    pub model: Option<String>,
    /// The tokenizer itself.
    pub tokenizer: LocalTokenizer,
    /// A worker made other tokens of a probe.
    distrusted: AtomicBool,
}

impl Local {
    /// Notes that a worker makes other tokens: this tokenizer is not used from now on.
    pub fn distrust(&self) {
        self.distrusted.store(true, Relaxed);
    }

    /// What it is called in logs and metrics.
    pub fn name(&self) -> &str {
        self.model.as_deref().unwrap_or("default")
    }
}

/// All of them.
#[derive(Debug)]
pub struct Tokenizers {
    models: HashMap<String, Source>,
    default: Source,
    /// Only where some model's tokens are made here.
    pool: Option<Pool>,
    cache: Arc<TokenCache>,
}

impl Tokenizers {
    /// Reads every directory that the configuration names and starts the threads.
    pub fn load(config: &config::Tokenizers) -> Result<Self, LoadError> {
        let mut pool_is_needed = false;
        let mut load = |model: Option<&str>, source: &TokenSource| -> Result<Source, LoadError> {
            Ok(match source {
                TokenSource::Off => Source::Off,
                TokenSource::Worker => Source::Worker,
                TokenSource::Local(directory) => {
                    pool_is_needed = true;
                    Source::Local(Arc::new(Local::load(model, directory)?))
                }
            })
        };
        let default = load(None, &config.default)?;
        let models = config
            .models
            .iter()
            .map(|(model, source)| Ok((model.clone(), load(Some(model), source)?)))
            .collect::<Result<_, LoadError>>()?;
        let pool =
            pool_is_needed.then(|| Pool::start(config.threads, config.queue, config.deadline)).transpose()?;
        Ok(Self { models, default, pool, cache: Arc::new(TokenCache::new(config.cache_bytes)) })
    }

    /// Where the tokens of a request for `model` come from.
    pub fn source(&self, model: Option<&str>) -> &Source {
        model.and_then(|model| self.models.get(model)).unwrap_or(&self.default)
    }

    /// Every tokenizer of this process.
    pub fn locals(&self) -> impl Iterator<Item = &Arc<Local>> {
        self.models.values().chain([&self.default]).filter_map(|source| match source {
            Source::Local(local) => Some(local),
            Source::Off | Source::Worker => None,
        })
    }

    /// The token ids of a request's prompt, made on the tokenizer threads.
    pub async fn tokens(&self, local: &Arc<Local>, kind: ApiKind, body: Bytes) -> Result<Encoded, Unknown> {
        let Some(pool) = self.pool.as_ref().filter(|_| !local.distrusted.load(Relaxed)) else {
            return Err(Unknown::Unsupported("a worker makes other tokens than this tokenizer"));
        };
        let (local, cache) = (local.clone(), self.cache.clone());
        pool.run(move || local.tokenizer.tokens(kind, &body, &cache)).await
    }

    /// Token ids by hash.
    pub fn cache(&self) -> &TokenCache {
        &self.cache
    }
}

impl Local {
    fn load(model: Option<&str>, directory: &Path) -> Result<Self, LoadError> {
        let tokenizer = LocalTokenizer::load(directory)?;
        Ok(Self { model: model.map(str::to_owned), tokenizer, distrusted: AtomicBool::new(false) })
    }
}
