//! A gateway's life between its start and its end: reloads of its configuration, workers that come and go.

mod members;
mod reload;

pub use members::{Added, MemberError, Members};
pub use reload::{Reload, ReloadError};
