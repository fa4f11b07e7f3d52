//! What the gateway says of itself: metrics and logs.

mod by_worker;
mod exemplars;
mod faults;
mod guard;
mod hooks;
mod kv_events;
mod latency;
mod lmcache;
mod logging;
mod metrics;
mod models;
pub mod openmetrics;
mod queue;
mod records;
mod tenants;
mod tls;
mod tokenize;
mod traces;

pub use exemplars::Exemplars;
pub use faults::{FaultMetrics, WorkerFaultMetrics};
pub use guard::{GuardMetrics, action_label};
pub use hooks::{HookMetrics, HookOutcome, HookSeries};
pub use kv_events::{KvEventMetrics, KvWorkerMetrics};
pub use lmcache::{LmcacheMetrics, LookupOutcome};
pub use logging::{LogFilter, LogFilterError, init as init_logging};
pub use metrics::{Metrics, RelayMetrics, RelayPath, WorkerMetrics};
pub use models::{ModelFamilies, ModelMetrics};
pub use queue::QueueMetrics;
pub use records::{DecisionLogMetrics, RecordMetrics};
pub use tenants::{TenantFamilies, TenantMetrics};
pub use tls::TlsMetrics;
pub use tokenize::{TokenizeMetrics, TokensFrom};
pub use traces::TraceMetrics;
