//! A chat template (Jinja, as Hugging Face's tokenizers carry it), compiled once and rendered as transformers renders it.
//!
//! The language is minijinja's with Python's methods on strings, lists and dicts, transformers' globals and filters
//! (`raise_exception`, `strftime_now`, `tojson`), loop controls, and the `generation` tag, which marks what an assistant
//! said and writes nothing. Steps are bounded ([`FUEL`]): a template is the operator's, but loops over what clients send.

use minijinja::{
    AutoEscape, Environment, Error, ErrorKind, Value,
    machinery::{self, ast},
    syntax::SyntaxConfig,
    value::Kwargs,
};

use super::{content_format, content_format::ContentFormat, python};

/// Instructions of the template engine for one prompt: some hundred per message are usual.
const FUEL: u64 = 20_000_000;

/// The one template of an environment.
const NAME: &str = "chat_template";

/// What transformers appends to the message that is to be continued, to find its end in the rendered text.
const CONTINUE_TAG: &str = "CONTINUE_FINAL_MESSAGE_TAG ";

/// A compiled template.
#[derive(Debug)]
pub(super) struct ChatTemplate {
    environment: Environment<'static>,
    /// As vLLM detects it (`--chat-template-content-format auto`).
    pub(super) content_format: ContentFormat,
    /// Whether the template knows the role `developer`; if not, vLLM makes system messages of those.
    pub(super) knows_developers: bool,
    names_content: bool,
}

impl ChatTemplate {
    pub(super) fn compile(source: &str) -> Result<Self, Error> {
        let syntax = || SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build();
        let readable = without_generation_tags(source);
        let parsed = machinery::parse(&readable, NAME, syntax()?)?;
        let content_format = match &parsed {
            ast::Stmt::Template(template) => content_format::detect(&template.children),
            _ => ContentFormat::Text,
        };
        let mut environment = Environment::new();
        environment.set_syntax(syntax()?);
        environment.set_auto_escape_callback(|_| AutoEscape::None);
        environment.set_fuel(Some(FUEL));
        environment.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
        environment.set_formatter(|out, _, value| {
            python::write_str(out, value)
                .map_err(|error| Error::new(ErrorKind::WriteFailure, error.to_string()))
        });
        environment.add_filter("tojson", |value: Value, options: Kwargs| python::tojson(&value, &options));
        environment.add_filter("string", |value: Value| python::str(&value));
        environment.add_test("iterable", |value: &Value| python::is_iterable(value));
        environment.add_test("sequence", |value: &Value| python::is_sequence(value));
        environment.add_function("raise_exception", |message: String| -> Result<Value, Error> {
            Err(Error::new(ErrorKind::InvalidOperation, message))
        });
        environment.add_function("strftime_now", strftime_now);
        environment.add_template_owned(NAME, readable)?;
        Ok(Self {
            environment,
            content_format,
            knows_developers: source.contains("\"developer\"") || source.contains("'developer'"),
            names_content: source.contains("content"),
        })
    }

    /// The prompt for these variables; `messages` is among them, its last member given as `continued` if that message is
    /// to be continued: then the prompt ends with it.
    pub(super) fn render(&self, variables: Value) -> Result<String, Error> {
        self.environment.get_template(NAME)?.render(variables)
    }

    /// `text` with the mark by which [`ChatTemplate::cut_at_mark`] finds the end of that message.
    pub(super) fn mark(text: &str) -> String {
        format!("{text}{CONTINUE_TAG}")
    }

    /// The prompt up to the end of the message that is continued, whose text is `continued`.
    pub(super) fn cut_at_mark(&self, mut prompt: String, continued: &str) -> Result<String, Error> {
        let refused = |why: &str| Err(Error::new(ErrorKind::InvalidOperation, why.to_owned()));
        if !self.names_content {
            return refused("the template has no content that could be continued");
        }
        let Some(end) = prompt.rfind(CONTINUE_TAG.trim_end()).filter(|_| prompt.contains(continued.trim()))
        else {
            return refused("the template leaves out the message that is to be continued");
        };
        // Without the tag's space the template has trimmed the message, so what is continued is trimmed, too.
        let keeps_spaces = prompt[end..].starts_with(CONTINUE_TAG);
        prompt.truncate(end);
        if !keeps_spaces {
            prompt.truncate(prompt.trim_end().len());
        }
        Ok(prompt)
    }
}

/// `datetime.now().strftime(format)`, in this host's time zone.
fn strftime_now(format: &str) -> Result<String, Error> {
    jiff::fmt::strtime::format(format, &jiff::Zoned::now())
        .map_err(|error| Error::new(ErrorKind::InvalidOperation, format!("strftime_now: {error}")))
}

/// `{% generation %}` … `{% endgeneration %}` as `{% with %}` … `{% endwith %}`: a scope of its own, and no more.
fn without_generation_tags(source: &str) -> String {
    let mut out = String::with_capacity(source.len());
    let mut rest = source;
    while let Some(start) = rest.find("{%") {
        let (before, tag) = rest.split_at(start + 2);
        out.push_str(before);
        rest = tag;
        let end = tag.find("%}").unwrap_or(tag.len());
        let word = tag[..end].trim_matches(|c: char| c.is_ascii_whitespace() || c == '-' || c == '+');
        let replacement = match word {
            "generation" => "with",
            "endgeneration" => "endwith",
            _ => continue,
        };
        out.push_str(&tag[..end].replace(word, replacement));
        rest = &tag[end..];
    }
    out.push_str(rest);
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn render(source: &str) -> Result<String, Error> {
        ChatTemplate::compile(source)?.render(Value::from_pairs([("words", vec!["a", "b"])]))
    }

    #[test]
    fn the_generation_tag_writes_nothing_and_is_a_scope() {
        let source = "{% set x = 1 %}a{%- generation -%} b {%- set x = 2 %}{%+ endgeneration +%} c{{ x }}";
        assert_eq!(render(source).expect("it renders"), "ab c1");
        assert_eq!(without_generation_tags("{% generation"), "{% with");
    }

    #[test]
    fn tests_say_of_values_what_python_says() {
        let source = "{% for x in [none, 1, true, 'a', [1], {'a': 1}] %}{{ x is iterable }} {{ x is sequence }};{% endfor %}\
                      {{ nothing is iterable }} {{ [1, 'a', none] | string }}";
        let expected =
            "False False;False False;False False;True True;True True;True True;True [1, 'a', None]";
        assert_eq!(render(source).expect("it renders"), expected);
    }

    #[test]
    fn what_a_template_raises_is_its_error() {
        let error = render("{{ raise_exception('Roles must alternate') }}").expect_err("it raises");
        assert!(error.to_string().contains("Roles must alternate"), "{error}");
    }

    #[test]
    fn the_date_is_todays() {
        let today = jiff::Zoned::now();
        let year = render("{{ strftime_now('%Y') }}").expect("it renders");
        assert!(year == today.year().to_string() || year == (today.year() + 1).to_string(), "{year}");
        assert!(render("{{ strftime_now('%!') }}").is_err(), "an unknown directive is an error, not a panic");
    }

    #[test]
    fn a_template_without_end_is_ended() {
        let nested = "{% for a in range(9999) %}{% for b in range(9999) %}{{ b }}{% endfor %}{% endfor %}";
        assert!(render(nested).expect_err("out of fuel").to_string().contains("fuel"));
    }
}
