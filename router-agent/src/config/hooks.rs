//! `hooks:`: services that see a request before it is routed, and may refuse or change it.

use std::{collections::HashSet, sync::Arc, time::Duration};

use bytesize::ByteSize;
use http::{HeaderName, Uri, header};
use serde::Deserialize;

use super::{ConfigError, keys::is_key_name, pattern::ModelPattern, schema};
use crate::{limits, prompt::ApiKind};

/// One service.
#[derive(Debug, Clone, PartialEq)]
pub struct HookConfig {
    /// What it is called in headers, metrics and logs.
    pub name: Arc<str>,
    /// Where requests are posted: `http://HOST:PORT/PATH`.
    pub url: Uri,
    /// How long a request waits for its answer.
    pub timeout: Duration,
    /// Requests that it cannot be asked about, or gives no answer for in time, go on.
    pub passes_on_error: bool,
    /// The APIs whose requests it sees.
    pub routes: Vec<ApiKind>,
    /// The models whose requests it sees; empty: all, and requests that name none.
    pub models: Vec<ModelPattern>,
    /// It is sent bodies.
    pub sends_body: bool,
    /// Bytes of a body that it is sent; what is longer is as an error.
    pub body_bytes_max: usize,
    /// Header fields that it is sent beside the usual ones.
    pub headers: Vec<HeaderName>,
    /// Requests that it has at the same time; one more is as an error.
    pub concurrency: usize,
}

/// An entry as written.
#[derive(Debug, Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Written {
    /// What it is called in headers, metrics and logs.
    name: String,
    /// Where requests are posted, over plain HTTP: `http://127.0.0.1:7000/check`.
    url: String,
    /// How long a request waits for its answer.
    #[serde(default, with = "humantime_serde")]
    #[schemars(with = "Option<schema::DurationText>")]
    timeout: Option<Duration>,
    /// Without an answer in time the request goes on (`pass`) or is refused (`block`).
    #[serde(default)]
    on_error: OnError,
    /// The APIs whose requests it sees. Left out: all four.
    routes: Option<Vec<Route>>,
    /// The models whose requests it sees: a name, or the beginning of one and `*`. Left out: all.
    models: Option<Vec<String>>,
    /// Whether it is sent bodies: `full` or `none`.
    #[serde(default)]
    body: Body,
    /// Of a body that it is sent; a longer one is as no answer.
    #[schemars(with = "Option<schema::BytesText>")]
    max_body: Option<ByteSize>,
    /// Header fields that it is sent beside the usual ones.
    headers: Option<Vec<String>>,
    /// Requests that it has at the same time; one more is as no answer.
    concurrency: Option<usize>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "lowercase")]
enum OnError {
    #[default]
    Pass,
    Block,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "lowercase")]
enum Body {
    #[default]
    Full,
    None,
}

#[derive(Debug, Clone, Copy, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "lowercase")]
enum Route {
    Chat,
    Completions,
    Responses,
    Messages,
}

impl Route {
    const ALL: [Self; 4] = [Self::Chat, Self::Completions, Self::Responses, Self::Messages];

    fn kind(self) -> ApiKind {
        match self {
            Self::Chat => ApiKind::Chat,
            Self::Completions => ApiKind::Completions,
            Self::Responses => ApiKind::Responses,
            Self::Messages => ApiKind::Messages,
        }
    }
}

/// What has a secret in it is for no hook.
const SECRETS: [HeaderName; 4] = [
    header::AUTHORIZATION,
    header::COOKIE,
    header::PROXY_AUTHORIZATION,
    HeaderName::from_static("x-api-key"),
];

/// The section, checked.
pub(super) fn resolve(written: Vec<Written>) -> Result<Vec<HookConfig>, ConfigError> {
    if written.len() > limits::HOOKS_MAX {
        let count = written.len();
        return wrong("hooks", format!("{count} entries, at most {} are possible", limits::HOOKS_MAX));
    }
    let mut names = HashSet::new();
    if let Some(twice) = written.iter().find(|hook| !names.insert(&hook.name)) {
        return wrong("hooks.name", format!("{} is listed twice", twice.name));
    }
    written.into_iter().map(Written::resolve).collect()
}

impl Written {
    fn resolve(self) -> Result<HookConfig, ConfigError> {
        let name = self.name;
        // As a tenant's name it goes into labels, and here into a header's list.
        if !is_key_name(&name) || name.contains([',', ';']) {
            let why = format!(
                "{name:?}: 1 to 64 printable ASCII characters without spaces, quotes, backslashes, `,` and `;`"
            );
            return wrong("hooks.name", why);
        }
        let Some(url) = parse_url(&self.url) else {
            let why = format!(
                "{name}: {:?} is none such as http://127.0.0.1:7000/check (plain HTTP only)",
                self.url
            );
            return wrong("hooks.url", why);
        };
        let timeout = self.timeout.unwrap_or(limits::HOOK_TIMEOUT);
        if timeout.is_zero() {
            return wrong("hooks.timeout", format!("{name}: 0s: must be longer than zero"));
        }
        let concurrency = self.concurrency.unwrap_or(limits::HOOK_CONCURRENCY);
        if !(1..=limits::HOOK_CONCURRENCY_MAX).contains(&concurrency) {
            let why = format!("{name}: {concurrency} is out of range: 1 to {}", limits::HOOK_CONCURRENCY_MAX);
            return wrong("hooks.concurrency", why);
        }
        let routes =
            self.routes.unwrap_or(Route::ALL.into()).into_iter().map(Route::kind).collect::<Vec<_>>();
        if routes.is_empty() {
            return wrong("hooks.routes", format!("{name}: an empty list; leave it out for all"));
        }
        let model = |text: String| match ModelPattern::parse(&text) {
            Some(pattern) => Ok(pattern),
            None => wrong(
                "hooks.models",
                format!("{name}: {text:?} is no model's name, or its beginning and `*`"),
            ),
        };
        let models = self.models.unwrap_or_default().into_iter().map(model).collect::<Result<_, _>>()?;
        let header = |text: String| match text.parse::<HeaderName>() {
            Ok(field) if SECRETS.contains(&field) => {
                wrong("hooks.headers", format!("{name}: {field} may be a secret, and no hook is sent one"))
            }
            Ok(field) => Ok(field),
            Err(_) => wrong("hooks.headers", format!("{name}: {text:?} is no name of a header")),
        };
        let headers = self.headers.unwrap_or_default().into_iter().map(header).collect::<Result<_, _>>()?;
        Ok(HookConfig {
            url,
            timeout,
            passes_on_error: self.on_error == OnError::Pass,
            routes,
            models,
            sends_body: self.body == Body::Full,
            body_bytes_max: self.max_body.map_or(limits::HOOK_BODY_BYTES_MAX, |size| size.as_u64() as usize),
            headers,
            concurrency,
            name: name.into(),
        })
    }
}

fn parse_url(text: &str) -> Option<Uri> {
    let url: Uri = text.parse().ok()?;
    let authority = url.authority()?.as_str();
    (url.scheme_str() == Some("http") && !authority.contains('@')).then_some(url)
}

fn wrong<T>(key: &'static str, message: String) -> Result<T, ConfigError> {
    Err(ConfigError::Value { key, message })
}
