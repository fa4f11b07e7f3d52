//! Request bodies: one shallow pass over the JSON, then field by field, with pydantic's complaints.

use std::borrow::Cow;
use std::fmt;

use serde::de::{Deserialize, Deserializer, MapAccess, Visitor};
use serde_json::value::RawValue;

use super::error::ApiError;

/// The top-level members of a request body, unparsed.
#[derive(Debug)]
pub(crate) struct Fields<'a>(Vec<(Cow<'a, str>, &'a RawValue)>);

impl<'a> Fields<'a> {
    /// Checks media type and syntax as FastAPI does.
    pub(crate) fn parse(content_type: Option<&str>, body: &'a [u8]) -> Result<Self, ApiError> {
        let media_type = content_type.and_then(|own| own.split(';').next()).unwrap_or_default().trim();
        if !media_type.eq_ignore_ascii_case("application/json") {
            return Err(ApiError::validation(
                "Unsupported Media Type: Only 'application/json' is allowed",
                None,
            ));
        }
        if body.is_empty() {
            return Err(ApiError::wrong_type("missing", "body", "Field required", "'None'"));
        }
        match serde_json::from_slice::<&RawValue>(body) {
            Err(error) => Err(syntax_error(&error, body)),
            Ok(raw) if raw.get().starts_with('{') => {
                serde_json::from_str(raw.get()).map_err(|error| syntax_error(&error, body))
            }
            Ok(raw) => Err(ApiError::wrong_type(
                "model_attributes_type",
                "body",
                "Input should be a valid dictionary or object to extract fields from",
                &python(raw),
            )),
        }
    }

    /// The member's raw text; `null` counts as absent.
    pub(crate) fn raw(&self, name: &str) -> Option<&'a RawValue> {
        // Python keeps the last of equal keys.
        self.0
            .iter()
            .rev()
            .find(|(key, _)| key == name)
            .map(|(_, raw)| *raw)
            .filter(|raw| raw.get() != "null")
    }

    /// A member of a wanted type. The error says what pydantic says of `T`.
    pub(crate) fn get<T: Field<'a>>(&self, name: &str) -> Result<Option<T>, ApiError> {
        let Some(raw) = self.raw(name) else { return Ok(None) };
        serde_json::from_str(raw.get()).map(Some).map_err(|_| {
            let message = format!("Input should be a valid {}", T::NAME);
            ApiError::wrong_type(T::KIND, &format!("body.{name}"), &message, &python(raw))
        })
    }

    /// As [`Fields::get`], of a nested object.
    pub(crate) fn object(&self, name: &str) -> Result<Option<Fields<'a>>, ApiError> {
        self.get::<Fields<'a>>(name)
    }

    /// The error for a member that must be there and is not.
    pub(crate) fn missing(&self, name: &str) -> ApiError {
        let input = format!("'<dict of {} items>'", self.0.len());
        ApiError::wrong_type("missing", &format!("body.{name}"), "Field required", &input)
    }
}

/// Types that fields have, with pydantic's names for them.
pub(crate) trait Field<'a>: Deserialize<'a> {
    const KIND: &'static str;
    const NAME: &'static str;
}

macro_rules! field {
    ($($type:ty: $kind:literal $name:literal),* $(,)?) => {
        $(impl<'a> Field<'a> for $type {
            const KIND: &'static str = $kind;
            const NAME: &'static str = $name;
        })*
    };
}

field! {
    bool: "bool_type" "boolean",
    i64: "int_type" "integer",
    f64: "float_type" "number",
    String: "string_type" "string",
    Vec<&'a RawValue>: "list_type" "list",
    Fields<'a>: "dict_type" "dictionary",
}

impl<'de: 'a, 'a> Deserialize<'de> for Fields<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Members;
        impl<'de> Visitor<'de> for Members {
            type Value = Fields<'de>;

            fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                formatter.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                let mut members = Vec::with_capacity(8);
                while let Some(member) = map.next_entry::<Cow<'de, str>, &'de RawValue>()? {
                    members.push(member);
                }
                Ok(Fields(members))
            }
        }
        deserializer.deserialize_map(Members)
    }
}

/// The value as pydantic's errors quote it.
pub(crate) fn python(raw: &RawValue) -> String {
    let text = raw.get();
    match text.as_bytes().first() {
        Some(b'{') => {
            let len = serde_json::from_str::<Fields<'_>>(text).map_or(0, |fields| fields.0.len());
            format!("'<dict of {len} items>'")
        }
        Some(b'[') => {
            let len = serde_json::from_str::<Vec<&RawValue>>(text).map_or(0, |items| items.len());
            format!("'<list of {len} items>'")
        }
        Some(b'"') => format!("'{}'", serde_json::from_str::<String>(text).unwrap_or_default()),
        Some(b't') => "'True'".to_owned(),
        Some(b'f') => "'False'".to_owned(),
        _ => format!("'{text}'"),
    }
}

/// FastAPI's complaint about bytes that are not JSON: the offset, and Python's words.
fn syntax_error(error: &serde_json::Error, body: &[u8]) -> ApiError {
    let said = error.to_string();
    let offset = if error.is_eof() {
        body.len()
    } else {
        let line_start = body
            .split_inclusive(|byte| *byte == b'\n')
            .take(error.line().saturating_sub(1))
            .map(<[u8]>::len)
            .sum::<usize>();
        line_start + error.column().saturating_sub(1)
    };
    let words = [
        ("key must be a string", "Expecting property name enclosed in double quotes"),
        ("EOF while parsing an object", "Expecting property name enclosed in double quotes"),
        ("expected `:`", "Expecting ':' delimiter"),
        ("expected `,`", "Expecting ',' delimiter"),
        ("EOF while parsing a list", "Expecting ',' delimiter"),
        ("trailing characters", "Extra data"),
        ("EOF while parsing a string", "Unterminated string starting at"),
        ("control character", "Invalid control character at"),
        ("invalid escape", "Invalid \\\\escape"),
    ];
    let word =
        words.iter().find(|(own, _)| said.starts_with(own)).map_or("Expecting value", |(_, word)| word);
    let quoted = if word.contains('\'') { format!("\"{word}\"") } else { format!("'{word}'") };
    let details = format!(
        "{{'type': 'json_invalid', 'loc': 'body.{offset}', 'msg': 'JSON decode error', 'input': '<dict of 0 items>', \
         'ctx': {{'error': {quoted}}}}}"
    );
    ApiError::validation(&details, Some(&format!("body.{offset}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    const JSON: Option<&str> = Some("application/json; charset=utf-8");

    #[test]
    fn the_last_of_equal_keys_wins_and_null_is_absence() {
        let fields = Fields::parse(JSON, br#"{"n": 1, "n": 2, "stream": null}"#).unwrap();
        assert_eq!(fields.get::<i64>("n").unwrap(), Some(2));
        assert_eq!(fields.get::<bool>("stream").unwrap(), None);
    }

    #[test]
    fn syntax_errors_point_where_python_points() {
        let offset = |body: &[u8]| Fields::parse(JSON, body).unwrap_err().param.unwrap();
        assert_eq!(offset(br#"{"model": "tiny", "prompt": "#), "body.28");
        assert_eq!(offset(br#"{"model": "tiny", "messages": [}"#), "body.31");
        assert_eq!(offset(b"{\n\"a\": x}"), "body.7");
    }

    #[test]
    fn a_wrong_type_is_named() {
        let fields = Fields::parse(JSON, br#"{"messages": "hi"}"#).unwrap();
        let error = fields.get::<Vec<&RawValue>>("messages").unwrap_err();
        assert!(error.message.contains("'type': 'list_type', 'loc': 'body.messages'"), "{}", error.message);
        assert!(error.message.ends_with("'input': 'hi'}"), "{}", error.message);
    }
}
