//! Values as Python writes them, for templates that were written for it: `json.dumps` behind the filter `tojson`, `str` for
//! what a template prints.

use std::fmt::{self, Write};

use minijinja::{
    Error, ErrorKind, Value,
    value::{Kwargs, ValueKind},
};

/// `json.dumps(value, ensure_ascii=False, indent=None, separators=None, sort_keys=False)`, as transformers gives it to chat
/// templates; Jinja's own `tojson` escapes for HTML.
pub(super) fn tojson(value: &Value, options: &Kwargs) -> Result<String, Error> {
    let indent = match options.get::<Option<Value>>("indent")? {
        None => None,
        Some(indent) if indent.is_none() => None,
        Some(indent) => Some(match indent.as_str() {
            Some(text) => text.to_owned(),
            None => " ".repeat(indent.as_usize().unwrap_or(0).min(INDENT_MAX)),
        }),
    };
    let separators: Option<Vec<String>> = options.get("separators")?;
    let (item, key) = match separators.as_deref() {
        Some([item, key]) => (item.clone(), key.clone()),
        None if indent.is_some() => (",".to_owned(), ": ".to_owned()),
        _ => (", ".to_owned(), ": ".to_owned()),
    };
    let mut json = Json {
        out: String::new(),
        indent,
        item,
        key,
        sort_keys: options.get::<Option<bool>>("sort_keys")?.unwrap_or(false),
        ensure_ascii: options.get::<Option<bool>>("ensure_ascii")?.unwrap_or(false),
    };
    options.assert_all_used()?;
    json.value(value, 0)?;
    Ok(json.out)
}

/// Nobody indents deeper; a template must not blow up its output.
const INDENT_MAX: usize = 32;

struct Json {
    out: String,
    indent: Option<String>,
    item: String,
    key: String,
    sort_keys: bool,
    ensure_ascii: bool,
}

impl Json {
    fn value(&mut self, value: &Value, depth: usize) -> Result<(), Error> {
        match value.kind() {
            ValueKind::None => self.out.push_str("null"),
            ValueKind::Bool => self.out.push_str(if value.is_true() { "true" } else { "false" }),
            ValueKind::Number => self.out.push_str(&number(value)),
            ValueKind::String => self.string(value.as_str().unwrap_or_default()),
            ValueKind::Seq | ValueKind::Iterable => {
                let items: Vec<Value> = value.try_iter()?.collect();
                self.container(['[', ']'], items.len(), depth, |json, index| {
                    json.value(&items[index], depth + 1)
                })?;
            }
            ValueKind::Map => {
                let mut members = Vec::new();
                for key in value.try_iter()? {
                    members.push((json_key(&key)?, value.get_item(&key)?));
                }
                if self.sort_keys {
                    members.sort_by(|(a, _), (b, _)| a.cmp(b));
                }
                self.container(['{', '}'], members.len(), depth, |json, index| {
                    let (key, value) = &members[index];
                    json.string(key);
                    let separator = json.key.clone();
                    json.out.push_str(&separator);
                    json.value(value, depth + 1)
                })?;
            }
            other => {
                return Err(Error::new(ErrorKind::InvalidOperation, format!("{other} is not JSON")));
            }
        }
        Ok(())
    }

    fn container(
        &mut self,
        [open, close]: [char; 2],
        length: usize,
        depth: usize,
        mut write: impl FnMut(&mut Self, usize) -> Result<(), Error>,
    ) -> Result<(), Error> {
        self.out.push(open);
        for index in 0..length {
            if index > 0 {
                let separator = self.item.clone();
                self.out.push_str(&separator);
            }
            self.line(depth + 1);
            write(self, index)?;
        }
        if length > 0 {
            self.line(depth);
        }
        self.out.push(close);
        Ok(())
    }

    fn line(&mut self, depth: usize) {
        if let Some(indent) = &self.indent {
            self.out.push('\n');
            self.out.extend(std::iter::repeat_n(indent.as_str(), depth));
        }
    }

    fn string(&mut self, text: &str) {
        let json = serde_json::to_string(text).expect("a string serialises");
        if !self.ensure_ascii || text.is_ascii() {
            self.out.push_str(&json);
            return;
        }
        let mut units = [0; 2];
        for character in json.chars() {
            if character.is_ascii() {
                self.out.push(character);
            } else {
                for unit in character.encode_utf16(&mut units) {
                    write!(self.out, "\\u{unit:04x}").expect("a string takes it");
                }
            }
        }
    }
}

/// Python writes keys that are no strings as JSON would write their values.
fn json_key(key: &Value) -> Result<String, Error> {
    match key.kind() {
        ValueKind::String => Ok(key.as_str().unwrap_or_default().to_owned()),
        ValueKind::None => Ok("null".to_owned()),
        ValueKind::Bool => Ok(if key.is_true() { "true" } else { "false" }.to_owned()),
        ValueKind::Number => Ok(number(key)),
        other => Err(Error::new(ErrorKind::InvalidOperation, format!("{other} is no key of a JSON object"))),
    }
}

/// `str(value)`: what `{{ value }}` writes.
pub(super) fn write_str(out: &mut dyn Write, value: &Value) -> fmt::Result {
    match value.kind() {
        ValueKind::String => out.write_str(value.as_str().unwrap_or_default()),
        ValueKind::Undefined => Ok(()),
        _ => write_repr(out, value),
    }
}

/// `str(value)` as a text.
pub(super) fn str(value: &Value) -> String {
    let mut out = String::new();
    write_str(&mut out, value).expect("a string takes it");
    out
}

/// Jinja's test `iterable`: minijinja takes `none` for one, which Python does not; an undefined value is one in both.
pub(super) fn is_iterable(value: &Value) -> bool {
    is_sequence(value) || value.kind() == ValueKind::Iterable
}

/// Jinja's test `sequence`: whatever has a length and members, so texts and dicts, too.
pub(super) fn is_sequence(value: &Value) -> bool {
    matches!(value.kind(), ValueKind::String | ValueKind::Seq | ValueKind::Map | ValueKind::Undefined)
}

fn write_repr(out: &mut dyn Write, value: &Value) -> fmt::Result {
    match value.kind() {
        ValueKind::Number => out.write_str(&number(value)),
        ValueKind::String => write_quoted(out, value.as_str().unwrap_or_default()),
        ValueKind::Seq => {
            out.write_char('[')?;
            for (index, item) in value.try_iter().into_iter().flatten().enumerate() {
                out.write_str(if index > 0 { ", " } else { "" })?;
                write_repr(out, &item)?;
            }
            out.write_char(']')
        }
        ValueKind::Map if value.as_object().is_some() => {
            out.write_char('{')?;
            for (index, key) in value.try_iter().into_iter().flatten().enumerate() {
                out.write_str(if index > 0 { ", " } else { "" })?;
                write_repr(out, &key)?;
                out.write_str(": ")?;
                write_repr(out, &value.get_item(&key).unwrap_or_default())?;
            }
            out.write_char('}')
        }
        _ => write!(out, "{value}"),
    }
}

/// `repr` of a string: in single quotes unless it holds those and no double ones.
fn write_quoted(out: &mut dyn Write, text: &str) -> fmt::Result {
    let quote = if text.contains('\'') && !text.contains('"') { '"' } else { '\'' };
    out.write_char(quote)?;
    for character in text.chars() {
        match character {
            '\n' => out.write_str("\\n")?,
            '\r' => out.write_str("\\r")?,
            '\t' => out.write_str("\\t")?,
            '\\' => out.write_str("\\\\")?,
            _ if character == quote => write!(out, "\\{character}")?,
            _ if character.is_control() => write!(out, "\\x{:02x}", character as u32)?,
            _ => out.write_char(character)?,
        }
    }
    out.write_char(quote)
}

fn number(value: &Value) -> String {
    match f64::try_from(value.clone()) {
        Ok(float) if !value.is_integer() => self::float(float),
        _ => value.to_string(),
    }
}

/// `repr` of a float: the shortest digits that give it back, with an exponent below 1e-4 and from 1e16.
fn float(float: f64) -> String {
    if !float.is_finite() {
        return if float.is_nan() {
            "NaN".to_owned()
        } else {
            format!("{}Infinity", if float < 0.0 { "-" } else { "" })
        };
    }
    let scientific = format!("{float:e}");
    let (digits, exponent) = scientific.split_once('e').expect("that format has an exponent");
    match exponent.parse::<i32>().expect("an exponent is a number") {
        -4..=15 => {
            let plain = float.to_string();
            if plain.contains('.') { plain } else { format!("{plain}.0") }
        }
        exponent => format!("{digits}e{}{:02}", if exponent < 0 { '-' } else { '+' }, exponent.abs()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn floats_are_written_as_python_writes_them() {
        for (value, text) in [
            (1.0, "1.0"),
            (-0.0, "-0.0"),
            (0.1, "0.1"),
            (1e15, "1000000000000000.0"),
            (1e16, "1e+16"),
            (1.5e300, "1.5e+300"),
            (1e-4, "0.0001"),
            (1e-5, "1e-05"),
            (1.25e-7, "1.25e-07"),
            (123_456.75, "123456.75"),
        ] {
            assert_eq!(float(value), text);
        }
    }

    #[test]
    fn strings_are_quoted_as_python_quotes_them() {
        let repr = |text: &str| {
            let mut out = String::new();
            write_quoted(&mut out, text).expect("a string takes it");
            out
        };
        assert_eq!(repr("a"), "'a'");
        assert_eq!(repr("it's"), "\"it's\"");
        assert_eq!(repr("it's \"so\"\n"), r#"'it\'s "so"\n'"#);
        assert_eq!(repr("\u{7}é\\"), r"'\x07é\\'");
    }

    #[test]
    fn json_options_are_those_of_json_dumps() {
        let value: Value =
            serde_json::from_str(r#"{"b": [1, {"é<": null}], "a": {}, "c": []}"#).expect("JSON");
        let dumps = |options: &[(&str, Value)]| {
            tojson(&value, &options.iter().map(|(name, value)| (*name, value.clone())).collect())
                .expect("options")
        };
        assert_eq!(dumps(&[]), r#"{"b": [1, {"é<": null}], "a": {}, "c": []}"#);
        assert_eq!(dumps(&[("sort_keys", true.into())]), r#"{"a": {}, "b": [1, {"é<": null}], "c": []}"#);
        assert_eq!(
            dumps(&[("ensure_ascii", true.into())]),
            r#"{"b": [1, {"\u00e9<": null}], "a": {}, "c": []}"#
        );
        assert_eq!(dumps(&[("separators", vec![",", ":"].into())]), r#"{"b":[1,{"é<":null}],"a":{},"c":[]}"#);
        let indented = "{\n \"b\": [\n  1,\n  {\n   \"é<\": null\n  }\n ],\n \"a\": {},\n \"c\": []\n}";
        assert_eq!(dumps(&[("indent", 1.into())]), indented);
        assert!(tojson(&value, &[("indentt", Value::from(1))].into_iter().collect()).is_err());
    }
}
