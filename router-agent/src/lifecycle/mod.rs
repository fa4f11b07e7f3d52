//! A gateway's life between its start and its end: reloads of its configuration.

mod reload;

pub use reload::{Reload, ReloadError};
