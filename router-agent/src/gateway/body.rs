//! Collects a request body: bounded in bytes and in pauses, copied at most once.

use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http_body_util::BodyExt;
use hyper::body::{Body, Incoming};

use super::GatewayError;
use crate::limits;

/// Reserved at most before data is there: a client that declares much and sends nothing must not be given memory for it.
const RESERVE_BYTES_MAX: usize = 1 << 20;

/// Reads the whole body. A declared length above `bytes_max` is refused before anything is read.
pub(super) async fn collect(
    mut body: Incoming,
    bytes_max: usize,
    idle_timeout: Duration,
) -> Result<Bytes, GatewayError> {
    if body.is_end_stream() {
        return Ok(Bytes::new());
    }
    let too_large = GatewayError::BodyTooLarge { limit: bytes_max };
    let declared = body.size_hint().lower() as usize;
    if declared > bytes_max {
        return Err(too_large);
    }
    let Some(first) = next(&mut body, idle_timeout).await? else { return Ok(Bytes::new()) };
    if first.len() > bytes_max {
        return Err(too_large);
    }
    if body.is_end_stream() {
        return Ok(first); // a prompt that came with its head: nothing is copied
    }
    let mut all =
        BytesMut::with_capacity(declared.clamp(first.len() * 2, RESERVE_BYTES_MAX.max(first.len())));
    all.extend_from_slice(&first);
    drop(first);
    while let Some(data) = next(&mut body, idle_timeout).await? {
        if all.len() + data.len() > bytes_max {
            return Err(too_large);
        }
        all.extend_from_slice(&data);
    }
    Ok(all.freeze())
}

/// Reads the body of a request that is refused, if it is short; whether the connection can carry another request.
pub(super) async fn discard(body: Incoming, idle_timeout: Duration) -> bool {
    body.is_end_stream() || collect(body, limits::REFUSED_BODY_BYTES_MAX, idle_timeout).await.is_ok()
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
