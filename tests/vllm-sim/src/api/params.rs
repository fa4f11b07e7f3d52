//! What generation requests have in common: the model, sampling limits, output options.

use super::error::ApiError;
use super::fields::Fields;
use crate::config::{Lora, SimConfig};
use crate::http::head::Head;
use crate::kv_transfer::Transfer;

/// The API a request came through; they differ in names and defaults.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Api {
    Completions,
    Chat,
    Responses,
    Messages,
}

/// Parameters of one generation request.
#[allow(clippy::struct_excessive_bools, reason = "each is a flag of the API")]
#[derive(Clone, Debug)]
pub(crate) struct Params {
    pub(crate) api: Api,
    /// The name that responses carry.
    pub(crate) model: String,
    pub(crate) lora: Option<Lora>,
    pub(crate) stream: bool,
    pub(crate) include_usage: bool,
    pub(crate) continuous_usage: bool,
    pub(crate) n: usize,
    /// `None`: up to the end of the context.
    pub(crate) max_tokens: Option<usize>,
    pub(crate) min_tokens: usize,
    pub(crate) ignore_eos: bool,
    pub(crate) seed: u64,
    pub(crate) cache_salt: Option<String>,
    pub(crate) session_id: Option<String>,
    pub(crate) report_hits: bool,
    pub(crate) return_token_ids: bool,
    /// Alternatives per token, if log probabilities are wanted.
    pub(crate) logprobs: Option<usize>,
    pub(crate) transfer: Transfer,
}

const COMPLETION_TOKENS_DEFAULT: usize = 16;
const CHOICES_MAX: i64 = 128;

impl Params {
    pub(crate) fn read(
        api: Api,
        fields: &Fields<'_>,
        head: &Head,
        config: &SimConfig,
    ) -> Result<Self, ApiError> {
        let stream = fields.get("stream")?.unwrap_or(false);
        let (mut include_usage, mut continuous_usage) = (false, false);
        if let Some(options) = fields.object("stream_options")? {
            if !stream {
                let message = "Stream options can only be defined when `stream=True`.";
                return Err(ApiError::parameter(message, "stream_options", None));
            }
            include_usage = options.get("include_usage")?.unwrap_or(false);
            continuous_usage = include_usage && options.get("continuous_usage_stats")?.unwrap_or(false);
        }
        let (model, lora) = find_model(fields, config)?;
        if let Some(temperature) = fields.get::<f64>("temperature")?.filter(|own| *own < 0.0) {
            let message = format!("temperature must be non-negative, got {temperature:?}.");
            return Err(ApiError::parameter(&message, "temperature", Some(format!("{temperature:?}"))));
        }
        if api == Api::Completions && fields.get("echo")?.unwrap_or(false) {
            return Err(ApiError::parameter("echo is not simulated.", "echo", None));
        }
        let n = fields.get("n")?.unwrap_or(1);
        if !(1..=CHOICES_MAX).contains(&n) {
            let message = format!("n must be at least 1, got {n}.");
            return Err(ApiError::parameter(&message, "n", Some(n.to_string())));
        }
        let logprobs = match api {
            Api::Completions => fields.get::<i64>("logprobs")?,
            Api::Chat if fields.get("logprobs")?.unwrap_or(false) => {
                Some(fields.get("top_logprobs")?.unwrap_or(0))
            }
            _ => None,
        };
        let xargs = fields.object("vllm_xargs")?;
        let report_mode = xargs.and_then(|xargs| xargs.get::<String>("kv_cache_report_mode").ok().flatten());
        Ok(Self {
            api,
            model,
            lora,
            stream,
            include_usage,
            continuous_usage,
            n: n as usize,
            max_tokens: max_tokens(api, fields)?,
            min_tokens: fields.get::<i64>("min_tokens")?.unwrap_or(0).max(0) as usize,
            ignore_eos: fields.get("ignore_eos")?.unwrap_or(false),
            seed: fields.get::<i64>("seed")?.unwrap_or(0) as u64,
            cache_salt: fields.get("cache_salt")?,
            // The body wins over the header.
            session_id: fields.get("session_id")?.or_else(|| head.session_id.clone()),
            report_hits: report_mode.as_deref() == Some("full"),
            return_token_ids: fields.get("return_token_ids")?.unwrap_or(false),
            logprobs: logprobs.map(|own| own.max(0) as usize),
            transfer: match api {
                Api::Chat | Api::Completions if config.kv_transfer.is_some() && n == 1 => {
                    Transfer::read(fields)?
                }
                _ => Transfer::None,
            },
        })
    }
}

/// The model that a request names; none at all means the first.
pub(crate) fn find_model(
    fields: &Fields<'_>,
    config: &SimConfig,
) -> Result<(String, Option<Lora>), ApiError> {
    let Some(name) = fields.get::<String>("model")?.filter(|name| !name.is_empty()) else {
        return Ok((config.model.clone(), None));
    };
    if name == config.model {
        return Ok((name, None));
    }
    if let Some(lora) = config.loras.iter().find(|lora| lora.name == name) {
        return Ok((name, Some(lora.clone())));
    }
    let loras = config.loras.iter().map(|lora| lora.name.as_str());
    let known: Vec<_> = std::iter::once(config.model.as_str()).chain(loras).collect();
    Err(ApiError::unknown_model(&name, &known))
}

fn max_tokens(api: Api, fields: &Fields<'_>) -> Result<Option<usize>, ApiError> {
    let names: &[&str] = match api {
        Api::Completions | Api::Messages => &["max_tokens"],
        Api::Chat => &["max_completion_tokens", "max_tokens"],
        Api::Responses => &["max_output_tokens"],
    };
    for name in names {
        if let Some(tokens) = fields.get::<i64>(name)? {
            if tokens < 1 {
                let message = format!("max_tokens must be at least 1, got {tokens}.");
                return Err(ApiError::parameter(&message, "max_tokens", Some(tokens.to_string())));
            }
            return Ok(Some(tokens as usize));
        }
    }
    Ok((api == Api::Completions).then_some(COMPLETION_TOKENS_DEFAULT))
}
