//! The HTTP API: routes, parameters, bodies.

mod chat;
mod completions;
mod error;
mod events;
mod exchange;
mod fields;
mod generate;
mod info;
mod job;
mod messages;
mod params;
mod prompt;
mod render;
mod responses;
mod routes;

pub(crate) use error::ApiError;
pub(crate) use exchange::{Exchange, Outcome};
pub(crate) use fields::Fields;
pub(crate) use prompt::PromptReader;
