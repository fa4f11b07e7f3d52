//! What a client may say of a request in headers of this gateway's own: how long it waits, and how urgent it is.

use std::time::{Duration, Instant};

use http::{HeaderMap, HeaderName};

use super::GatewayError;

/// How long the client waits for the answer's first byte: `30s`, `1500ms`, or seconds as a number.
const TIMEOUT: HeaderName = HeaderName::from_static("x-warmpath-timeout");
/// The lower, the sooner, as vLLM's `priority`; in front of the one in the body.
const PRIORITY: HeaderName = HeaderName::from_static("x-warmpath-priority");
/// Longer is as good as no wish.
const TIMEOUT_MAX: Duration = Duration::from_hours(24);

/// See the module.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Wishes {
    /// When the answer must have begun.
    pub(super) deadline: Option<Instant>,
    pub(super) priority: Option<i64>,
}

impl Wishes {
    /// Of a request whose head came at `received`.
    pub(super) fn read(headers: &HeaderMap, received: Instant) -> Result<Self, GatewayError> {
        let text =
            |name: &HeaderName| headers.get(name).map(|value| value.to_str().unwrap_or_default().trim());
        let deadline = text(&TIMEOUT)
            .map(|text| timeout(text).map(|timeout| received + timeout))
            .map(|deadline| {
                deadline.ok_or(GatewayError::Header("x-warmpath-timeout: a time such as 30s, 1500ms or 2.5"))
            })
            .transpose()?;
        let priority = text(&PRIORITY)
            .map(|text| text.parse().ok())
            .map(|priority| {
                priority.ok_or(GatewayError::Header("x-warmpath-priority: an integer, the lower the sooner"))
            })
            .transpose()?;
        Ok(Self { deadline, priority })
    }
}

fn timeout(text: &str) -> Option<Duration> {
    let seconds = text.parse().ok().and_then(|seconds| Duration::try_from_secs_f64(seconds).ok());
    let timeout = seconds.or_else(|| humantime::parse_duration(text).ok())?;
    (!timeout.is_zero()).then_some(timeout.min(TIMEOUT_MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(name: &'static str, value: &'static str) -> Result<Wishes, String> {
        let headers = HeaderMap::from_iter([(HeaderName::from_static(name), value.parse().unwrap())]);
        Wishes::read(&headers, Instant::now()).map_err(|error| error.to_string())
    }

    #[test]
    fn times_are_seconds_or_have_a_unit() {
        for (text, ms) in
            [("30", 30_000), ("2.5", 2_500), ("1500ms", 1_500), ("1m", 60_000), ("9e9", 86_400_000)]
        {
            assert_eq!(timeout(text), Some(Duration::from_millis(ms)), "{text}");
        }
        for text in ["", "0", "-1", "NaN", "inf", "soon", "5 bananas", "0s"] {
            assert_eq!(timeout(text), None, "{text}");
        }
    }

    #[test]
    fn wishes_are_read_and_nonsense_is_named() {
        assert_eq!(read("x-other", "1"), Ok(Wishes::default()));
        assert_eq!(read("x-warmpath-priority", "-3").map(|wishes| wishes.priority), Ok(Some(-3)));
        assert!(read("x-warmpath-timeout", "2s").is_ok_and(|wishes| wishes.deadline.is_some()));
        assert!(read("x-warmpath-priority", "high").is_err_and(|error| error.contains("an integer")));
        assert!(read("x-warmpath-timeout", "later").is_err_and(|error| error.contains("1500ms")));
    }
}
