//! What the workers will say to each prompt: asked beforehand of a worker that nothing happens to.

use anyhow::{Context, Result};
use http_body_util::{BodyExt, Full};
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::net::TcpStream;
use warmpath_tests::{Sim, SimConfig};

use super::SEED;

/// Beginnings that prompts share, as conversations do.
const FAMILIES: usize = 24;
/// Prompts of a family.
const MEMBERS: usize = 12;
/// Longest answer, in words of [`WORD_BYTES`].
pub(super) const WORDS_MAX: usize = 48;
/// Bytes of a word, one token.
pub(super) const WORD_BYTES: usize = 4;

/// Prompts, each with the whole of its longest answer.
pub(super) struct Answers {
    pairs: Vec<(String, String)>,
}

impl Answers {
    /// Asks a worker of the fleet's seed, many times as fast.
    pub(super) async fn learn(seed: u64) -> Result<Self> {
        let mut config = SimConfig { seed: SEED, ..SimConfig::default() };
        config.engine.time.time_scale = 100.0;
        let reference = Sim::start_thread(config)?;
        let stream = TcpStream::connect(reference.addr()).await?;
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
        tokio::spawn(connection);
        let mut random = fastrand::Rng::with_seed(seed);
        let mut pairs = Vec::new();
        for family in 0..FAMILIES {
            let words: Vec<String> =
                (0..random.usize(50..400)).map(|_| format!("{family}-{}", random.u16(..))).collect();
            let beginning = words.join(" ");
            for member in 0..MEMBERS {
                let prompt = format!("{beginning} question {member} of {}", random.u64(..));
                let body = body(&prompt, WORDS_MAX, false).to_string();
                let request = hyper::Request::post("/v1/chat/completions")
                    .header("host", "chaos")
                    .header("content-type", "application/json")
                    .body(Full::<bytes::Bytes>::from(body))?;
                sender.ready().await?;
                let answer = sender.send_request(request).await?.into_body().collect().await?.to_bytes();
                let answer: Value = serde_json::from_slice(&answer)?;
                let text = answer.pointer("/choices/0/message/content").and_then(Value::as_str);
                pairs.push((prompt, text.context("the reference worker gives no content")?.to_owned()));
            }
        }
        Ok(Self { pairs })
    }

    /// A prompt and its longest answer.
    pub(super) fn draw(&self, random: &mut fastrand::Rng) -> (&str, &str) {
        let (prompt, answer) = &self.pairs[random.usize(..self.pairs.len())];
        (prompt, answer)
    }
}

/// A chat request for just `words` words.
pub(super) fn body(prompt: &str, words: usize, stream: bool) -> Value {
    json!({
        "model": "sim",
        "messages": [{"role": "user", "content": prompt}],
        "max_tokens": words,
        "ignore_eos": true,
        "stream": stream,
    })
}
