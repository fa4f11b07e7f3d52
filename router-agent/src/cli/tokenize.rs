//! `warmpath tokenize`: what the gateway makes of request bodies, without a gateway.

use std::{
    io::{self, BufRead, Write},
    path::PathBuf,
};

use clap::Args;

use crate::{
    prompt::ApiKind,
    tokenize::{LoadError, LocalTokenizer, TokenCache},
};

/// Flags of `warmpath tokenize`.
#[derive(Clone, Debug, Args)]
#[command(after_help = "Example: the same that the worker says?\n  \
    echo '{\"messages\": [{\"role\": \"user\", \"content\": \"Hi\"}]}' > body.json\n  \
    warmpath tokenize /models/my-model < body.json\n  \
    curl -s http://127.0.0.1:8001/tokenize -H 'content-type: application/json' -d @body.json")]
pub struct TokenizeArgs {
    /// The model's directory, with tokenizer.json and tokenizer_config.json.
    directory: PathBuf,
    /// Print the rendered prompt, too.
    #[arg(long)]
    text: bool,
}

/// Why nothing is printed.
#[derive(Debug, thiserror::Error)]
pub enum TokenizeError {
    /// The directory cannot be used.
    #[error(transparent)]
    Load(#[from] LoadError),
    /// Standard input or output is broken.
    #[error("tokenize: {0}")]
    Io(#[from] io::Error),
}

/// For each line of standard input, a chat or text completion's body, prints one JSON object: `count`, `tokens` and how
/// many of them were known from the lines before (`cached`), or an `error`.
pub(super) fn run(args: &TokenizeArgs) -> Result<(), TokenizeError> {
    let tokenizer = LocalTokenizer::load(&args.directory)?;
    let cache = TokenCache::new(crate::limits::TOKEN_CACHE_BYTES_MAX);
    let mut out = io::stdout().lock();
    for line in io::stdin().lock().lines() {
        let line = line?;
        if line.trim().is_empty() {
            continue;
        }
        let kind = kind_of(line.as_bytes());
        let mut answer = match tokenizer.tokens(kind, line.as_bytes(), &cache) {
            Ok(encoded) => serde_json::json!({
                "count": encoded.tokens.len(),
                "cached": encoded.cached,
                "tokens": &encoded.tokens[..],
            }),
            Err(why) => serde_json::json!({"error": why.to_string()}),
        };
        if args.text
            && let Ok((text, _)) = tokenizer.text(kind, line.as_bytes())
        {
            answer["text"] = text.into();
        }
        writeln!(out, "{answer}")?;
    }
    Ok(())
}

/// A body with messages is a chat's.
fn kind_of(body: &[u8]) -> ApiKind {
    #[derive(serde::Deserialize)]
    struct Shape {
        messages: Option<serde::de::IgnoredAny>,
    }
    match serde_json::from_slice::<Shape>(body) {
        Ok(Shape { messages: None }) => ApiKind::Completions,
        _ => ApiKind::Chat,
    }
}
