//! From the body of a chat completion to what vLLM gives to the chat template.
//!
//! vLLM does not hand a client's JSON to the template: it rebuilds messages and tools from the members that it knows, in an
//! order of its own, and parses the arguments of tool calls. What is done here is what vLLM 0.32 does
//! (`vllm/renderers/chat_utils.py`, `vllm/entrypoints/openai/chat_completion/protocol.py`), held against recordings of
//! it. What vLLM refuses is refused, or it does not matter what becomes of it: the worker will not answer it.

use minijinja::{Value, value::ValueKind};
use serde::Deserialize;

use super::{Unknown, content_format::ContentFormat, template::ChatTemplate, tools};

/// Text parts by their type: the member that holds the text.
const TEXT_PARTS: [(&str, &str); 5] = [
    ("text", "text"),
    ("input_text", "text"),
    ("output_text", "text"),
    ("refusal", "refusal"),
    ("thinking", "thinking"),
];

/// A line of this kind in front of a system text changes with every request of a certain client; vLLM drops it.
const BILLING_HEADER: &str = "x-anthropic-billing-header";

/// Variables that a client may not set by `chat_template_kwargs`: they are vLLM's own, or arguments of functions behind it.
const RESERVED: [&str; 9] = [
    "chat_template",
    "conversation",
    "documents",
    "messages",
    "return_dict",
    "tokenize",
    "tokenizer_kwargs",
    "tools",
    "return_assistant_tokens_mask",
];

/// What of a chat completion makes its prompt.
#[derive(Debug, Deserialize)]
pub(super) struct ChatBody {
    messages: Vec<Message>,
    tools: Option<Vec<tools::Tool>>,
    add_generation_prompt: Option<bool>,
    continue_final_message: Option<bool>,
    pub(super) add_special_tokens: Option<bool>,
    chat_template_kwargs: Option<Value>,
    documents: Option<Value>,
    reasoning_effort: Option<Value>,
    chat_template: Option<Value>,
    truncate_prompt_tokens: Option<Value>,
}

#[derive(Debug, Deserialize)]
struct Message {
    role: String,
    #[serde(default)]
    content: Value,
    tool_calls: Option<Vec<tools::Call>>,
    tool_call_id: Option<Value>,
    reasoning: Option<Value>,
    reasoning_content: Option<Value>,
    name: Option<Value>,
    task: Option<Value>,
    tools: Option<Value>,
}

/// A message's content, as its template takes it.
enum Content {
    Text(String),
    Parts(Vec<String>),
}

impl Content {
    fn into_value(self) -> Value {
        match self {
            Self::Text(text) => text.into(),
            Self::Parts(texts) => texts
                .into_iter()
                .map(|text| Value::from_pairs([("type", Value::from("text")), ("text", text.into())]))
                .collect(),
        }
    }

    /// The text that goes on where the message is continued: a list's last.
    fn last_text(&mut self) -> Option<&mut String> {
        match self {
            Self::Text(text) => Some(text),
            Self::Parts(texts) => texts.last_mut(),
        }
    }
}

/// A message on its way to the template.
struct Prepared {
    role: String,
    content: Content,
    more: Vec<(&'static str, Value)>,
}

impl ChatBody {
    /// Whether the request has tools: some models have a template for those.
    pub(super) fn has_tools(&self) -> bool {
        self.tools.is_some()
    }

    /// The prompt as text. `special_tokens` are the tokenizer's, by name (`bos_token` …).
    pub(super) fn render(
        self,
        template: &ChatTemplate,
        special_tokens: &[(String, String)],
    ) -> Result<String, Unknown> {
        if self.chat_template.is_some() {
            return Err(Unknown::Unsupported("the request brings its own chat template"));
        }
        if self.truncate_prompt_tokens.is_some() {
            return Err(Unknown::Unsupported("the prompt is to be truncated"));
        }
        if self.messages.is_empty() {
            return Err(refused("there is no message"));
        }
        let add_generation_prompt = self.add_generation_prompt.unwrap_or(true);
        let is_continued = self.continue_final_message.unwrap_or(false);
        if add_generation_prompt && is_continued {
            return Err(refused("continue_final_message needs add_generation_prompt: false"));
        }

        let mut messages = self
            .messages
            .into_iter()
            .map(|message| message.prepare(template.content_format))
            .collect::<Result<Vec<_>, _>>()?;
        if !template.knows_developers && messages.iter().any(|message| message.role == "developer") {
            messages = developers_as_system(messages);
        }
        let mut continued = None;
        if is_continued {
            let last = messages.last_mut().and_then(|message| message.content.last_text());
            let text = last.ok_or_else(|| refused("the last message has no text to continue"))?;
            continued = Some(std::mem::replace(text, ChatTemplate::mark(text)));
        }

        let mut variables: Vec<(String, Value)> =
            special_tokens.iter().map(|(name, token)| (name.clone(), token.into())).collect();
        let mut thinking_is_set = false;
        for (name, value) in members(self.chat_template_kwargs)? {
            if RESERVED.contains(&name.as_str()) {
                return Err(Unknown::Unsupported("chat_template_kwargs sets a variable of vLLM's own"));
            }
            thinking_is_set |= name == "enable_thinking";
            variables.push((name, value));
        }
        if let Some(effort) = self.reasoning_effort.filter(|effort| effort.as_str() != Some("auto")) {
            if !thinking_is_set {
                variables.push(("enable_thinking".to_owned(), (effort.as_str() != Some("none")).into()));
            }
            variables.push(("reasoning_effort".to_owned(), effort));
        }
        let tools = match self.tools {
            Some(tools) if tools.is_empty() => return Err(refused("tools is an empty list")),
            Some(tools) => tools.into_iter().map(tools::Tool::into_value).collect(),
            None => Value::from(()),
        };
        let mut set = |name: &str, value: Value| variables.push((name.to_owned(), value));
        set("messages", messages.into_iter().map(Prepared::into_value).collect());
        set("tools", tools);
        set("documents", self.documents.unwrap_or_else(|| Value::from(())));
        set("add_generation_prompt", add_generation_prompt.into());
        let prompt = template.render(Value::from_pairs(variables)).map_err(by_template)?;
        match continued {
            Some(text) => template.cut_at_mark(prompt, &text).map_err(by_template),
            None => Ok(prompt),
        }
    }
}

impl Message {
    fn prepare(self, format: ContentFormat) -> Result<Prepared, Unknown> {
        let mut texts = Vec::new();
        match self.content.kind() {
            ValueKind::None | ValueKind::Undefined => {}
            ValueKind::String => texts.extend(self.content.as_str().map(str::to_owned)),
            ValueKind::Seq => {
                for part in self.content.try_iter().map_err(|error| refused(&error.to_string()))? {
                    texts.extend(text_of(&part)?);
                }
            }
            _ => return Err(refused("a content is neither a text nor a list")),
        }
        if self.role == "system" {
            texts = texts.into_iter().filter_map(without_billing_header).collect();
        }
        // The results of tools are one text for every template.
        let content = match format {
            ContentFormat::Parts if self.role != "tool" => Content::Parts(texts),
            _ => Content::Text(texts.join("\n")),
        };
        let mut more = Vec::new();
        if self.role == "assistant" {
            if let Some(calls) = self.tool_calls.filter(|calls| !calls.is_empty()) {
                let calls = calls.into_iter().map(tools::Call::into_value);
                more.push(("tool_calls", calls.collect::<Result<Value, _>>()?));
            }
            if let Some(reasoning) = self.reasoning.or(self.reasoning_content) {
                more.push(("reasoning", reasoning.clone()));
                more.push(("reasoning_content", reasoning));
            }
        } else if self.role == "tool"
            && let Some(id) = self.tool_call_id
        {
            more.push(("tool_call_id", id));
        }
        for (name, value) in [("name", self.name), ("task", self.task)] {
            more.extend(value.filter(|value| value.as_str().is_some()).map(|value| (name, value)));
        }
        if self.role == "developer" {
            more.push(("tools", self.tools.unwrap_or_else(|| Value::from(()))));
        }
        Ok(Prepared { role: self.role, content, more })
    }
}

impl Prepared {
    fn into_value(self) -> Value {
        let own = [("role", self.role.into()), ("content", self.content.into_value())];
        Value::from_pairs(own.into_iter().chain(self.more))
    }
}

/// The text of a part, if it has one. Anything but text is the engine's to count.
fn text_of(part: &Value) -> Result<Option<String>, Unknown> {
    if let Some(text) = part.as_str() {
        return Ok(Some(text.to_owned()));
    }
    let member = |name: &str| part.get_attr(name).unwrap_or_default();
    let kind = member("type");
    let known = TEXT_PARTS.iter().find(|(name, _)| kind.as_str() == Some(*name));
    let Some((_, holder)) = known.filter(|_| member("uuid").is_undefined()) else {
        return Err(Unknown::Unsupported("a part of a message is no text"));
    };
    Ok(member(holder).as_str().map(str::to_owned))
}

fn without_billing_header(text: String) -> Option<String> {
    if !text.starts_with(BILLING_HEADER) {
        return Some(text);
    }
    let (_, rest) = text.split_once('\n')?;
    (!rest.is_empty()).then(|| rest.to_owned())
}

/// For templates that do not know the role: developers' messages as system messages, and all system messages as one, in
/// front, if any stands elsewhere.
fn developers_as_system(messages: Vec<Prepared>) -> Vec<Prepared> {
    let mut prepared: Vec<Prepared> = messages
        .into_iter()
        .map(|mut message| {
            if message.role == "developer" {
                "system".clone_into(&mut message.role);
                message.more.retain(|(name, _)| *name != "tools");
            }
            message
        })
        .collect();
    if !prepared.iter().skip(1).any(|message| message.role == "system") {
        return prepared;
    }
    let mut texts = Vec::new();
    prepared.retain_mut(|message| {
        if message.role == "system" {
            let text = match &mut message.content {
                Content::Text(text) => std::mem::take(text),
                Content::Parts(parts) => parts.join("\n"),
            };
            texts.extend(Some(text).filter(|text| !text.is_empty()));
        }
        message.role != "system"
    });
    let system =
        Prepared { role: "system".to_owned(), content: Content::Text(texts.join("\n\n")), more: Vec::new() };
    prepared.insert(0, system);
    prepared
}

/// The members of an object that may be absent, in their order.
fn members(object: Option<Value>) -> Result<Vec<(String, Value)>, Unknown> {
    let Some(object) = object else { return Ok(Vec::new()) };
    if object.kind() != ValueKind::Map {
        return Err(refused("chat_template_kwargs is not an object"));
    }
    let names = object.try_iter().map_err(|error| refused(&error.to_string()))?;
    Ok(names.map(|name| (name.to_string(), object.get_item(&name).unwrap_or_default())).collect())
}

fn refused(why: &str) -> Unknown {
    Unknown::Refused(why.to_owned())
}

#[expect(clippy::needless_pass_by_value, reason = "it stands in map_err")]
fn by_template(error: minijinja::Error) -> Unknown {
    Unknown::Refused(format!("by the chat template: {error}"))
}
