//! Response heads, in uvicorn's words and order.

use std::fmt::Write as _;
use std::time::{SystemTime, UNIX_EPOCH};

/// Everything before a response's body.
#[derive(Clone, Debug, Default)]
pub(crate) struct ResponseHead {
    pub(crate) status: u16,
    /// Headers that Starlette writes before its own (`allow`, `endpoint-load-metrics`, `retry-after`).
    pub(crate) first: Vec<(&'static str, String)>,
    /// `None`: chunked.
    pub(crate) content_length: Option<usize>,
    pub(crate) content_type: Option<&'static str>,
    pub(crate) location: Option<String>,
    /// `vary: Origin`, which the CORS layer adds to all that passes it.
    pub(crate) vary: bool,
    pub(crate) request_id: Option<String>,
    pub(crate) close: bool,
}

impl ResponseHead {
    /// The head's bytes, the empty line included.
    pub(crate) fn encode(&self) -> String {
        let mut out = String::with_capacity(256);
        let _ = write!(out, "HTTP/1.1 {} {}\r\n", self.status, reason(self.status)); // writing to a String cannot fail
        out.push_str("date: ");
        push_date(&mut out, now_s());
        out.push_str("\r\nserver: uvicorn\r\n");
        let mut header = |name: &str, value: &str| {
            out.push_str(name);
            out.push_str(": ");
            out.push_str(value);
            out.push_str("\r\n");
        };
        for (name, value) in &self.first {
            header(name, value);
        }
        if let Some(len) = self.content_length {
            header("content-length", &len.to_string());
        }
        if let Some(content_type) = self.content_type {
            header("content-type", content_type);
        }
        if let Some(location) = &self.location {
            header("location", location);
        }
        if self.vary {
            header("vary", "Origin");
        }
        if let Some(id) = &self.request_id {
            header("x-request-id", id);
        }
        if self.close {
            header("connection", "close");
        }
        if self.content_length.is_none() {
            header("transfer-encoding", "chunked");
        }
        out.push_str("\r\n");
        out
    }
}

/// uvicorn's answer to what is not HTTP, the one response with headers in another order.
pub(crate) fn invalid_request() -> String {
    let mut out = "HTTP/1.1 400 Bad Request\r\ndate: ".to_owned();
    push_date(&mut out, now_s());
    out.push_str(
        "\r\nserver: uvicorn\r\ncontent-type: text/plain; charset=utf-8\r\ncontent-length: 30\r\nconnection: \
         close\r\n\r\nInvalid HTTP request received.",
    );
    out
}

/// Seconds since the epoch, by the wall clock.
pub(crate) fn now_s() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |age| age.as_secs())
}

fn reason(status: u16) -> &'static str {
    match status {
        200 => "OK",
        307 => "Temporary Redirect",
        400 => "Bad Request",
        401 => "Unauthorized",
        403 => "Forbidden",
        404 => "Not Found",
        405 => "Method Not Allowed",
        408 => "Request Timeout",
        413 => "Request Entity Too Large",
        422 => "Unprocessable Entity",
        429 => "Too Many Requests",
        500 => "Internal Server Error",
        501 => "Not Implemented",
        502 => "Bad Gateway",
        503 => "Service Unavailable",
        504 => "Gateway Timeout",
        _ => "",
    }
}

/// IMF-fixdate (RFC 9110, 5.6.7).
fn push_date(out: &mut String, unix_s: u64) {
    const DAYS: [&str; 7] = ["Thu", "Fri", "Sat", "Sun", "Mon", "Tue", "Wed"];
    const MONTHS: [&str; 12] =
        ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];
    let (days, second) = (unix_s / 86_400, unix_s % 86_400);
    // Days to civil date (Howard Hinnant's algorithm), for dates after 1970.
    let shifted = days + 719_468;
    let (era, day_of_era) = (shifted / 146_097, shifted % 146_097);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = (month_from_march + 2) % 12;
    let year = year_of_era + era * 400 + u64::from(month < 2);
    let _ = write!(
        out,
        "{}, {day:02} {} {year} {:02}:{:02}:{:02} GMT",
        DAYS[(days % 7) as usize],
        MONTHS[month as usize],
        second / 3600,
        second / 60 % 60,
        second % 60
    ); // writing to a String cannot fail
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_are_imf_fixdates() {
        let date = |unix_s| {
            let mut out = String::new();
            push_date(&mut out, unix_s);
            out
        };
        assert_eq!(date(0), "Thu, 01 Jan 1970 00:00:00 GMT");
        assert_eq!(date(784_111_777), "Sun, 06 Nov 1994 08:49:37 GMT");
        assert_eq!(date(1_795_228_768), "Sat, 21 Nov 2026 02:39:28 GMT");
        assert_eq!(date(1_709_210_096), "Thu, 29 Feb 2024 12:34:56 GMT");
    }
}
