//! One address floods the gateway's port with SYNs, another client goes on asking: its latencies.

use std::{
    net::{Ipv4Addr, SocketAddr, SocketAddrV4},
    sync::atomic::{AtomicBool, Ordering::Relaxed},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use socket2::{Domain, Protocol, Socket, Type};
use warmpath_tests::{
    Gateway,
    network::{CLIENT, Network},
};

use crate::processes::cpu_of;
use router_agent::replay::stats::Summary;

/// On the clients' network, and nobody's: what the gateway answers is lost, as it is with a spoofed source.
const FLOODER: Ipv4Addr = Ipv4Addr::new(10, 99, 0, 77);
/// A request that takes longer is given up and counted.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(5);

pub(super) struct Plan {
    pub(super) rounds: usize,
    pub(super) length: Duration,
    pub(super) syns_per_s: u32,
    pub(super) requests_per_s: u32,
    pub(super) cookies: bool,
}

const CASES: [(&str, &[&str], bool); 6] = [
    ("no guard, no flood", &[], false),
    ("native, no flood", &["--guard", "g0:native"], false),
    ("generic, no flood", &["--guard", "g0:generic"], false),
    ("no guard, flood", &[], true),
    ("native, flood", &["--guard", "g0:native"], true),
    ("generic, flood", &["--guard", "g0:generic"], true),
];

/// Of the rounds of one case. A round in which another job had the CPUs must not decide a percentile: the median of the
/// rounds' does.
#[derive(Default)]
struct Totals {
    rounds: Vec<Summary>,
    failed: usize,
    syns: u64,
    /// Of the sending thread: on veth, what the receiving side does with a packet included.
    flooder_cpu: Duration,
    dropped: f64,
    flooded: Duration,
}

pub(super) fn run(plan: &Plan) -> Result<bool> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let mut totals: Vec<Totals> = CASES.iter().map(|_| Totals::default()).collect();
    for _ in 0..plan.rounds {
        for ((_, args, flood), totals) in CASES.iter().zip(&mut totals) {
            runtime.block_on(trial(plan, args, *flood, totals))?;
        }
    }
    println!(
        "{} rounds of {:?}, {} SYNs/s from one address, {} requests/s from another, SYN cookies {}",
        plan.rounds,
        plan.length,
        plan.syns_per_s,
        plan.requests_per_s,
        if plan.cookies { "on" } else { "off" }
    );
    println!(
        "| case | requests | p50 ms | p90 ms | p99 ms | failed | SYNs/s sent | CPU per SYN, sent and received | dropped by the guard |"
    );
    println!("|---|---|---|---|---|---|---|---|---|");
    let mut ok = true;
    for ((name, args, _), total) in CASES.iter().zip(totals) {
        let requests = total.rounds.iter().map(|round| round.count).sum::<usize>() + total.failed;
        let (p50, p90, p99) = (
            median(total.rounds.iter().map(|round| round.p50)),
            median(total.rounds.iter().map(|round| round.p90)),
            median(total.rounds.iter().map(|round| round.p99)),
        );
        let (rate, cost) = if total.syns == 0 {
            ("–".to_owned(), "–".to_owned())
        } else {
            let rate = total.syns as f64 / total.flooded.as_secs_f64();
            let cost_us = total.flooder_cpu.as_secs_f64() * 1e6 / total.syns as f64;
            (format!("{rate:.0}"), format!("{cost_us:.1} µs"))
        };
        let dropped = if args.is_empty() || total.syns == 0 {
            "–".to_owned()
        } else {
            format!("{:.1} %", 100.0 * total.dropped / total.syns as f64)
        };
        println!(
            "| {name} | {requests} | {p50:.2} | {p90:.2} | {p99:.2} | {} | {rate} | {cost} | {dropped} |",
            total.failed
        );
        ok &= args.is_empty() || total.failed == 0;
    }
    Ok(ok)
}

fn median(values: impl Iterator<Item = f64>) -> f64 {
    Summary::of(values.collect()).p50
}

async fn trial(plan: &Plan, args: &[&str], flood: bool, totals: &mut Totals) -> Result<()> {
    let network = Network::create().map_err(anyhow::Error::msg)?;
    let cookies = if plan.cookies { "1" } else { "0" };
    network.gateway.enter(|| std::fs::write("/proc/sys/net/ipv4/tcp_syncookies", cookies))?;
    answers_get_lost(&network)?;
    let sim = network.sim();
    let gateway = Gateway::spawn(network.gateway(&sim, args)).await;
    if gateway.output().contains("guard: not on") {
        bail!("the guard does not stand: {}", gateway.output());
    }
    let SocketAddr::V4(target) = gateway.address else { bail!("{} is not IPv4", gateway.address) };
    let socket = network.clients.enter(|| Socket::new(Domain::IPV4, Type::RAW, Some(Protocol::from(255))))?;
    let stop = AtomicBool::new(!flood);
    let (sent, asked) = std::thread::scope(|scope| {
        let flooder = scope.spawn(|| send_syns(&socket, target, plan.syns_per_s, &stop));
        let asked = scope.spawn(|| ask(plan, &network, gateway.address));
        let asked = asked.join();
        stop.store(true, Relaxed);
        (flooder.join(), asked)
    });
    let (latencies, failed) = asked.map_err(|_| anyhow::anyhow!("the client panicked"))??;
    let (syns, length, cpu) = sent.map_err(|_| anyhow::anyhow!("the flooder panicked"))??;
    totals.rounds.push(Summary::of(latencies));
    totals.flooder_cpu += cpu;
    totals.failed += failed;
    totals.syns += syns;
    totals.flooded += length;
    let reply = network.gateway.request("127.0.0.1", gateway.admin, "GET", "/guard", "").await;
    totals.dropped += reply.json()["packets"]["drop"]["syn_rate"].as_f64().unwrap_or_default();
    Ok(())
}

/// The gateway's answers to the flooder go to the clients' interface, where nobody takes them or refuses them.
fn answers_get_lost(network: &Network) -> Result<()> {
    let shown = network.clients.ip("link show dev c0").map_err(anyhow::Error::msg)?;
    let address = shown.split("link/ether ").nth(1).and_then(|rest| rest.split(' ').next());
    let address = address.context("`ip link` shows no address")?;
    let neighbour = format!("neighbour add {FLOODER} lladdr {address} dev g0");
    network.gateway.ip(&neighbour).map_err(anyhow::Error::msg)?;
    Ok(())
}

/// Asks for the models at the planned pace, over a connection each; milliseconds, and how many got no answer.
fn ask(plan: &Plan, network: &Network, gateway: SocketAddr) -> Result<(Vec<f64>, usize)> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let pause = Duration::from_secs(1) / plan.requests_per_s;
        let mut ticks = tokio::time::interval(pause);
        let started = Instant::now();
        let mut tasks = tokio::task::JoinSet::new();
        while started.elapsed() < plan.length {
            ticks.tick().await;
            let socket = network.clients.socket(CLIENT);
            tasks.spawn(async move {
                let begun = Instant::now();
                let done = tokio::time::timeout(REQUEST_TIMEOUT, exchange(socket, gateway)).await;
                matches!(done, Ok(Ok(()))).then(|| begun.elapsed().as_secs_f64() * 1e3)
            });
        }
        let results = tasks.join_all().await;
        let failed = results.iter().filter(|result| result.is_none()).count();
        Ok((results.into_iter().flatten().collect(), failed))
    })
}

/// One request over a new connection, up to the head's first line.
async fn exchange(socket: tokio::net::TcpSocket, gateway: SocketAddr) -> Result<()> {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let mut stream = socket.connect(gateway).await?;
    stream.write_all(b"GET /v1/models HTTP/1.1\r\nhost: bench\r\nconnection: close\r\n\r\n").await?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await?;
    if answer.starts_with(b"HTTP/1.1 200") { Ok(()) } else { bail!("no answer") }
}

/// Sends SYNs at `rate` until told to stop; how many, for how long, and this thread's CPU time. In bursts of a millisecond each.
fn send_syns(
    socket: &Socket,
    target: SocketAddrV4,
    rate: u32,
    stop: &AtomicBool,
) -> Result<(u64, Duration, Duration)> {
    let to = SocketAddr::V4(target).into();
    let (started, mut sent) = (Instant::now(), 0);
    while !stop.load(Relaxed) {
        let due = (started.elapsed().as_secs_f64() * f64::from(rate)) as u64;
        // What could not be sent in time is not caught up with in one go.
        for _ in 0..due.saturating_sub(sent).min(u64::from(rate) / 100) {
            let packet = syn(target, sent as u32);
            socket.send_to(&packet, &to)?;
            sent += 1;
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    Ok((sent, started.elapsed(), cpu_of("thread-self")))
}

/// IPv4 and TCP; every `number` has another port and sequence number. The kernel fills in IPv4's checksum.
fn syn(target: SocketAddrV4, number: u32) -> [u8; 40] {
    let mut packet = [0; 40];
    (packet[0], packet[3], packet[8], packet[9]) = (0x45, 40, 64, 6);
    packet[12..16].copy_from_slice(&FLOODER.octets());
    packet[16..20].copy_from_slice(&target.ip().octets());
    let port = 1024 + (number % 60_000) as u16;
    packet[20..22].copy_from_slice(&port.to_be_bytes());
    packet[22..24].copy_from_slice(&target.port().to_be_bytes());
    packet[24..28].copy_from_slice(&number.wrapping_mul(2_654_435_761).to_be_bytes());
    (packet[32], packet[33], packet[34]) = (5 << 4, 0x02, 0xff);
    // RFC 9293: over source, destination, protocol and length as well.
    let words = packet[12..].chunks_exact(2).map(|word| u32::from(u16::from_be_bytes([word[0], word[1]])));
    let mut sum = words.sum::<u32>() + 6 + 20;
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    packet[36..38].copy_from_slice(&(!(sum as u16)).to_be_bytes());
    packet
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_syn_sums_up_to_nothing() {
        for number in [0, 1, 59_999, 4_000_000_000] {
            let packet = syn(SocketAddrV4::new(Ipv4Addr::new(10, 99, 0, 1), 8080), number);
            let words =
                packet[12..].chunks_exact(2).map(|word| u64::from(u16::from_be_bytes([word[0], word[1]])));
            assert_eq!((words.sum::<u64>() + 26) % 0xffff, 0);
        }
    }
}
