//! Collects a request body: bounded in bytes, alone and with all others, and in pauses.
//!
//! Memory is taken for what has come, not for what was announced: a client that declares much and sends nothing holds
//! nothing. So a long body is moved a few times while it grows.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use http_body_util::BodyExt;
use hyper::body::{Body, Incoming};

use super::{
    GatewayError,
    bodies::{Bodies, Collected, Held},
};
use crate::limits;

/// Up to here, room is made for four times what has come; then for twice.
const QUICK_GROWTH_BYTES: usize = 256 * 1024;

/// What bounds a body.
#[derive(Debug, Clone, Copy)]
pub(super) struct Bounds {
    pub(super) bytes_max: usize,
    /// Of all bodies in memory.
    pub(super) all_bytes_max: usize,
    pub(super) idle_timeout: Duration,
}

/// Reads the whole body. A declared length above the limit is refused before anything is read.
pub(super) async fn collect(
    mut body: Incoming,
    bodies: &Arc<Bodies>,
    bounds: Bounds,
) -> Result<Collected, GatewayError> {
    let Bounds { bytes_max, all_bytes_max, idle_timeout } = bounds;
    let mut held = Held::new(bodies);
    if body.is_end_stream() {
        return Ok(Collected { bytes: Bytes::new(), held });
    }
    let too_large = GatewayError::BodyTooLarge { limit: bytes_max };
    let no_room = GatewayError::BodiesTooLarge { limit: all_bytes_max };
    let declared = body.size_hint().exact().map(|length| length as usize);
    if body.size_hint().lower() as usize > bytes_max {
        return Err(too_large);
    }
    let Some(first) = next(&mut body, idle_timeout).await? else {
        return Ok(Collected { bytes: Bytes::new(), held });
    };
    if first.len() > bytes_max {
        return Err(too_large);
    }
    if body.is_end_stream() {
        // A prompt that came with its head: nothing is copied.
        return if held.grow_to(first.len(), all_bytes_max) {
            Ok(Collected { bytes: first, held })
        } else {
            Err(no_room)
        };
    }
    let mut all = Vec::new();
    let mut piece = first;
    loop {
        let length = all.len() + piece.len();
        if length > bytes_max {
            return Err(too_large);
        }
        if length > all.capacity() {
            let growth = if length < QUICK_GROWTH_BYTES { 4 } else { 2 };
            let room = (length * growth).min(declared.unwrap_or(bytes_max)).max(length);
            if !held.grow_to(room, all_bytes_max) {
                return Err(no_room);
            }
            all.reserve_exact(room - all.len());
        }
        all.extend_from_slice(&piece);
        match next(&mut body, idle_timeout).await? {
            Some(next) => piece = next,
            None => return Ok(Collected { bytes: all.into(), held }),
        }
    }
}

/// Reads the body of a request that is refused, if it is short; whether the connection can carry another request.
pub(super) async fn discard(mut body: Incoming, idle_timeout: Duration) -> bool {
    if body.size_hint().lower() > limits::REFUSED_BODY_BYTES_MAX as u64 {
        return false;
    }
    let mut bytes = 0;
    while !body.is_end_stream() {
        match next(&mut body, idle_timeout).await {
            Ok(Some(data)) if bytes + data.len() <= limits::REFUSED_BODY_BYTES_MAX => bytes += data.len(),
            Ok(None) => return true,
            _ => return false,
        }
    }
    true
}

/// The next piece of data; trailers are passed over.
async fn next(body: &mut Incoming, idle_timeout: Duration) -> Result<Option<Bytes>, GatewayError> {
    loop {
        let frame = tokio::time::timeout(idle_timeout, body.frame())
            .await
            .map_err(|_| GatewayError::BodyTimeout(idle_timeout))?;
        match frame {
            None => return Ok(None),
            Some(Err(error)) => {
                tracing::debug!(%error, "request body broke off");
                return Err(GatewayError::BodyBroken);
            }
            Some(Ok(frame)) => {
                if let Ok(data) = frame.into_data() {
                    return Ok(Some(data));
                }
            }
        }
    }
}
