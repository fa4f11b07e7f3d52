//! What the kernel says that it redirected, against what the client's socket says that it took: at each return of a stream,
//! and now and then while the kernel has it. A difference is a defect of the kernel or of ours, and ends that way of
//! relaying for good.

use std::time::{Duration, Instant};

use super::RawError;
use crate::{gateway::client_io::ClientSocket, kernel::relay};

/// How long bytes that were redirected may be nowhere: the worker may be inside `sendmsg`, or they wait for the kernel's own
/// thread.
const TRANSIT_TIMEOUT: Duration = Duration::from_secs(2);
/// Longest pause between two looks.
const PAUSE_MAX: Duration = Duration::from_millis(50);

/// What two readings of the redirected bytes, before and after one of those that the client's socket took, say.
#[derive(Debug, PartialEq, Eq)]
enum Count {
    Right,
    /// Some are on their way: look again.
    Moving,
    Wrong,
}

fn compare(before: u64, taken: u64, after: u64) -> Count {
    match () {
        () if taken > after => Count::Wrong,
        () if before == taken && taken == after => Count::Right,
        () => Count::Moving,
    }
}

/// Waits until the client's socket has taken what was redirected since it had been given `written` bytes, as `redirected`
/// tells it. Nothing may be written to the client before: it would overtake them.
///
/// Waits for as long as the client is slow; returns an error where bytes are missing although it is not.
pub(super) async fn settle(
    client: &ClientSocket,
    written: u64,
    redirected: impl Fn() -> u64,
) -> Result<(), RawError> {
    look(client, written, redirected, false).await
}

/// The same while the kernel goes on moving bytes: a stream that never rests is not waited for.
pub(super) async fn watch(
    client: &ClientSocket,
    written: u64,
    redirected: impl Fn() -> u64,
) -> Result<(), RawError> {
    look(client, written, redirected, true).await
}

async fn look(
    client: &ClientSocket,
    written: u64,
    redirected: impl Fn() -> u64,
    moves_on: bool,
) -> Result<(), RawError> {
    let mut still_since = Instant::now();
    let mut last = (0, 0);
    let mut looks = 0_u32;
    loop {
        let before = redirected();
        let taken = relay::written(&client.stream).map_err(RawError::Client)? - written;
        let after = redirected();
        match compare(before, taken, after) {
            Count::Right => return Ok(()),
            Count::Wrong => return Err(RawError::Mismatch { redirected: after, taken }),
            Count::Moving => {}
        }
        if !relay::is_established(&client.stream) {
            // The client has gone; who reads its socket sees it.
            let gone = std::io::ErrorKind::ConnectionReset.into();
            return if moves_on { Ok(()) } else { Err(RawError::Client(gone)) };
        }
        // A client that is slow leaves bytes in its socket. One that is not, and nothing moves: then they are lost.
        let is_slow = relay::outstanding(&client.stream).is_ok_and(|bytes| bytes > 0);
        if is_slow || last != (taken, after) {
            (still_since, last) = (Instant::now(), (taken, after));
            if moves_on && looks > 0 {
                return Ok(());
            }
        } else if still_since.elapsed() > TRANSIT_TIMEOUT {
            return Err(RawError::Mismatch { redirected: after, taken });
        }
        looks += 1;
        if looks < 20 {
            tokio::task::yield_now().await;
        } else {
            tokio::time::sleep(Duration::from_millis(u64::from(looks - 19)).min(PAUSE_MAX)).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_are_compared_between_two_readings() {
        assert_eq!(compare(10, 10, 10), Count::Right);
        assert_eq!(compare(10, 20, 20), Count::Moving, "the second reading may be of bytes that came since");
        assert_eq!(compare(10, 5, 10), Count::Moving, "bytes are counted before they are handed over");
        assert_eq!(compare(10, 21, 20), Count::Wrong);
    }

    async fn pair() -> (std::rc::Rc<ClientSocket>, tokio::net::TcpStream) {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let near =
            tokio::net::TcpStream::connect(listener.local_addr().expect("bound")).await.expect("it listens");
        (ClientSocket::new(near), listener.accept().await.expect("it connects").0)
    }

    #[tokio::test]
    async fn bytes_that_were_taken_are_counted_and_bytes_that_nobody_has_are_missed() {
        let (client, _peer) = pair().await;
        let before = relay::written(&client.stream).expect("a socket");
        client.write_all(b"12345").await.expect("it is open");
        settle(&client, before, || 5).await.expect("all are there");
        watch(&client, before, || 5).await.expect("all are there");
        let more = settle(&client, before, || 4).await;
        assert!(matches!(more, Err(RawError::Mismatch { redirected: 4, taken: 5 })), "{more:?}");
        let fewer = settle(&client, before, || 6).await;
        assert!(matches!(fewer, Err(RawError::Mismatch { redirected: 6, taken: 5 })), "{fewer:?}");
    }

    #[tokio::test]
    async fn a_client_that_is_slow_is_waited_for_and_one_that_is_gone_is_not() {
        let (client, peer) = pair().await;
        let before = relay::written(&client.stream).expect("a socket");
        // More than it takes without reading.
        let mut sent = 0;
        while let Ok(count) = client.stream.try_write(&[0; 16 * 1024]) {
            sent += count as u64;
        }
        let waiting = settle(&client, before, || sent + 1);
        assert!(tokio::time::timeout(TRANSIT_TIMEOUT * 2, waiting).await.is_err(), "it may read later");
        drop(peer); // with unread bytes: a reset
        let gone = settle(&client, before, || sent + 1).await;
        assert!(matches!(gone, Err(RawError::Client(_))), "{gone:?}");
    }
}
