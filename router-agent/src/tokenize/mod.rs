//! The token ids that the engine will see, known before a worker is chosen.
//!
//! | source | the tokens are |
//! |---|---|
//! | given | in the request itself (a completion's prompt as ids) |
//! | local | made here: the model's chat template and tokenizer, on threads of their own |
//! | worker | asked of a worker's `/tokenize`, and remembered |
//! | off | not known: lengths are estimated from bytes |
//!
//! Where tokens cannot be had, or not in time, the request goes on without them ([`Unknown`] says why); nothing fails for
//! want of a tokenizer. docs/tokens.md has the rules, the equality that is tested, and the figures.

mod cache;
mod chat;
mod content_format;
mod cut;
mod encoder;
mod error;
mod local;
mod pool;
mod python;
mod service;
mod template;
#[cfg(test)]
mod tests;
mod tools;

pub use self::{
    cache::TokenCache,
    encoder::Encoded,
    error::{LoadError, Unknown},
    local::LocalTokenizer,
    service::{Local, Source, Tokenizers},
};
