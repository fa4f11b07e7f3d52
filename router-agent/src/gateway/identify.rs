//! Who asks: the first step of a request's way, before a byte of its body is read.

use std::time::Duration;

use http::{HeaderMap, HeaderName, HeaderValue, request::Parts};

use super::{GatewayError, Shared, lease::within_limits, route};
use crate::tenants::{Admission, Standings};

/// Finds the tenant and counts its request in. A refusal has cost a look at the head and nothing else.
pub(super) async fn identify(shared: &Shared, parts: &Parts) -> Result<Admission, GatewayError> {
    let tenant = shared.tenants.identify(&parts.headers)?;
    if !tenant.all_paths && !route::is_api(parts.uri.path()) {
        return Err(GatewayError::PathNotAllowed);
    }
    Ok(within_limits(shared, |source, now| tenant.admit(source, now)).await?)
}

const LIMIT_REQUESTS: HeaderName = HeaderName::from_static("x-ratelimit-limit-requests");
const REMAINING_REQUESTS: HeaderName = HeaderName::from_static("x-ratelimit-remaining-requests");
const RESET_REQUESTS: HeaderName = HeaderName::from_static("x-ratelimit-reset-requests");
const LIMIT_TOKENS: HeaderName = HeaderName::from_static("x-ratelimit-limit-tokens");
const REMAINING_TOKENS: HeaderName = HeaderName::from_static("x-ratelimit-remaining-tokens");
const RESET_TOKENS: HeaderName = HeaderName::from_static("x-ratelimit-reset-tokens");

/// How the tenant's limits stand, by the names that OpenAI's API gives them.
pub(super) fn set_standings(headers: &mut HeaderMap, standings: Standings) {
    let names = [
        (standings.requests, [LIMIT_REQUESTS, REMAINING_REQUESTS, RESET_REQUESTS]),
        (standings.tokens, [LIMIT_TOKENS, REMAINING_TOKENS, RESET_TOKENS]),
    ];
    for (standing, [limit, remaining, reset]) in names {
        let Some(standing) = standing else { continue };
        headers.insert(limit, standing.limit.into());
        headers.insert(remaining, standing.remaining.into());
        headers.insert(reset, until(standing.reset));
    }
}

/// As OpenAI writes it: `6m0s`, `1.2s`, `20ms`.
fn until(time: Duration) -> HeaderValue {
    let (minutes, rest) = (time.as_secs() / 60, time.as_secs() % 60);
    let text = match time {
        time if minutes > 0 => format!("{}m{rest}s", time.as_secs() / 60),
        time if rest > 0 => format!("{}s", (time.as_secs_f64() * 1e3).round() / 1e3),
        time => format!("{}ms", time.as_micros().div_ceil(1000)),
    };
    HeaderValue::from_str(&text).expect("digits and letters")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_written_as_openai_writes_them() {
        let until = |ms| until(Duration::from_millis(ms));
        assert_eq!(until(0), "0ms");
        assert_eq!(until(20), "20ms");
        assert_eq!(until(1200), "1.2s");
        assert_eq!(until(59_999), "59.999s");
        assert_eq!(until(360_400), "6m0s");
    }
}
