//! A gateway's life between its start and its end: reloads of its configuration, workers that come and go, its successor,
//! and what systemd is told of it all.

mod activation;
pub mod handover;
mod members;
mod reload;
mod roster;
mod signals;
pub mod successor;
pub mod systemd;
pub mod thrift;
mod watch;

pub use activation::Activated;
pub use members::{Added, MemberError, Members};
pub use reload::{Reload, ReloadError};
pub use roster::Roster;
pub use signals::{Signals, Wanted};
pub use successor::Keeper;
pub use watch::Watch;
