//! `warmpath explain`: where a running gateway would send a request, and why, without sending it.

use std::{
    fs,
    io::{self, Read as _, Write as _},
    path::PathBuf,
};

use clap::Args;
use http::Method;
use serde_json::{Value, json};

use super::{
    admin::{AdminArgs, AdminClient, AdminError, encoded},
    columns,
    workers::text,
};

/// Arguments of `warmpath explain`.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  \
    warmpath explain 'You are a helpful assistant. What is a radix tree?'\n  \
    warmpath explain --model llama-3 --session alice 'And a trie?'\n  \
    warmpath explain --file body.json            # as a client would send it, to any of the inference paths\n  \
    warmpath explain --file - --json < body.json\n\n\
Nothing is sent to a worker, counted or remembered.")]
pub struct ExplainArgs {
    /// A prompt: the one user message of a chat.
    #[arg(required_unless_present = "file", conflicts_with = "file")]
    prompt: Option<String>,
    /// The whole body of a request, JSON; `-` for standard input.
    #[arg(long, value_name = "FILE")]
    file: Option<PathBuf>,
    /// The model that is asked for [default: none is named].
    #[arg(long, conflicts_with = "file")]
    model: Option<String>,
    /// The path that the body is for [default: what its members say].
    #[arg(long, value_name = "PATH")]
    path: Option<String>,
    /// The session's key.
    #[arg(long, value_name = "KEY")]
    session: Option<String>,
    /// Whose request it would be [default: of somebody who may use every model].
    #[arg(long, value_name = "NAME")]
    tenant: Option<String>,
    /// As the admin API answers it.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    admin: AdminArgs,
}

/// Why there is no explanation.
#[derive(Debug, thiserror::Error)]
pub enum ExplainError {
    /// The gateway.
    #[error("explain: {0}")]
    Admin(#[from] AdminError),
    /// The body.
    #[error("explain: cannot read {}: {source}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// The system's word.
        source: io::Error,
    },
    /// Nobody reads what is printed.
    #[error("explain: cannot print: {0}")]
    Output(#[from] io::Error),
}

pub(super) fn run(args: &ExplainArgs) -> Result<(), ExplainError> {
    let body = body(args)?;
    let asked = [("path", &args.path), ("session", &args.session), ("tenant", &args.tenant)];
    let query: Vec<_> = asked
        .iter()
        .filter_map(|(name, value)| value.as_deref().map(|value| format!("{name}={}", encoded(value))))
        .collect();
    let path = if query.is_empty() { "/explain".to_owned() } else { format!("/explain?{}", query.join("&")) };
    let client = AdminClient::new(&args.admin)?;
    let explanation = client.ask(Method::POST, &path, body.into())?;
    let said = if args.json { format!("{explanation:#}\n") } else { for_people(&explanation) };
    match io::stdout().write_all(said.as_bytes()) {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        other => Ok(other?),
    }
}

fn body(args: &ExplainArgs) -> Result<Vec<u8>, ExplainError> {
    let Some(path) = &args.file else {
        let mut body = json!({ "messages": [{ "role": "user", "content": args.prompt }] });
        if let Some(model) = &args.model {
            body["model"] = model.as_str().into();
        }
        return Ok(body.to_string().into_bytes());
    };
    let read = if path.as_os_str() == "-" {
        let mut bytes = Vec::new();
        io::stdin().read_to_end(&mut bytes).map(|_| bytes)
    } else {
        fs::read(path)
    };
    read.map_err(|source| ExplainError::File { path: path.clone(), source })
}

fn for_people(explanation: &Value) -> String {
    let tokens = match explanation["tokens_from"].as_str() {
        Some(from) => format!("{} tokens (ids {from})", explanation["prompt_tokens"]),
        None => format!("about {} tokens", explanation["prompt_tokens"]),
    };
    let winner = &explanation["winner"];
    let verdict = if winner.is_object() {
        let expected = match winner["time_to_first_token_seconds"].as_f64() {
            Some(seconds) => format!(", first token expected after {:.0} ms", seconds * 1e3),
            None => String::new(),
        };
        format!("{}: {}{expected}", text(winner, "worker"), text(winner, "reason"))
    } else {
        "nobody can take it now: it would wait".to_owned()
    };
    let cost = match explanation["cost_unit"].as_str() {
        None => "COST".to_owned(),
        Some(unit) => format!("COST ({unit})"),
    };
    let heads = ["", "WORKER", "CACHED", "TO PREFILL", "PREFILL QUEUE", "REQUESTS", &cost, "CANNOT"]
        .map(str::to_owned);
    let row = |part: &Value| {
        [
            if part["wins"] == true { "→" } else { "" }.to_owned(),
            text(part, "worker"),
            format!("{} ({})", part["matched_tokens"], text(part, "match_kind")),
            text(part, "new_tokens"),
            text(part, "queued_prefill_tokens"),
            text(part, "requests"),
            text(part, "cost"),
            part["excluded"].as_str().unwrap_or_default().to_owned(),
        ]
    };
    let parts = explanation["workers"].as_array().map_or(&[][..], Vec::as_slice);
    let rows: Vec<_> = std::iter::once(heads).chain(parts.iter().map(row)).collect();
    let (policy, route) = (text(explanation, "policy"), text(explanation, "route"));
    format!("{policy}, {route}, {tokens}\n{verdict}\n\n{}", columns(&rows))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_winner_comes_with_its_reason_and_the_others_with_what_kept_them() {
        let explanation = json!({
            "policy": "warm", "route": "chat", "prompt_tokens": 120, "cost_unit": "microseconds",
            "winner": {"worker": "a", "reason": "prefix_hit", "time_to_first_token_seconds": 0.0421},
            "workers": [
                {"worker": "a", "wins": true, "matched_tokens": 96, "match_kind": "exact", "new_tokens": 24,
                 "queued_prefill_tokens": 0, "requests": 1, "cost": 4200},
                {"worker": "b", "wins": false, "excluded": "draining", "matched_tokens": 0, "match_kind": "approximate",
                 "new_tokens": 120, "queued_prefill_tokens": 7, "requests": 2, "cost": 9000},
            ],
        });
        let said = for_people(&explanation);
        let lines: Vec<_> = said.lines().collect();
        assert_eq!(
            lines[..3],
            ["warm, chat, about 120 tokens", "a: prefix_hit, first token expected after 42 ms", ""]
        );
        assert!(lines[3].contains("COST (microseconds)"), "{said}");
        assert!(lines[4].starts_with("→") && lines[4].contains("96 (exact)"), "{said}");
        assert!(lines[5].ends_with("draining"), "{said}");
        let nobody = for_people(&json!({"workers": [], "prompt_tokens": 1, "policy": "random"}));
        assert!(nobody.contains("it would wait"), "{nobody}");
    }
}
