//! `discovery:`: workers that come and go by themselves, and who tells of them.

use std::{collections::HashSet, net::SocketAddr, path::PathBuf, time::Duration};

use http::HeaderValue;
use serde::Deserialize;

use super::{
    ConfigError, WorkerConfig, WorkerKvEvents, WorkerRole, WorkerUrl,
    file::set,
    kv_events, schema,
    secret::{Hidden, Place},
    tls,
    worker_entry::{check_models, is_worker_name},
};
use crate::{limits, tls::WorkerTls};

/// Who tells of workers, and what is done when they say something else.
#[derive(Debug, Clone, PartialEq)]
pub struct Discovery {
    /// In the order of the configuration: of two that name the same address, the first is believed.
    pub sources: Vec<Source>,
    /// A worker that its source no longer names is still used for this long.
    pub gone_after: Duration,
    /// How long what is in flight on it may take then.
    pub drain_timeout: Duration,
}

impl Default for Discovery {
    fn default() -> Self {
        Self {
            sources: Vec::new(),
            gone_after: limits::DISCOVERY_GONE_AFTER,
            drain_timeout: limits::DISCOVERY_DRAIN_TIMEOUT,
        }
    }
}

/// One who tells of workers.
#[derive(Debug, Clone, PartialEq)]
pub enum Source {
    /// A file with a list of workers.
    File(PathBuf),
    /// A name in the DNS.
    Dns(DnsSource),
    /// Objects of a Kubernetes cluster.
    Kubernetes(KubernetesSource),
}

/// A name in the DNS.
#[derive(Debug, Clone, PartialEq)]
pub struct DnsSource {
    /// Of the records.
    pub name: String,
    /// Workers listen here, and the name has A or AAAA records; none: it has SRV records.
    pub port: Option<u16>,
    /// The longest pause between two questions; records with a shorter time to live are asked for sooner.
    pub interval: Duration,
    /// Who is asked; empty: as `/etc/resolv.conf` says.
    pub servers: Vec<SocketAddr>,
    /// What is said of every worker.
    pub worker: WorkerTemplate,
}

/// Objects of a Kubernetes cluster.
#[derive(Debug, Clone, PartialEq)]
pub struct KubernetesSource {
    /// Which objects.
    pub objects: KubernetesObjects,
    /// Of which namespace; none: the gateway's own, or that of the kubeconfig's context; `*`: all.
    pub namespace: Option<String>,
    /// Where workers listen, by number or by name; none: as the objects say.
    pub port: Option<KubernetesPort>,
    /// How the API server is reached; none: as from inside a pod, or by `$KUBECONFIG` or `~/.kube/config`.
    pub kubeconfig: Option<PathBuf>,
    /// The context in it; none: its current one.
    pub context: Option<String>,
    /// What is said of every worker; a pod's annotations say it better.
    pub worker: WorkerTemplate,
}

/// Which objects tell of workers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum KubernetesObjects {
    /// The `EndpointSlice`s of this Service.
    Service(String),
    /// Pods that this label selector matches.
    Pods(String),
    /// The pods that this `InferencePool` selects, at its target ports.
    InferencePool(String),
}

/// A port by its number or its name.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, serde::Serialize, schemars::JsonSchema)]
#[serde(untagged, expecting = "a port's number or its name")]
pub enum KubernetesPort {
    /// TCP.
    Number(u16),
    /// As a container or an endpoint slice names it.
    Name(String),
}

/// What is said of every worker of a source that knows no more than addresses.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct WorkerTemplate {
    /// What of a request it does.
    pub role: WorkerRole,
    /// Over TLS.
    pub is_tls: bool,
    /// Where its KV events are; `*` in an endpoint stands for the worker's address.
    pub kv_events: WorkerKvEvents,
    /// Its own key, as it is sent.
    pub authorization: Option<HeaderValue>,
    /// How it is known over TLS.
    pub tls: Option<WorkerTls>,
    /// The models that it serves; empty: it is asked.
    pub models: Vec<String>,
}

impl WorkerTemplate {
    /// The worker at an address. It is called `HOST:PORT` where `name` cannot go into a header.
    pub fn at(
        &self,
        host: &str,
        port: u16,
        name: Option<String>,
        incarnation: Option<String>,
    ) -> WorkerConfig {
        let Self { role, is_tls, kv_events, authorization, tls, models } = self.clone();
        let url = WorkerUrl { host: host.to_owned(), port, is_tls };
        let name = name.filter(|name| is_worker_name(name)).unwrap_or_else(|| url.authority());
        WorkerConfig { url, name, role, kv_events, authorization, tls, models, incarnation }
    }
}

impl Source {
    /// What it is called in metrics and logs.
    pub fn label(&self) -> String {
        match self {
            Self::File(path) => format!("file:{}", path.display()),
            Self::Dns(DnsSource { name, port: Some(port), .. }) => format!("dns:{name}:{port}"),
            Self::Dns(DnsSource { name, .. }) => format!("dns:{name}"),
            Self::Kubernetes(KubernetesSource { objects, namespace, .. }) => {
                let (kind, name) = objects.kind_and_name();
                match namespace {
                    Some(namespace) => format!("kubernetes:{kind}/{namespace}/{name}"),
                    None => format!("kubernetes:{kind}/{name}"),
                }
            }
        }
    }
}

impl KubernetesObjects {
    /// The key of the configuration, and its value.
    pub fn kind_and_name(&self) -> (&'static str, &str) {
        match self {
            Self::Service(name) => ("service", name),
            Self::Pods(selector) => ("pods", selector),
            Self::InferencePool(name) => ("inference_pool", name),
        }
    }
}

impl Discovery {
    pub(super) fn validate(&self) -> Result<(), ConfigError> {
        if self.sources.len() > limits::DISCOVERY_SOURCES_MAX {
            let (count, max) = (self.sources.len(), limits::DISCOVERY_SOURCES_MAX);
            return wrong("discovery", format!("{count} sources, at most {max} are possible"));
        }
        let mut labels = HashSet::new();
        if let Some(twice) =
            self.sources.iter().map(Source::label).find(|label| !labels.insert(label.clone()))
        {
            return wrong("discovery", format!("{twice} is listed twice"));
        }
        Ok(())
    }
}

/// The section as written.
#[derive(Debug, Default, Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub(super) struct DiscoveryFile {
    /// A worker that its source no longer names is still used for this long: it may be back.
    #[serde(with = "humantime_serde")]
    #[schemars(with = "Option<schema::DurationText>")]
    gone_after: Option<Duration>,
    /// How long what is in flight on it may take then, before it is cut off.
    #[serde(with = "humantime_serde")]
    #[schemars(with = "Option<schema::DurationText>")]
    drain_timeout: Option<Duration>,
    /// Files with a list of workers each, as under `workers`, in YAML or JSON.
    files: Option<Vec<PathBuf>>,
    /// Names in the DNS.
    dns: Option<Vec<DnsWritten>>,
    /// Services, pods or InferencePools of Kubernetes clusters: docs/kubernetes.md.
    kubernetes: Option<Vec<KubernetesWritten>>,
}

#[derive(Debug, Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields)]
struct DnsWritten {
    /// Of SRV records, e.g. `_http._tcp.vllm.example.com`; with `port`, of A or AAAA records.
    name: String,
    /// Where workers listen; SRV records say it themselves.
    port: Option<u16>,
    /// The longest pause between two questions; records with a shorter time to live are asked for sooner.
    #[serde(default, with = "humantime_serde")]
    #[schemars(with = "Option<schema::DurationText>")]
    interval: Option<Duration>,
    /// Who is asked, `ADDRESS` or `ADDRESS:PORT`. Left out: as `/etc/resolv.conf` says.
    servers: Option<Vec<String>>,
    /// What is said of every worker.
    #[serde(default)]
    worker: TemplateWritten,
}

#[derive(Debug, Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields)]
struct KubernetesWritten {
    /// The `EndpointSlice`s of this Service.
    service: Option<String>,
    /// Pods by a label selector, e.g. `app=vllm,tier!=canary`.
    pods: Option<String>,
    /// The pods of this `InferencePool` (Gateway API inference extension, v1), at its target ports.
    inference_pool: Option<String>,
    /// Left out: the gateway's own, or that of the kubeconfig's context. `*`: all (pods only).
    namespace: Option<String>,
    /// Where workers listen, by number or name. Left out: the only port, or the one that is called `http`.
    port: Option<KubernetesPort>,
    /// How the API server is reached. Left out: as from inside a pod, or by `$KUBECONFIG` or `~/.kube/config`.
    kubeconfig: Option<PathBuf>,
    /// The context in it. Left out: its current one.
    context: Option<String>,
    /// What is said of every worker; a pod's annotations say it better.
    #[serde(default)]
    worker: TemplateWritten,
}

/// What is said of every worker.
#[derive(Debug, Default, Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields, default)]
struct TemplateWritten {
    /// `both`, `prefill` or `decode`: docs/disaggregation.md.
    role: Option<WorkerRole>,
    /// `http` or `https`.
    scheme: Option<Scheme>,
    /// As in an entry of `workers`; `*` stands for the worker's address.
    kv_events: Option<kv_events::Written>,
    /// vLLM's `--api-key`: the key, or `${VARIABLE}`.
    api_key: Option<Hidden>,
    /// A file with that key.
    api_key_file: Option<PathBuf>,
    /// How it is known over TLS; with `https` the `server_name` is needed.
    tls: Option<tls::WorkerWritten>,
    /// The models that it serves. Left out: it is asked.
    models: Option<Vec<String>>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "lowercase")]
enum Scheme {
    Http,
    Https,
}

impl DiscoveryFile {
    /// Lays the section over `discovery`.
    pub(super) fn apply(self, discovery: &mut Discovery) -> Result<(), ConfigError> {
        set(&mut discovery.gone_after, self.gone_after);
        set(&mut discovery.drain_timeout, self.drain_timeout);
        let files = self.files.into_iter().flatten().map(|path| Ok(Source::File(path)));
        let dns = self.dns.into_iter().flatten().map(|dns| dns.resolve().map(Source::Dns));
        let kubernetes = self.kubernetes.into_iter().flatten();
        let kubernetes = kubernetes.map(|objects| objects.resolve().map(Source::Kubernetes));
        let sources = files.chain(dns).chain(kubernetes).collect::<Result<Vec<_>, _>>()?;
        if !sources.is_empty() {
            discovery.sources = sources;
        }
        Ok(())
    }
}

impl DnsWritten {
    fn resolve(self) -> Result<DnsSource, ConfigError> {
        let Self { name, port, interval, servers, worker } = self;
        if name.is_empty() || name.contains([':', '/', ' ']) {
            return wrong("discovery.dns.name", format!("{name:?} is no name such as vllm.example.com"));
        }
        if port.is_none() && !name.starts_with('_') {
            let why = format!(
                "{name}: give the `port` that its workers listen on, or a name of SRV records such as _http._tcp.{name}"
            );
            return wrong("discovery.dns.port", why);
        }
        if port == Some(0) {
            return wrong("discovery.dns.port", format!("{name}: 0 is no port: 1 to 65535"));
        }
        let interval = interval.unwrap_or(limits::DISCOVERY_DNS_INTERVAL);
        if interval < limits::DISCOVERY_DNS_INTERVAL_MIN {
            let min = limits::DISCOVERY_DNS_INTERVAL_MIN;
            return wrong(
                "discovery.dns.interval",
                format!("{name}: {interval:?} is too short: at least {min:?}"),
            );
        }
        let server = |text: String| {
            let address = text.parse().or_else(|_| text.parse().map(|ip| SocketAddr::new(ip, DNS_PORT)));
            address.map_err(|_| ConfigError::Value {
                key: "discovery.dns.servers",
                message: format!("{text:?} is no address such as 10.0.0.10 or 10.0.0.10:53"),
            })
        };
        let servers = servers.into_iter().flatten().map(server).collect::<Result<_, _>>()?;
        Ok(DnsSource { name, port, interval, servers, worker: worker.resolve("discovery.dns.worker")? })
    }
}

const DNS_PORT: u16 = 53;

impl KubernetesWritten {
    fn resolve(self) -> Result<KubernetesSource, ConfigError> {
        let Self { service, pods, inference_pool, namespace, port, kubeconfig, context, worker } = self;
        let is_pool = inference_pool.is_some();
        let objects = match (service, pods, inference_pool) {
            (Some(name), None, None) => KubernetesObjects::Service(name),
            (None, Some(selector), None) => KubernetesObjects::Pods(selector),
            (None, None, Some(name)) => KubernetesObjects::InferencePool(name),
            _ => {
                let why = "give exactly one of `service`, `pods` (a label selector) and `inference_pool`";
                return wrong("discovery.kubernetes", why.to_owned());
            }
        };
        let (kind, name) = objects.kind_and_name();
        if name.trim().is_empty() {
            return wrong("discovery.kubernetes", format!("{kind} is empty"));
        }
        if is_pool && port.is_some() {
            let why = format!("{name}: an InferencePool says its ports itself: leave it out");
            return wrong("discovery.kubernetes.port", why);
        }
        if namespace.as_deref() == Some("*") && !matches!(objects, KubernetesObjects::Pods(_)) {
            let why = format!("{name}: `*` is for `pods`; a {kind} is in one namespace");
            return wrong("discovery.kubernetes.namespace", why);
        }
        if port == Some(KubernetesPort::Number(0)) {
            return wrong("discovery.kubernetes.port", format!("{name}: 0 is no port: 1 to 65535"));
        }
        let worker = worker.resolve("discovery.kubernetes.worker")?;
        Ok(KubernetesSource { objects, namespace, port, kubeconfig, context, worker })
    }
}

impl TemplateWritten {
    fn resolve(self, key: &'static str) -> Result<WorkerTemplate, ConfigError> {
        let api_key = Place { key, value: self.api_key, file: self.api_key_file }.read()?;
        let is_tls = self.scheme == Some(Scheme::Https);
        let kv_events: WorkerKvEvents = self.kv_events.map(Into::into).unwrap_or_default();
        kv_events.validate()?;
        let models = self.models.unwrap_or_default();
        check_models(key, &models)?;
        Ok(WorkerTemplate {
            role: self.role.unwrap_or_default(),
            is_tls,
            kv_events,
            authorization: api_key.map(|api_key| api_key.bearer()),
            tls: tls::WorkerWritten::resolve_for_all(self.tls, is_tls, key)?,
            models,
        })
    }
}

fn wrong<T>(key: &'static str, message: String) -> Result<T, ConfigError> {
    Err(ConfigError::Value { key, message })
}
