//! Where a text may be cut so that its pieces, tokenised one by one, give the tokens of the whole.
//!
//! Two kinds of places are known to be safe:
//!
//! * **Behind an added token** (`<|im_end|>`): the tokenizer splits those off before anything else looks at the text, and
//!   what stands between two of them is normalised, split and merged by itself. A token qualifies if it is found in the text
//!   as it stands (`normalized: false`), takes no spaces or words beside it into account (`lstrip`, `rstrip`,
//!   `single_word`), and occurs in no other added token, so that no longer match can swallow it.
//! * **Between an ASCII letter and a space**, for byte-level tokenizers whose first split is by one of the expressions in
//!   [`KNOWN_SPLITS`]: no alternative of those matches a letter and a space behind it, none looks back, and the only
//!   one that looks ahead does so behind white space, so every match ends there and the next one begins there whatever
//!   is on the other side. Merges stay inside matches. Normalisation must be none or NFC, to which a space behind a letter
//!   is a boundary, and no added token may span such a place or look across it.
//!
//! The cuts of a text depend on what is before them only (and on the space behind a cut of the second kind), so the cuts of
//! a conversation's turn are the first cuts of its next turn.

use aho_corasick::{AhoCorasick, MatchKind};
use serde::Deserialize;

/// A piece ends behind the first added token at or after this many bytes, so that pieces are not many.
const SHORT_BYTES: usize = 192;
/// A piece without such a token ends behind the first word after this many bytes.
const LONG_BYTES: usize = 1024;

/// First splits for which a letter and a space behind it are a boundary: GPT-2, Llama 3 (cl100k), Qwen 2, GPT-4o (o200k).
const KNOWN_SPLITS: [&str; 4] = [
    r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+",
];

/// `tokenizer.json`, as far as cutting looks into it.
#[derive(Debug, Deserialize)]
pub(super) struct Description {
    #[serde(default)]
    added_tokens: Vec<AddedToken>,
    normalizer: Option<Typed>,
    pre_tokenizer: Option<Typed>,
}

#[derive(Debug, Deserialize)]
#[expect(clippy::struct_excessive_bools, reason = "they are tokenizer.json's")]
struct AddedToken {
    id: u32,
    content: String,
    single_word: bool,
    lstrip: bool,
    rstrip: bool,
    normalized: bool,
}

/// A normaliser or a pre-tokenizer.
#[derive(Debug, Deserialize)]
struct Typed {
    r#type: String,
    pattern: Option<Pattern>,
    behavior: Option<String>,
    #[serde(default)]
    invert: bool,
    use_regex: Option<bool>,
    pretokenizers: Option<Vec<Typed>>,
}

#[derive(Debug, Deserialize)]
struct Pattern {
    #[serde(rename = "Regex")]
    regex: Option<String>,
}

/// Finds the places.
#[derive(Debug)]
pub(super) struct Cutter {
    /// All added tokens that are found in the text as it stands, and of each whether the text may be cut behind it.
    tokens: Option<(AhoCorasick, Vec<bool>)>,
    behind_words: bool,
    /// An added token behind which may be cut: its text and its id.
    pub(super) lead: Option<(String, u32)>,
}

impl Cutter {
    /// For the tokenizer so described.
    pub(super) fn new(description: &Description) -> Self {
        let found =
            || description.added_tokens.iter().filter(|token| !token.normalized && !token.content.is_empty());
        let qualifies = |token: &AddedToken| {
            let beside = token.lstrip || token.rstrip || token.single_word;
            let inside = |other: &AddedToken| other.id != token.id && other.content.contains(&token.content);
            !beside && !description.added_tokens.iter().any(inside)
        };
        let automaton = AhoCorasick::builder()
            .match_kind(MatchKind::LeftmostLongest)
            .build(found().map(|token| &token.content));
        let tokens = automaton.ok().map(|automaton| (automaton, found().map(qualifies).collect::<Vec<_>>()));
        Self {
            tokens: tokens.filter(|(_, qualified)| qualified.contains(&true)),
            behind_words: description.may_cut_behind_words(),
            lead: found().find(|token| qualifies(token)).map(|token| (token.content.clone(), token.id)),
        }
    }

    /// The pieces of `text`, in order; one that is all of it where there is no place to cut.
    pub(super) fn pieces<'t>(&self, text: &'t str) -> Vec<&'t str> {
        let mut pieces = Vec::with_capacity(text.len() / LONG_BYTES + 1);
        let mut begin = 0;
        if let Some((automaton, qualified)) = &self.tokens {
            for found in automaton.find_iter(text) {
                if qualified[found.pattern().as_usize()] {
                    self.cut_behind_words(text, &mut begin, found.end(), &mut pieces);
                    if found.end() - begin >= SHORT_BYTES {
                        pieces.push(&text[begin..found.end()]);
                        begin = found.end();
                    }
                }
            }
        }
        self.cut_behind_words(text, &mut begin, text.len(), &mut pieces);
        if begin < text.len() || pieces.is_empty() {
            pieces.push(&text[begin..]);
        }
        pieces
    }

    fn cut_behind_words<'t>(&self, text: &'t str, begin: &mut usize, end: usize, pieces: &mut Vec<&'t str>) {
        while self.behind_words && end - *begin > LONG_BYTES {
            let from = *begin + LONG_BYTES;
            let bytes = text.as_bytes();
            let Some(cut) = memchr::memchr_iter(b' ', &bytes[from..end])
                .map(|place| from + place)
                .find(|place| bytes[place - 1].is_ascii_alphabetic())
            else {
                return;
            };
            pieces.push(&text[*begin..cut]);
            *begin = cut;
        }
    }
}

impl Description {
    fn may_cut_behind_words(&self) -> bool {
        let spans = |token: &AddedToken| {
            let pair = |pair: &[u8]| pair[0].is_ascii_alphabetic() && pair[1] == b' ';
            let is_plain = !(token.lstrip || token.rstrip || token.single_word);
            !is_plain || token.content.as_bytes().windows(2).any(pair)
        };
        let normalizer = self.normalizer.as_ref().is_none_or(|normalizer| normalizer.r#type == "NFC");
        let splits = self.pre_tokenizer.as_ref().is_some_and(Typed::splits_behind_words);
        normalizer && splits && !self.added_tokens.iter().any(spans)
    }
}

impl Typed {
    /// `ByteLevel` with its own expression, or a `Split` by a known one with a `ByteLevel` without expression behind it.
    fn splits_behind_words(&self) -> bool {
        let is_byte_level = |step: &Self, by_regex: bool| {
            step.r#type == "ByteLevel" && step.use_regex.unwrap_or(true) == by_regex
        };
        match self.pretokenizers.as_deref() {
            None => is_byte_level(self, true),
            Some([split, bytes]) => {
                let regex = split.pattern.as_ref().and_then(|pattern| pattern.regex.as_deref());
                split.r#type == "Split"
                    && split.behavior.as_deref() == Some("Isolated")
                    && !split.invert
                    && regex.is_some_and(|regex| KNOWN_SPLITS.contains(&regex))
                    && is_byte_level(bytes, false)
            }
            Some(_) => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cutter(json: &str) -> Cutter {
        Cutter::new(&serde_json::from_str(json).expect("a description"))
    }

    fn token(id: u32, content: &str, more: &str) -> String {
        let plain = r#""single_word": false, "lstrip": false, "rstrip": false, "normalized": false"#;
        let mut options = plain.to_owned();
        for name in more.split_whitespace() {
            options = options.replace(&format!("\"{name}\": false"), &format!("\"{name}\": true"));
        }
        format!(r#"{{"id": {id}, "content": "{content}", {options}}}"#)
    }

    fn with_tokens(tokens: &[String]) -> Cutter {
        cutter(&format!(
            r#"{{"added_tokens": [{}], "normalizer": null, "pre_tokenizer": null}}"#,
            tokens.join(",")
        ))
    }

    #[test]
    fn a_text_is_cut_behind_tokens_that_stand_for_themselves() {
        let plain =
            with_tokens(&[token(0, "<end>", ""), token(1, "<x>", "rstrip"), token(2, "<y>", "normalized")]);
        let long = "a ".repeat(SHORT_BYTES / 2);
        let text = format!("{long}<end>{long}<x>{long}<y>b<end>c");
        let first = long.len() + 5;
        assert_eq!(plain.pieces(&text), [&text[..first], &text[first..text.len() - 1], "c"]);
        assert_eq!(plain.lead, Some(("<end>".to_owned(), 0)));
        assert_eq!(plain.pieces(""), [""], "an empty text is one piece");
        assert_eq!(plain.pieces("a<end>b<end>"), ["a<end>b<end>"], "pieces are not too short");
    }

    #[test]
    fn a_token_inside_another_one_is_no_boundary() {
        let nested = with_tokens(&[token(0, "<end>", ""), token(1, "<end>of", "")]);
        let long = format!("{}<end>of all", "a ".repeat(SHORT_BYTES));
        assert_eq!(nested.pieces(&long).len(), 2, "behind the longer one");
        let short = format!("{}<end>x", "a ".repeat(SHORT_BYTES));
        assert_eq!(nested.pieces(&short).len(), 1);
    }

    #[test]
    fn words_are_boundaries_for_known_splits_only() {
        let text = "word ".repeat(1000);
        let with = |split: &str, tokens: &str| {
            let regex = serde_json::to_string(split).expect("a string");
            let json = format!(
                r#"{{"added_tokens": [{tokens}], "pre_tokenizer": {{"type": "Sequence", "pretokenizers": [
                {{"type": "Split", "pattern": {{"Regex": {regex}}}, "behavior": "Isolated", "invert": false}},
                {{"type": "ByteLevel", "use_regex": false}}]}}}}"#
            );
            cutter(&json).pieces(&text).len()
        };
        for split in KNOWN_SPLITS {
            assert_eq!(with(split, ""), 5);
        }
        assert_eq!(with(r"\w+ \w+", ""), 1);
        assert_eq!(with(KNOWN_SPLITS[1], &token(9, "end of text", "")), 1, "a token may span words");
        assert_eq!(with(KNOWN_SPLITS[1], &token(9, "<m>", "lstrip")), 1, "a token may take spaces");
        let gpt2 = r#"{"pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": false}}"#;
        assert_eq!(cutter(gpt2).pieces(&text).len(), 5);
    }
}
