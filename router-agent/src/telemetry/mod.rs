//! What the gateway says of itself: metrics and logs.

mod latency;
mod logging;
mod metrics;

pub use logging::init as init_logging;
pub use metrics::{Metrics, RelayMetrics, WorkerMetrics};
