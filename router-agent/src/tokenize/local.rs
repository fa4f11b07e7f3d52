//! One model's tokenizer and chat templates, from the files that the engine reads, too.
//!
//! | file | holds |
//! |---|---|
//! | `tokenizer.json` | the tokenizer |
//! | `tokenizer_config.json` | special tokens by name, and the chat template where it has no file of its own |
//! | `chat_template.jinja` | the chat template; wins over the one in `tokenizer_config.json` |

use std::{io, path::Path};

use serde::Deserialize;

use super::{
    Encoded, LoadError, Unknown, cache::TokenCache, chat::ChatBody, encoder::Encoder, template::ChatTemplate,
};
use crate::prompt::ApiKind;

/// A tokenizer of this process.
#[derive(Debug)]
pub struct LocalTokenizer {
    encoder: Encoder,
    /// None: this model takes no chats.
    template: Option<ChatTemplate>,
    /// Where it is not the same: the template for requests with tools.
    tool_template: Option<ChatTemplate>,
    special_tokens: Vec<(String, String)>,
}

/// `tokenizer_config.json`, as far as it is read. Its other members are the engine's.
#[derive(Debug, Default, Deserialize)]
struct TokenizerConfig {
    chat_template: Option<Templates>,
    #[serde(flatten)]
    others: serde_json::Map<String, serde_json::Value>,
}

#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum Templates {
    One(String),
    Named(Vec<NamedTemplate>),
}

#[derive(Debug, Deserialize)]
struct NamedTemplate {
    name: String,
    template: String,
}

/// The body of a text completion, as far as it is the prompt.
#[derive(Debug, Deserialize)]
struct CompletionBody {
    prompt: Prompt,
    add_special_tokens: Option<bool>,
    truncate_prompt_tokens: Option<serde_json::Value>,
}

#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum Prompt {
    Text(String),
    One([String; 1]),
}

impl LocalTokenizer {
    /// Reads a directory.
    pub fn load(directory: &Path) -> Result<Self, LoadError> {
        let encoder = Encoder::load(&directory.join("tokenizer.json"))?;
        let config = match read(&directory.join("tokenizer_config.json"))? {
            None => TokenizerConfig::default(),
            Some(json) => serde_json::from_str(&json).map_err(|error| LoadError::Format {
                path: directory.join("tokenizer_config.json"),
                message: error.to_string(),
            })?,
        };
        let special_tokens = config.special_tokens();
        let compile = |source: &str| {
            ChatTemplate::compile(source).map_err(|error| LoadError::Template {
                path: directory.to_owned(),
                message: format!("{error:#}"),
            })
        };
        let file = read(&directory.join("chat_template.jinja"))?;
        let (default, for_tools) = match (file, config.chat_template) {
            (Some(template), _) | (None, Some(Templates::One(template))) => (Some(template), None),
            (None, None) => (None, None),
            (None, Some(Templates::Named(templates))) => {
                let named = |name: &str| {
                    templates.iter().find(|each| each.name == name).map(|each| each.template.clone())
                };
                (named("default"), named("tool_use"))
            }
        };
        Ok(Self {
            encoder,
            template: default.as_deref().map(compile).transpose()?,
            tool_template: for_tools.as_deref().map(compile).transpose()?,
            special_tokens,
        })
    }

    #[cfg(test)]
    pub(super) fn with_template(mut self, source: &str) -> Self {
        self.template = Some(ChatTemplate::compile(source).expect("a test's template compiles"));
        self
    }

    /// The prompt's tokens, exactly as vLLM makes them of this body.
    pub fn tokens(&self, kind: ApiKind, body: &[u8], cache: &TokenCache) -> Result<Encoded, Unknown> {
        let (text, special) = self.text(kind, body)?;
        self.encoder.encode(&text, special, cache)
    }

    /// As [`LocalTokenizer::tokens`], without cuts and cache.
    pub fn tokens_whole(&self, kind: ApiKind, body: &[u8]) -> Result<Vec<u32>, Unknown> {
        let (text, special) = self.text(kind, body)?;
        self.encoder.encode_whole(&text, special)
    }

    /// The prompt as text, and whether the tokenizer puts its special tokens around it.
    pub fn text(&self, kind: ApiKind, body: &[u8]) -> Result<(String, bool), Unknown> {
        let malformed = |error: serde_json::Error| Unknown::Refused(error.to_string());
        match kind {
            ApiKind::Chat => {
                let body: ChatBody = serde_json::from_slice(body).map_err(malformed)?;
                let special = body.add_special_tokens.unwrap_or(false);
                let template = if body.has_tools() { self.tool_template.as_ref() } else { None };
                let template = template.or(self.template.as_ref());
                let template =
                    template.ok_or_else(|| Unknown::Refused("there is no chat template".to_owned()))?;
                Ok((body.render(template, &self.special_tokens)?, special))
            }
            ApiKind::Completions => {
                let body: CompletionBody = serde_json::from_slice(body).map_err(malformed)?;
                if body.truncate_prompt_tokens.is_some() {
                    return Err(Unknown::Unsupported("the prompt is to be truncated"));
                }
                let (Prompt::Text(text) | Prompt::One([text])) = body.prompt;
                Ok((text, body.add_special_tokens.unwrap_or(true)))
            }
            ApiKind::Responses | ApiKind::Messages => {
                Err(Unknown::Unsupported("the engine makes chats of these requests by rules of its own"))
            }
        }
    }
}

impl TokenizerConfig {
    /// `bos_token`, `eos_token` and whatever else ends like that: a text, or an object with the text as its content.
    fn special_tokens(&self) -> Vec<(String, String)> {
        let text = |value: &serde_json::Value| {
            Some(value.as_str().or_else(|| value["content"].as_str())?.to_owned())
        };
        let tokens = self.others.iter().filter(|(name, _)| name.ends_with("_token"));
        tokens.filter_map(|(name, value)| Some((name.clone(), text(value)?))).collect()
    }
}

/// A file's text; none if there is no such file.
fn read(path: &Path) -> Result<Option<String>, LoadError> {
    match std::fs::read_to_string(path) {
        Ok(text) => Ok(Some(text)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(LoadError::Read { path: path.to_owned(), source }),
    }
}
