//! Nanoseconds per packet, by the way that it takes through the program.

use anyhow::{Context, Result, bail};
use router_agent::{
    config::{Cidr, GuardMode},
    kernel::{GuardAction, GuardOptions, GuardRule, Kernel, Options, SynLimit},
};

const PORT: u16 = 8080;
const SYN: u8 = 0x02;
const ACK: u8 = 0x10;

/// A way through the program: what is sent, against which rules and limit, and what becomes of it.
struct Path {
    name: &'static str,
    frame: Vec<u8>,
    rules: Vec<GuardRule>,
    limit: SynLimit,
    dropped: bool,
}

/// Prints the median of `rounds` means over `repeat` runs, and the least and the most of them.
pub(super) fn run(repeat: u32, rounds: usize) -> Result<()> {
    let options = GuardOptions {
        port: PORT,
        interfaces: Vec::new(),
        mode: GuardMode::Auto,
        rules: Vec::new(),
        limit: SynLimit::NONE,
    };
    let instance = Some(format!("bench-guard-{}", std::process::id()));
    let (mut kernel, capabilities) =
        Kernel::open(&Options { instance, guard: Some(options), ..Options::default() });
    let Some(guard) = kernel.guard() else { bail!("no guard here: {}", capabilities.guard) };

    let paths = paths()?;
    let mut measured = vec![Vec::new(); paths.len()];
    for _ in 0..rounds {
        for (path, nanoseconds) in paths.iter().zip(&mut measured) {
            guard.replace(&path.rules)?;
            guard.set_limit(path.limit)?;
            if path.dropped && path.rules.is_empty() {
                kernel.guard_verdict(&path.frame, 1)?; // takes the one token
            }
            let verdict = kernel.guard_verdict(&path.frame, repeat)?;
            if verdict.dropped != path.dropped {
                bail!("{}: dropped is {}", path.name, verdict.dropped);
            }
            nanoseconds.push(verdict.duration.as_nanos() as f64);
        }
    }
    println!("| way through the program | ns per packet, median of {rounds} x {repeat} runs | least–most |");
    println!("|---|---|---|");
    for (path, mut nanoseconds) in paths.iter().zip(measured) {
        nanoseconds.sort_by(f64::total_cmp);
        let median = nanoseconds.get(nanoseconds.len() / 2).context("no rounds")?;
        let (least, most) = (nanoseconds[0], nanoseconds[nanoseconds.len() - 1]);
        println!("| {} | {median:.0} | {least:.0}–{most:.0} |", path.name);
    }
    Ok(())
}

fn paths() -> Result<Vec<Path>> {
    let rule = |cidr: &str, action| -> Result<GuardRule> { Ok(GuardRule { cidr: cidr.parse()?, action }) };
    let deny = vec![rule("10.0.0.0/8", GuardAction::Deny)?];
    let allow = vec![rule("10.0.0.0/8", GuardAction::Allow)?];
    let many: Vec<GuardRule> = (0..1000_u32)
        .map(|i| {
            let address = std::net::Ipv4Addr::from_bits(0xc600_0000 | i << 8);
            GuardRule { cidr: Cidr::of(address.into(), 24), action: GuardAction::Deny }
        })
        .collect();
    let none = SynLimit::NONE;
    let high = SynLimit::every(1, u32::MAX); // a token per nanosecond: the bucket is asked and never empty
    let path = |name, frame, rules: &[GuardRule], limit, dropped| Path {
        name,
        frame,
        rules: rules.to_vec(),
        limit,
        dropped,
    };
    let mut arp = v4(PORT, ACK);
    arp[12..14].copy_from_slice(&[0x08, 0x06]);
    Ok(vec![
        path("neither IPv4 nor IPv6", arp, &many, high, false),
        path("another port", v4(PORT + 1, ACK), &many, high, false),
        path("open connection, no rules", v4(PORT, ACK), &[], high, false),
        path("open connection, 1,000 rules, none for it", v4(PORT, ACK), &many, high, false),
        path("open connection, IPv6, 1,000 rules, none for it", v6(PORT, ACK), &many, high, false),
        path("allowed by a rule", v4(PORT, SYN), &allow, high, false),
        path("denied by a rule", v4(PORT, SYN), &deny, none, true),
        path("SYN, no limit", v4(PORT, SYN), &[], none, false),
        path("SYN within the rate", v4(PORT, SYN), &[], high, false),
        path("SYN within the rate, IPv6", v6(PORT, SYN), &[], high, false),
        path("SYN beyond the rate", v4(PORT, SYN), &[], SynLimit::every(3_600_000_000_000, 1), true),
    ])
}

fn tcp(port: u16, flags: u8) -> [u8; 20] {
    let mut tcp = [0; 20];
    tcp[2..4].copy_from_slice(&port.to_be_bytes());
    (tcp[12], tcp[13]) = (5 << 4, flags);
    tcp
}

/// A segment from 10.0.0.1.
fn v4(port: u16, flags: u8) -> Vec<u8> {
    let mut frame = vec![0; 34];
    (frame[12], frame[14], frame[17], frame[22], frame[23]) = (0x08, 0x45, 40, 64, 6);
    frame[26..30].copy_from_slice(&[10, 0, 0, 1]);
    frame.extend(tcp(port, flags));
    frame
}

/// A segment from 2001:db8::1.
fn v6(port: u16, flags: u8) -> Vec<u8> {
    let mut frame = vec![0; 54];
    frame[12..15].copy_from_slice(&[0x86, 0xdd, 0x60]);
    (frame[19], frame[20], frame[21]) = (20, 6, 64);
    frame[22..26].copy_from_slice(&[0x20, 0x01, 0x0d, 0xb8]);
    frame[37] = 1;
    frame.extend(tcp(port, flags));
    frame
}
