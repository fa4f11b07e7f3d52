//! The members of a request body, read in whatever order they come and put in the engine's order at the end.

use std::borrow::Cow;

use xxhash_rust::xxh3::{Xxh3, xxh3_64_with_seed};

use super::{
    ApiKind, Domain, ParseError, PromptSize, Request,
    messages::{Members, push_content, push_message, push_tools},
    piece::{BYTES_PER_TOKEN, Form, Piece, Tag},
    scan::{Bad, Scanner, Text, Value},
};

/// Options that change the chat template's end, or more only for few models. Their defaults write nothing.
const END_OPTIONS: [&str; 4] =
    ["add_generation_prompt", "chat_template_kwargs", "continue_final_message", "reasoning_effort"];

/// Settings that change a prompt from its start.
const ROOT_OPTIONS: [&str; 4] = ["add_special_tokens", "chat_template", "documents", "mm_processor_kwargs"];

/// Sections of the prompt, each filled when its key comes by; a repeated key starts its section anew.
pub(super) struct Fields<'a> {
    kind: ApiKind,
    model: Option<Value<'a>>,
    stream: bool,
    /// The bounds by rank: the newer name counts if both are there.
    max_tokens: [Option<u32>; 2],
    session: [Option<Cow<'a, str>>; 2],
    user: [Option<Cow<'a, str>>; 2],
    priority: Option<i64>,
    previous_response: Option<Cow<'a, str>>,
    cache_salt: Option<Cow<'a, str>>,
    tools: Vec<Piece<'a>>,
    system: Vec<Piece<'a>>,
    prompt: Vec<Piece<'a>>,
    further_prompts: PromptSize,
    domain: Domain,
    end_options: [Option<Value<'a>>; END_OPTIONS.len()],
    root_options: [Option<Value<'a>>; ROOT_OPTIONS.len()],
    scratch: Members<'a>,
}

impl<'a> Fields<'a> {
    pub(super) fn new(kind: ApiKind) -> Self {
        Self {
            kind,
            model: None,
            stream: false,
            max_tokens: [None; 2],
            session: [None, None],
            user: [None, None],
            priority: None,
            previous_response: None,
            cache_salt: None,
            tools: Vec::new(),
            system: Vec::new(),
            prompt: Vec::new(),
            further_prompts: PromptSize::default(),
            domain: if kind == ApiKind::Completions { Domain::Plain } else { Domain::Templated },
            end_options: [None; END_OPTIONS.len()],
            root_options: [None; ROOT_OPTIONS.len()],
            scratch: Members::default(),
        }
    }

    /// Takes the value of `key`, in front of which `scanner` stands.
    pub(super) fn read(&mut self, key: Text<'a>, scanner: &mut Scanner<'a>) -> Result<(), Bad> {
        let key = key.to_str();
        match (&*key, self.kind) {
            ("messages", ApiKind::Chat | ApiKind::Messages) | ("input", ApiKind::Responses) => {
                return self.messages(scanner);
            }
            ("prompt", ApiKind::Completions) => return self.completion_prompt(scanner),
            _ => {}
        }
        let value = scanner.value()?;
        match &*key {
            "model" => self.model = Some(value),
            "stream" => self.stream = is_true(value),
            "max_tokens" => self.max_tokens[1] = count(value),
            "max_completion_tokens" | "max_output_tokens" => self.max_tokens[0] = count(value),
            "session_id" => self.session[0] = string(value),
            "prompt_cache_key" => self.session[1] = string(value),
            "user" => self.user[0] = string(value),
            "metadata" if self.kind == ApiKind::Messages => self.user[1] = member(value, "user_id")?,
            "priority" => self.priority = integer(value),
            "previous_response_id" => self.previous_response = string(value),
            "cache_salt" => self.cache_salt = string(value),
            "tools" | "functions" if self.kind != ApiKind::Completions => {
                self.tools.clear();
                push_tools(value, &mut self.scratch, &mut self.tools)?;
            }
            "system" if self.kind == ApiKind::Messages => {
                self.system.clear();
                push_content(Tag::System, value, &mut self.system)?;
            }
            "instructions" if self.kind == ApiKind::Responses => {
                self.system.clear();
                push_content(Tag::System, value, &mut self.system)?;
            }
            name => {
                if let Some(place) = END_OPTIONS.iter().position(|option| *option == name) {
                    self.end_options[place] = Some(value);
                } else if let Some(place) = ROOT_OPTIONS.iter().position(|option| *option == name) {
                    self.root_options[place] = Some(value);
                }
            }
        }
        Ok(())
    }

    fn messages(&mut self, scanner: &mut Scanner<'a>) -> Result<(), Bad> {
        self.prompt.clear();
        if scanner.peek() == Some(b'[') {
            return scanner.array(|scanner| {
                if scanner.peek() == Some(b'{') {
                    self.scratch.read(scanner)?;
                    push_message(&self.scratch, &mut self.prompt)
                } else {
                    // Not a message in any API: the worker says so.
                    scanner.value().map(drop)
                }
            });
        }
        // The Responses API takes a plain string for one user message.
        if let Value::String(text) = scanner.value()? {
            self.prompt.push(Piece { tag: Tag::Role, form: Form::Text(b"user") });
            self.prompt.push(Piece::text(Tag::Content, text));
        }
        Ok(())
    }

    /// A string, token ids, or an array of either: route by the first, count them all.
    fn completion_prompt(&mut self, scanner: &mut Scanner<'a>) -> Result<(), Bad> {
        self.prompt.clear();
        self.further_prompts = PromptSize::default();
        self.domain = Domain::Plain;
        if scanner.peek() != Some(b'[') {
            if let Value::String(text) = scanner.value()? {
                self.prompt.push(Piece::text(Tag::Plain, text));
            }
            return Ok(());
        }
        let mut ids = Vec::new();
        let mut further_ids = 0;
        let mut prompts = 0_usize;
        scanner.array(|scanner| {
            if scanner.peek() == Some(b'[') {
                let before = ids.len();
                scanner.array(|scanner| {
                    match scanner.small_integer() {
                        Some(id) => ids.extend_from_slice(&id.to_le_bytes()),
                        None => token_id(scanner.value()?, &mut ids),
                    }
                    Ok(())
                })?;
                if prompts > 0 {
                    further_ids += ids.len() - before;
                    ids.truncate(before);
                }
                prompts += 1;
                return Ok(());
            }
            if let Some(id) = scanner.small_integer() {
                ids.extend_from_slice(&id.to_le_bytes());
                return Ok(());
            }
            match scanner.value()? {
                Value::String(text) if prompts == 0 => {
                    self.prompt.push(Piece::text(Tag::Plain, text));
                    prompts += 1;
                }
                Value::String(text) => {
                    let piece = Piece::text(Tag::Plain, text);
                    piece.write(&mut |bytes| self.further_prompts.bytes += bytes.len() as u64);
                    prompts += 1;
                }
                other => token_id(other, &mut ids),
            }
            Ok(())
        })?;
        if self.prompt.is_empty() && !ids.is_empty() {
            self.domain = Domain::TokenIds;
            self.prompt.push(Piece { tag: Tag::Plain, form: Form::Tokens(ids.into_boxed_slice()) });
            self.further_prompts = PromptSize {
                bytes: further_ids as u64,
                tokens_exact: Some((further_ids / BYTES_PER_TOKEN) as u32),
            };
        }
        Ok(())
    }

    pub(super) fn finish(self) -> Result<Request<'a>, ParseError> {
        let model = match self.model {
            None | Some(Value::Null) => None,
            Some(Value::String(text)) => Some(text.to_str()),
            Some(other) => {
                return Err(ParseError::WrongType {
                    field: "model",
                    expected: "a string",
                    found: other.describe(),
                });
            }
        };
        let template = template_hash(&self.root_options);
        let mut pieces = self.tools;
        pieces.reserve_exact(self.system.len() + self.prompt.len());
        pieces.extend(self.system);
        pieces.extend(self.prompt);
        for (name, value) in END_OPTIONS.iter().zip(self.end_options) {
            if let Some(value) = value
                && !is_default(name, value)
            {
                pieces.push(Piece { tag: Tag::Option, form: Form::Text(name.as_bytes()) });
                pieces.push(Piece::value(Tag::Option, value));
            }
        }
        let [newer, older] = self.max_tokens;
        let [session, cache_key] = self.session;
        let [user, user_id] = self.user;
        Ok(Request {
            model,
            stream: self.stream,
            max_tokens: newer.or(older),
            session: session.or(cache_key),
            user: user.or(user_id),
            priority: self.priority,
            previous_response: self.previous_response,
            cache_salt: self.cache_salt,
            pieces,
            further_prompts: self.further_prompts,
            template,
            domain: self.domain,
        })
    }
}

/// Zero if the request sets nothing of the kind.
fn template_hash(options: &[Option<Value<'_>>]) -> u64 {
    let mut hash = 0;
    for (name, value) in ROOT_OPTIONS.iter().zip(options) {
        match value {
            None | Some(Value::Null) => {}
            Some(value) => {
                let mut one = Xxh3::with_seed(xxh3_64_with_seed(name.as_bytes(), hash));
                Piece::value(Tag::Option, *value).write(&mut |bytes| one.update(bytes));
                hash = one.digest();
            }
        }
    }
    hash
}

fn is_default(name: &str, value: Value<'_>) -> bool {
    match (name, value) {
        (_, Value::Null) => true,
        ("add_generation_prompt", Value::Bool(value)) => value,
        ("continue_final_message", Value::Bool(value)) => !value,
        (_, Value::Object(raw)) => {
            raw.iter().all(|byte| matches!(byte, b'{' | b'}') || byte.is_ascii_whitespace())
        }
        _ => false,
    }
}

/// A token id, as far as it is one: negative or huge numbers are the worker's to refuse.
fn token_id(value: Value<'_>, ids: &mut Vec<u8>) {
    if let Value::Number(digits) = value {
        let id = digits.iter().try_fold(0_u32, |id, digit| {
            let digit = digit.is_ascii_digit().then(|| u32::from(digit - b'0'))?;
            id.checked_mul(10)?.checked_add(digit)
        });
        ids.extend_from_slice(&id.unwrap_or(u32::MAX).to_le_bytes());
    }
}

/// As vLLM's model of the request reads a boolean: loosely.
fn is_true(value: Value<'_>) -> bool {
    match value {
        Value::Bool(value) => value,
        Value::Number(digits) => matches!(digits, b"1" | b"1.0"),
        Value::String(text) => {
            ["true", "t", "yes", "y", "on", "1"].iter().any(|word| text.to_str().eq_ignore_ascii_case(word))
        }
        _ => false,
    }
}

pub(super) fn string(value: Value<'_>) -> Option<Cow<'_, str>> {
    value.as_text().map(Text::to_str)
}

fn integer(value: Value<'_>) -> Option<i64> {
    let digits = match value {
        Value::Number(digits) => Cow::Borrowed(std::str::from_utf8(digits).ok()?),
        Value::String(text) => text.to_str(),
        _ => return None,
    };
    digits.trim().parse().ok().or_else(|| {
        let float: f64 = digits.trim().parse().ok()?;
        (float.is_finite() && float.fract() == 0.0).then_some(float as i64)
    })
}

fn count(value: Value<'_>) -> Option<u32> {
    integer(value).map(|count| count.clamp(0, i64::from(u32::MAX)) as u32)
}

/// The string member `name` of an object.
fn member<'a>(value: Value<'a>, name: &str) -> Result<Option<Cow<'a, str>>, Bad> {
    let mut found = None;
    if let Value::Object(raw) = value {
        Scanner::new(raw).object(|key, scanner| {
            let value = scanner.value()?;
            if key.is(name) {
                found = string(value);
            }
            Ok(())
        })?;
    }
    Ok(found)
}
