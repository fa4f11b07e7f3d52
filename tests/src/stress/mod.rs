//! A storm of scripted responses through a gateway, every byte of them checked: for the short behaviour test and for
//! `cargo xtask bench relay --stress`.
//!
//! A response is a function of its seed ([`Script`]): its length (0 B to a limit, every order of magnitude as likely,
//! and lengths at which buffers change), its framing (Content-Length; chunked with extensions, leading zeros, trailers,
//! one-byte chunks), how the worker cuts it into writes and pauses between them, and whether the worker dies, by FIN or
//! reset, in head or body. What the client does follows from the same seed: it takes the response over a route that
//! the kernel may relay or over one that is always copied, hangs up somewhere, stalls. A quarter of the connections
//! read slowly through a small buffer. Requests follow each other on kept connections.
//!
//! Each response must be what the script says, byte for byte (compared with the content at its position, and its xxh3
//! with the one that the worker sent ahead), and end where it should; or be visibly unfinished, or end with an error
//! event, where the worker died. Anything else is a difference. Every wait has a limit, and beyond it is a hang; the
//! sockets of hangs stay open to the end of the storm, to be looked at. Order and interleaving depend on timing; what
//! one seed sends and expects does not.

mod client;
mod content;
mod decode;
mod script;
mod worker;

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

pub use content::Random;
pub use decode::Decoder;
pub use script::{Death, Framing, Profile, Script};
pub use worker::{serve, start_worker};

use client::{Connection, Failure, Habits, Outcome};

/// A connection slot gives up after so many findings: the rest would be the same.
const FINDINGS_PER_SLOT_MAX: usize = 5;

/// How large a storm.
#[derive(Debug, Clone, Copy)]
pub struct Storm {
    /// Where it goes.
    pub gateway: SocketAddr,
    /// The responses' seeds follow from it.
    pub seed: u64,
    /// All together.
    pub responses: u64,
    /// At once.
    pub connections: u64,
    /// What responses are drawn from.
    pub profile: Profile,
    /// Whether clients hang up.
    pub hang_ups: bool,
    /// Longest wait for anything.
    pub patience: Duration,
}

/// Something that must not be.
#[derive(Debug, Clone, serde::Serialize, serde::Deserialize)]
pub struct Finding {
    /// Of the response.
    pub seed: u64,
    /// Nothing came; otherwise something wrong.
    pub is_hang: bool,
    /// Our end's port.
    pub port: u16,
    /// All that the client knows.
    pub what: String,
}

/// What came of a storm.
#[derive(Debug, Clone, Default, serde::Serialize, serde::Deserialize)]
pub struct Summary {
    /// Responses that came whole.
    pub whole: u64,
    /// That ended visibly unfinished where the worker had died.
    pub broken: u64,
    /// That the client did not want to the end.
    pub hung_up: u64,
    /// Content bytes.
    pub bytes: u64,
    /// Client connections opened.
    pub connections: u64,
    /// What must not be.
    pub findings: Vec<Finding>,
}

impl Summary {
    /// Wrong, missing or unexpected bytes.
    pub fn differences(&self) -> usize {
        self.findings.iter().filter(|finding| !finding.is_hang).count()
    }

    /// Waits beyond the limit.
    pub fn hangs(&self) -> usize {
        self.findings.iter().filter(|finding| finding.is_hang).count()
    }
}

/// Counts of a storm under way, and where its connections are kept that hang.
#[derive(Default)]
struct Shared {
    next: AtomicU64,
    summary: Mutex<Summary>,
    hung: Mutex<BTreeMap<u64, Connection>>,
}

/// Runs a storm to its end. `tell` gets each finding at once, while the connection is still as it was.
pub async fn storm(storm: Storm, tell: impl Fn(&Finding) + Send + Sync + 'static) -> Summary {
    let shared = Arc::new(Shared::default());
    let tell = Arc::new(tell);
    let slots: Vec<_> = (0..storm.connections)
        .map(|number| {
            let (shared, tell) = (shared.clone(), tell.clone());
            tokio::spawn(async move { slot(number, storm, &shared, &*tell).await })
        })
        .collect();
    for slot in slots {
        slot.await.expect("a slot reports, it does not panic");
    }
    shared.hung.lock().unwrap_or_else(PoisonError::into_inner).clear();
    std::mem::take(&mut shared.summary.lock().unwrap_or_else(PoisonError::into_inner))
}

/// One connection after another, until all responses of the storm have been asked for.
async fn slot(number: u64, storm: Storm, shared: &Shared, tell: &(impl Fn(&Finding) + Sync)) {
    let Storm { gateway, patience, profile, hang_ups, .. } = storm;
    let habits = Habits { gateway, patience, profile, hang_ups, slow: number % 4 == 3 };
    let mut connection = None;
    let mut findings = 0;
    loop {
        let index = shared.next.fetch_add(1, Relaxed);
        if index >= storm.responses || findings >= FINDINGS_PER_SLOT_MAX {
            return;
        }
        let script = Script::of(Random::new(storm.seed.wrapping_add(index << 20)).next_u64(), profile);
        let mut current = match connection.take() {
            Some(current) => current,
            None => match Connection::open(&habits).await {
                Ok(opened) => {
                    shared.summary.lock().unwrap_or_else(PoisonError::into_inner).connections += 1;
                    opened
                }
                Err(error) => {
                    findings += 1;
                    let what = format!("cannot connect: {error}");
                    report(shared, tell, Finding { seed: script.seed, is_hang: true, port: 0, what });
                    continue;
                }
            },
        };
        match current.exchange(&habits, &script).await {
            Ok((outcome, reusable, bytes)) => {
                let mut summary = shared.summary.lock().unwrap_or_else(PoisonError::into_inner);
                summary.bytes += bytes;
                match outcome {
                    Outcome::Whole => summary.whole += 1,
                    Outcome::Broken => summary.broken += 1,
                    Outcome::HungUp => summary.hung_up += 1,
                }
                connection = reusable.then_some(current);
            }
            Err(failure) => {
                findings += 1;
                let (is_hang, what) = match failure {
                    Failure::Difference(what) => (false, what),
                    Failure::Hang(what) => (true, what),
                };
                let Script { seed, length, framing, is_event_stream, death, .. } = script;
                let what = format!(
                    "{what} (response {} of its connection, {length} B, {framing:?}, event stream: \
                     {is_event_stream}, death: {death:?}, slow reader: {})",
                    current.used() + 1,
                    habits.slow
                );
                report(shared, tell, Finding { seed, is_hang, port: current.port(), what });
                if is_hang {
                    shared.hung.lock().unwrap_or_else(PoisonError::into_inner).insert(index, current);
                }
            }
        }
    }
}

fn report(shared: &Shared, tell: &impl Fn(&Finding), finding: Finding) {
    tell(&finding);
    shared.summary.lock().unwrap_or_else(PoisonError::into_inner).findings.push(finding);
}

#[cfg(test)]
mod tests {
    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt},
        net::{TcpListener, TcpStream},
    };

    use super::*;

    /// What a bad proxy does to the bytes of a response, behind the first 100,000 of a connection.
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    enum Fault {
        None,
        Changes,
        Loses,
        Repeats,
        Stops,
    }

    /// A proxy of bytes, which knows no HTTP.
    async fn proxy(worker: SocketAddr, fault: Fault) -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let worker = TcpStream::connect(worker).await.unwrap();
                let ((mut from_client, mut to_client), (mut from_worker, mut to_worker)) =
                    (client.into_split(), worker.into_split());
                tokio::spawn(async move { tokio::io::copy(&mut from_client, &mut to_worker).await });
                tokio::spawn(async move {
                    let mut total = 0;
                    let mut bytes = vec![0; 16 * 1024];
                    while let Ok(count) = from_worker.read(&mut bytes).await
                        && count > 0
                    {
                        let before = total;
                        total += count;
                        let is_due = before < 100_000 && total >= 100_000 && count > 20;
                        match fault {
                            Fault::Changes if is_due => bytes[count / 2] ^= 0x20,
                            Fault::Stops if is_due => std::future::pending().await,
                            _ => {}
                        }
                        let (first, second) = match fault {
                            Fault::Loses if is_due => (count / 2, count / 2 + 1),
                            Fault::Repeats if is_due => (count / 2, count / 2 - 1),
                            _ => (count / 2, count / 2),
                        };
                        let all = [&bytes[..first], &bytes[second..count]].concat();
                        if to_client.write_all(&all).await.is_err() {
                            return;
                        }
                    }
                });
            }
        });
        address
    }

    async fn weather(fault: Fault) -> Summary {
        let worker = start_worker().await.unwrap();
        let gateway = proxy(worker, fault).await;
        let profile = Profile { size_max: 100_000, deaths: false, resets: false };
        // Only the test of hangs waits so long; elsewhere a busy machine must not look like one.
        let patience = if fault == Fault::Stops { Duration::from_secs(2) } else { Duration::from_mins(1) };
        let settings =
            Storm { gateway, seed: 1, responses: 60, connections: 2, profile, hang_ups: true, patience };
        storm(settings, |_| {}).await
    }

    #[tokio::test]
    async fn an_honest_proxy_is_not_blamed() {
        let summary = weather(Fault::None).await;
        assert!(summary.findings.is_empty(), "{summary:?}");
        assert!(summary.whole > 40 && summary.broken == 0 && summary.hung_up > 2, "{summary:?}");
    }

    #[tokio::test]
    async fn a_changed_a_lost_and_a_repeated_byte_are_differences() {
        for fault in [Fault::Changes, Fault::Loses, Fault::Repeats] {
            let summary = weather(fault).await;
            assert!(summary.differences() > 0, "{fault:?}: {summary:?}");
            assert_eq!(summary.hangs(), 0, "{fault:?}: {summary:?}");
        }
    }

    #[tokio::test]
    async fn silence_is_a_hang() {
        let summary = weather(Fault::Stops).await;
        assert!(summary.hangs() > 0, "{summary:?}");
    }
}
