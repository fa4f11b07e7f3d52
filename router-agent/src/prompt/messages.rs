//! Messages, input items, content parts and tools, of OpenAI's and Anthropic's APIs alike, as pieces.
//!
//! The same conversation gives the same pieces in whatever order a client writes the members of a message, and
//! whether it writes a text as a string or as a list of one text part. `cache_control` is left out everywhere: it
//! moves from message to message between two turns of the same conversation and is no part of the prompt.

use super::{
    piece::{Form, Piece, Tag, media_hash},
    scan::{Bad, Scanner, Text, Value},
};

/// How deep content may hold content (a tool's result holds parts) before it is taken as plain JSON.
const CONTENT_DEPTH_MAX: usize = 4;

/// Members that say nothing to the model.
const SILENT: [&str; 4] = ["cache_control", "id", "status", "type"];

/// The members of one object, in their order.
#[derive(Default)]
pub(super) struct Members<'a>(Vec<(Text<'a>, Value<'a>)>);

impl<'a> Members<'a> {
    /// Replaces the members by those of the object in front of which `scanner` stands.
    pub(super) fn read(&mut self, scanner: &mut Scanner<'a>) -> Result<(), Bad> {
        self.0.clear();
        scanner.object(|key, scanner| {
            self.0.push((key, scanner.value()?));
            Ok(())
        })
    }

    fn of(raw: &'a [u8]) -> Result<Self, Bad> {
        let mut members = Self::default();
        members.read(&mut Scanner::new(raw))?;
        Ok(members)
    }

    /// The last member of that name; null counts as absent.
    fn get(&self, name: &str) -> Option<Value<'a>> {
        let found = self.0.iter().rev().find(|(key, _)| key.is(name));
        found.map(|(_, value)| *value).filter(|value| *value != Value::Null)
    }

    fn text(&self, name: &str) -> Option<Text<'a>> {
        self.get(name).and_then(Value::as_text)
    }
}

fn push<'a>(tag: Tag, value: Option<Value<'a>>, out: &mut Vec<Piece<'a>>) {
    match value {
        None | Some(Value::Null | Value::Array(b"[]")) => {}
        Some(value) => out.push(Piece::value(tag, value)),
    }
}

/// One chat message or one input item of the Responses API.
pub(super) fn push_message<'a>(message: &Members<'a>, out: &mut Vec<Piece<'a>>) -> Result<(), Bad> {
    let kind = message.text("type").filter(|kind| !kind.is("message"));
    match (message.get("role"), kind) {
        // An item without a role (a function call, its output, reasoning) is known by its type.
        (None, Some(kind)) => {
            out.push(Piece::text(Tag::Role, kind));
            push_part(message, 0, out)
        }
        (role, _) => {
            out.push(Piece::value(Tag::Role, role.unwrap_or(Value::Null)));
            push(Tag::Name, message.get("name"), out);
            push(Tag::Id, message.get("tool_call_id"), out);
            push(Tag::Reasoning, message.get("reasoning_content").or_else(|| message.get("reasoning")), out);
            if let Some(content) = message.get("content") {
                push_content(Tag::Content, content, out)?;
            }
            push(Tag::Calls, message.get("tool_calls"), out);
            push(Tag::Calls, message.get("function_call"), out);
            Ok(())
        }
    }
}

/// Content: a string, or a list of parts.
pub(super) fn push_content<'a>(tag: Tag, content: Value<'a>, out: &mut Vec<Piece<'a>>) -> Result<(), Bad> {
    push_content_at(tag, content, 0, out)
}

fn push_content_at<'a>(
    tag: Tag,
    content: Value<'a>,
    depth: usize,
    out: &mut Vec<Piece<'a>>,
) -> Result<(), Bad> {
    match content {
        Value::Array(raw) if depth < CONTENT_DEPTH_MAX => Scanner::new(raw).array(|scanner| {
            match scanner.value()? {
                Value::Object(part) => {
                    let part = Members::of(part)?;
                    match part.text("text") {
                        Some(text) => out.push(Piece::text(tag, text)),
                        None => push_part(&part, depth, out)?,
                    }
                }
                other => push(tag, Some(other), out),
            }
            Ok(())
        }),
        other => {
            push(tag, Some(other), out);
            Ok(())
        }
    }
}

/// Anything that is not a text: known by its type.
fn push_part<'a>(part: &Members<'a>, depth: usize, out: &mut Vec<Piece<'a>>) -> Result<(), Bad> {
    let kind = part.text("type").map(Text::to_str).unwrap_or_default();
    match &*kind {
        "thinking" | "redacted_thinking" => {
            push(Tag::Reasoning, part.get("thinking").or_else(|| part.get("data")), out);
        }
        "refusal" => push(Tag::Content, part.get("refusal"), out),
        "tool_use" | "function_call" | "custom_tool_call" => {
            push(Tag::Id, part.get("call_id").or_else(|| part.get("id")), out);
            push(Tag::Calls, part.get("name"), out);
            push(Tag::Calls, part.get("arguments").or_else(|| part.get("input")), out);
        }
        "tool_result" | "function_call_output" | "custom_tool_call_output" => {
            push(Tag::Id, part.get("call_id").or_else(|| part.get("tool_use_id")), out);
            if let Some(result) = part.get("output").or_else(|| part.get("content")) {
                push_content_at(Tag::Content, result, depth + 1, out)?;
            }
        }
        "reasoning" => {
            for name in ["summary", "content"] {
                if let Some(text) = part.get(name) {
                    push_content_at(Tag::Reasoning, text, depth + 1, out)?;
                }
            }
        }
        kind if is_media(kind) => {
            let hash = part
                .0
                .iter()
                .filter(|(name, _)| !name.is("cache_control"))
                .fold(0, |hash, (name, value)| media_hash(hash, name.raw, *value));
            out.push(Piece { tag: Tag::Media, form: Form::Media(hash) });
        }
        _ => push_members(Tag::Other, part, out),
    }
    Ok(())
}

fn is_media(kind: &str) -> bool {
    ["image", "audio", "video", "file", "document"].iter().any(|medium| kind.contains(medium))
}

/// Every member that may matter to the model, by name.
fn push_members<'a>(tag: Tag, members: &Members<'a>, out: &mut Vec<Piece<'a>>) {
    for (name, value) in &members.0 {
        if !SILENT.iter().any(|silent| name.is(silent)) {
            out.push(Piece::text(tag, *name));
            out.push(Piece::value(tag, *value));
        }
    }
}

/// The list of tools; `scratch` is only room to work in.
pub(super) fn push_tools<'a>(
    tools: Value<'a>,
    scratch: &mut Members<'a>,
    out: &mut Vec<Piece<'a>>,
) -> Result<(), Bad> {
    let Value::Array(raw) = tools else { return Ok(()) };
    Scanner::new(raw).array(|scanner| {
        if scanner.peek() == Some(b'{') {
            scratch.read(scanner)?;
            push_members(Tag::Tool, scratch, out);
        } else {
            push(Tag::Tool, Some(scanner.value()?), out);
        }
        Ok(())
    })
}
