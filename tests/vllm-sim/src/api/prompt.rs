//! Prompts to tokens: completions' four forms, chat messages through the template, and the other APIs' inputs.

use serde_json::value::RawValue;

use super::error::ApiError;
use super::fields::Fields;
use crate::tokenizer::Tokenizer;

/// Turns a request's input into token ids, refusing what does not fit the context.
#[derive(Clone, Copy)]
pub(crate) struct PromptReader {
    pub(crate) tokenizer: Tokenizer,
    pub(crate) max_model_len: usize,
}

impl PromptReader {
    /// `prompt` of `/v1/completions`: text, texts, ids, lists of ids.
    pub(crate) fn completion(self, raw: Option<&RawValue>) -> Result<Vec<Vec<u32>>, ApiError> {
        let empty = || {
            ApiError::parameter(
                "Either prompt or prompt_embeds must be provided and non-empty.",
                "prompt",
                None,
            )
        };
        let text = raw.ok_or_else(empty)?.get();
        let invalid = |_| ApiError::parameter("Invalid prompt.", "prompt", None);
        if text.starts_with('"') {
            let prompt: String = serde_json::from_str(text).map_err(invalid)?;
            return Ok(vec![self.text(&prompt)?]);
        }
        let inner = text.strip_prefix('[').map(str::trim_start);
        let prompts: Vec<_> = match inner.and_then(|inner| inner.bytes().next()) {
            Some(b'"') => {
                let texts: Vec<String> = serde_json::from_str(text).map_err(invalid)?;
                texts.iter().map(|text| self.text(text)).collect::<Result<_, _>>()?
            }
            Some(b'[') => {
                let lists: Vec<Vec<u64>> = serde_json::from_str(text).map_err(invalid)?;
                lists.iter().map(|ids| self.ids(ids)).collect::<Result<_, _>>()?
            }
            Some(b'0'..=b'9') => {
                let ids: Vec<u64> = serde_json::from_str(text).map_err(invalid)?;
                vec![self.ids(&ids)?]
            }
            _ => return Err(empty()),
        };
        Ok(prompts)
    }

    /// Plain text, as one segment.
    pub(crate) fn text(self, text: &str) -> Result<Vec<u32>, ApiError> {
        if Tokenizer::count(text) > self.max_model_len {
            return Err(self.text_too_long());
        }
        let mut ids = Vec::new();
        self.tokenizer.encode(text, &mut ids);
        if ids.is_empty() {
            ids.push(crate::tokenizer::IM_START); // vLLM's beginning-of-sequence for an empty prompt
        }
        Ok(ids)
    }

    fn ids(self, ids: &[u64]) -> Result<Vec<u32>, ApiError> {
        if ids.len() > self.max_model_len {
            return Err(ApiError::too_long(self.max_model_len, ids.len(), false));
        }
        let vocab_size = u64::from(self.tokenizer.vocab_size());
        if let Some(id) = ids.iter().filter(|id| **id >= vocab_size).max() {
            return Err(ApiError::bad_request(format!("Token id {id} is out of vocabulary"), None));
        }
        Ok(ids.iter().map(|id| *id as u32).collect())
    }

    // vLLM's tokenizer stops one token after the limit, so of a text it knows no more than that.
    fn text_too_long(self) -> ApiError {
        ApiError::too_long(self.max_model_len, self.max_model_len + 1, true)
    }

    /// `messages` and `tools` of `/v1/chat/completions` (and `/tokenize`), with the generation prompt.
    pub(crate) fn chat(self, fields: &Fields<'_>) -> Result<Vec<u32>, ApiError> {
        let messages: Vec<&RawValue> = fields.get("messages")?.ok_or_else(|| fields.missing("messages"))?;
        let mut ids = Vec::new();
        if let Some(tools) = fields.raw("tools") {
            self.message("system", tools.get(), &mut ids)?;
        }
        for message in messages {
            self.chat_message(message, &mut ids)?;
        }
        if fields.get("add_generation_prompt")?.unwrap_or(true) {
            self.tokenizer.open_message("assistant", &mut ids);
        }
        Ok(ids)
    }

    fn chat_message(self, raw: &RawValue, ids: &mut Vec<u32>) -> Result<(), ApiError> {
        let message: Fields<'_> = serde_json::from_str(raw.get()).map_err(|_| {
            let input = super::fields::python(raw);
            ApiError::wrong_type("dict_type", "body.messages", "Input should be a valid dictionary", &input)
        })?;
        let role: String = message.get("role")?.ok_or_else(|| message.missing("messages.role"))?;
        self.tokenizer.open_message(&role, ids);
        if let Some(content) = message.raw("content") {
            self.content(content, ids)?;
        }
        if let Some(calls) = message.raw("tool_calls") {
            self.segment(calls.get(), ids)?;
        }
        self.tokenizer.close_message(ids);
        Ok(())
    }

    /// One whole message.
    pub(crate) fn message(self, role: &str, content: &str, ids: &mut Vec<u32>) -> Result<(), ApiError> {
        self.tokenizer.open_message(role, ids);
        self.segment(content, ids)?;
        self.tokenizer.close_message(ids);
        Ok(())
    }

    /// A message's `content`: text, or parts of text and media.
    pub(crate) fn content(self, raw: &RawValue, ids: &mut Vec<u32>) -> Result<(), ApiError> {
        if raw.get().starts_with('"') {
            let text: String = serde_json::from_str(raw.get()).unwrap_or_default();
            return self.segment(&text, ids);
        }
        let parts: Vec<Fields<'_>> = serde_json::from_str(raw.get()).map_err(|_| {
            let input = super::fields::python(raw);
            ApiError::wrong_type("string_type", "body.messages", "Input should be a valid string", &input)
        })?;
        for part in parts {
            let media = || {
                let members = ["image_url", "input_audio", "video_url", "image", "source", "content"];
                members.iter().find_map(|key| part.raw(key))
            };
            if let Some(text) = part.raw("text") {
                let text: String = serde_json::from_str(text.get()).unwrap_or_default();
                self.segment(&text, ids)?;
            } else if let Some(media) = media() {
                self.tokenizer.encode_media(media.get(), ids);
            }
        }
        Ok(())
    }

    fn segment(self, text: &str, ids: &mut Vec<u32>) -> Result<(), ApiError> {
        if ids.len() + Tokenizer::count(text) > self.max_model_len {
            return Err(self.text_too_long());
        }
        self.tokenizer.encode(text, ids);
        Ok(())
    }
}
