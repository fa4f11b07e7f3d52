//! What can be wrong with a body before any worker has seen it.
//!
//! Only what no worker could answer is refused here: text that is not JSON, JSON that is not an object, and a field
//! that decides where the request goes but cannot be read. Everything else, a chat without messages included, is
//! passed on, and the worker says in its own words what it dislikes.

use super::scan::Bad;

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ParseError {
    /// Not JSON as Python's `json` and RFC 8259 have it, trailing bytes and bad UTF-8 included.
    #[error("the request body is not valid JSON: {why} (at byte {at_byte})")]
    NotJson { at_byte: usize, why: &'static str },
    /// JSON, but not an object.
    #[error("the request body must be a JSON object, but it is {found}")]
    NotAnObject { found: &'static str },
    /// A field that routing must read has a type that cannot be read.
    #[error("`{field}` must be {expected}, but it is {found}")]
    WrongType { field: &'static str, expected: &'static str, found: &'static str },
}

impl ParseError {
    /// The parameter to name in an OpenAI error object, where it is one.
    pub fn param(&self) -> Option<&'static str> {
        match self {
            ParseError::WrongType { field, .. } => Some(field),
            ParseError::NotJson { .. } | ParseError::NotAnObject { .. } => None,
        }
    }
}

impl From<Bad> for ParseError {
    fn from(bad: Bad) -> Self {
        ParseError::NotJson { at_byte: bad.at, why: bad.why }
    }
}
