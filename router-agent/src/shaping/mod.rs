//! What is made of a request before it is routed: the model that is served for the one that it names, and the members
//! that its tenant's requests have where they say nothing. See docs/shaping.md.
//!
//! Nothing here costs a request anything that nothing is configured for.

mod alias;
mod defaults;

pub use alias::{Serving, target};
pub use defaults::with_defaults;
