//! Logs: `tracing`, for people or as JSON lines, on standard error. What is logged can be changed while the process runs.

use std::{io::IsTerminal, sync::Arc};

use tracing_subscriber::{EnvFilter, fmt, reload};

use crate::{config::LogFormat, limits};

/// What is logged, to be looked up and changed. Cheap to clone.
#[derive(Clone)]
pub struct LogFilter {
    replace: Arc<dyn Fn(EnvFilter) -> Result<(), reload::Error> + Send + Sync>,
    show: Arc<dyn Fn() -> Option<String> + Send + Sync>,
}

/// Why the filter stays as it was.
#[derive(Debug, thiserror::Error)]
pub enum LogFilterError {
    /// It is no filter.
    #[error("{0}")]
    Syntax(#[from] tracing_subscriber::filter::ParseError),
    /// It says nothing.
    #[error("an empty filter")]
    Empty,
    /// It is longer than anybody needs.
    #[error("a filter of {0} bytes, at most {max} are possible", max = limits::LOG_FILTER_BYTES_MAX)]
    TooLong(usize),
    /// Somebody else logs.
    #[error("the log is not this program's own: {0}")]
    Gone(#[from] reload::Error),
}

impl LogFilter {
    /// The directives in force.
    pub fn get(&self) -> String {
        (self.show)().unwrap_or_else(|| "off".to_owned())
    }

    /// Logs by `directives` from now on (the `tracing` filter syntax, e.g. `debug,hyper=warn`).
    pub fn set(&self, directives: &str) -> Result<(), LogFilterError> {
        if directives.trim().is_empty() {
            return Err(LogFilterError::Empty);
        }
        if directives.len() > limits::LOG_FILTER_BYTES_MAX {
            return Err(LogFilterError::TooLong(directives.len()));
        }
        Ok((self.replace)(EnvFilter::try_new(directives)?)?)
    }
}

/// Starts logging at `info`, or as `WARMPATH_LOG` says (the `tracing` filter syntax, e.g. `debug,hyper=warn`).
/// A second call changes nothing.
pub fn init(format: LogFormat) -> LogFilter {
    let filter = EnvFilter::try_from_env("WARMPATH_LOG").unwrap_or_else(|_| EnvFilter::new("info"));
    let builder = fmt().with_env_filter(filter).with_writer(std::io::stderr);
    let (handle, done) = match format {
        LogFormat::Text => {
            let builder = builder.with_target(false).with_ansi(std::io::stderr().is_terminal());
            let builder = builder.with_filter_reloading();
            (over(builder.reload_handle()), builder.try_init())
        }
        LogFormat::Json => {
            let builder = builder.json().flatten_event(true).with_filter_reloading();
            (over(builder.reload_handle()), builder.try_init())
        }
    };
    // Already set: a test, or an embedder, has its own.
    drop(done);
    handle
}

fn over<S: 'static>(handle: reload::Handle<EnvFilter, S>) -> LogFilter {
    let shown = handle.clone();
    LogFilter {
        replace: Arc::new(move |filter| handle.reload(filter)),
        show: Arc::new(move || shown.with_current(ToString::to_string).ok()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_filter_is_replaced_and_what_is_none_is_refused() {
        let (layer, handle) = reload::Layer::<_, tracing_subscriber::Registry>::new(EnvFilter::new("info"));
        let filter = over(handle);
        assert_eq!(filter.get(), "info");
        filter.set("debug,hyper=warn").expect("a filter");
        assert!(filter.get().contains("hyper=warn") && filter.get().contains("debug"), "{}", filter.get());
        let long = "x".repeat(limits::LOG_FILTER_BYTES_MAX + 1);
        for wrong in ["", "  ", "a=b=c=d", "hyper=loud", &long] {
            assert!(filter.set(wrong).is_err(), "{wrong:?}");
        }
        assert!(filter.get().contains("hyper=warn"), "it stays");
        drop(layer);
        assert!(matches!(filter.set("info"), Err(LogFilterError::Gone(_))));
    }
}
