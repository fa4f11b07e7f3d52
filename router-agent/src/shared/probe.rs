//! One look at the server, for `check` and `doctor`.

use std::{
    fmt,
    time::{Duration, Instant},
};

use redis::{FromRedisValue, Value};

use super::link::{Dialer, Fault};
use crate::config;

/// What the server says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Probed {
    /// As it calls itself, with its version; none if this user may not ask.
    pub version: Option<String>,
    /// How long an answer took.
    pub round_trip: Duration,
    /// `maxmemory-policy` where that is `noeviction` and there is a `maxmemory`: it may run full.
    pub may_run_full: bool,
}

impl fmt::Display for Probed {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let version = self.version.as_deref().unwrap_or("a server that does not tell its version");
        write!(out, "{version}, answers in {:.2} ms", self.round_trip.as_secs_f64() * 1e3)
    }
}

/// Connects, writes and reads.
pub async fn probe(settings: &config::SharedState) -> Result<Probed, Fault> {
    let link = Dialer::new(settings)?.dial()?;
    let mut set = redis::cmd("SET");
    set.arg(format!("{}probe", settings.key_prefix)).arg("1").arg("PX").arg(1_000);
    link.run(vec![set.clone()]).await?; // connects
    let asked = Instant::now();
    link.run(vec![set]).await?;
    let round_trip = asked.elapsed();
    let mut info = redis::cmd("INFO");
    info.arg("server").arg("memory");
    let text = link.run(vec![info]).await.ok().and_then(|mut answers| said(answers.pop()?));
    let text = text.unwrap_or_default();
    let field =
        |name: &str| text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':')).map(str::trim);
    let version = field("valkey_version").map(|version| format!("Valkey {version}"));
    let version = version.or_else(|| field("redis_version").map(|version| format!("Redis {version}")));
    let is_bounded = field("maxmemory").is_some_and(|bytes| bytes != "0");
    let may_run_full = is_bounded && field("maxmemory_policy") == Some("noeviction");
    Ok(Probed { version, round_trip, may_run_full })
}

/// A text; of a cluster the first node's.
fn said(answer: Value) -> Option<String> {
    match answer {
        Value::Map(nodes) => said(nodes.into_iter().next()?.1),
        text => String::from_redis_value(text).ok(),
    }
}
