//! The part of ZeroMQ's wire protocol that KV events need: ZMTP 3.0 (<https://rfc.zeromq.org/spec/23/>) without security,
//! as SUB towards a PUB, and as DEALER towards a ROUTER.
//!
//! Written here because a peer's mistake must not end the gateway: every length that a peer states is bounded before
//! memory is had for it, every wait has a limit, and nothing is queued (a reader that is slow is felt by the sender, whose
//! high-water mark drops what the sequence check then notices). `docs/decisions/0005-own-zmtp.md` has what the libraries do.

mod codec;
mod connection;
mod endpoint;

pub use self::{
    codec::{Decoder, Frame, FrameError},
    connection::{Connection, Role, ZmtpError},
    endpoint::{Endpoint, EndpointError, worker_binds},
};
