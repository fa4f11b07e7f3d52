//! Connections to workers: connecting, pooling, sending.
//!
//! Every data thread has pools of its own ([`Pool`]), so that a connection never changes threads and no lock is taken.
//! A connection is leased for one request ([`Lease`]) and either handed back clean or closed: closing is how a worker
//! learns that nobody waits any more (vLLM aborts a request within ~25 ms of its connection's end).

mod connect;
pub mod fetch;
mod lease;
mod outgoing;
mod pool;
mod seam;
mod send;

pub use connect::ConnectError;
pub use lease::{Lease, Place, RawBody};
pub use pool::{Pool, PoolSettings};
pub use seam::Hold;
pub use send::{SendError, Sent, is_event_stream, send};
