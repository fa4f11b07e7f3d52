//! `warmpath-bench guard`: what the XDP guard costs per packet, and what a SYN flood costs the other clients with and
//! without it.
//!
//! The cost is measured by `BPF_PROG_TEST_RUN` in this process, on frames made here, without a network. The flood runs
//! between two network namespaces joined by a veth pair: a real gateway and a simulated worker on one side, a client
//! and one flooding address on the other. All cases of a round run one after the other, rounds interleave them, and
//! each trial has a gateway process of its own. Needs root, `unshare`, `nsenter` and `ip`.

mod cost;
mod flood;

use std::time::Duration;

use anyhow::Result;

/// Arguments of `warmpath-bench guard`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Runs of the program per path and round
    #[arg(long, default_value_t = 1_000_000)]
    repeat: u32,
    /// Rounds; the median counts
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// Rounds of the flood
    #[arg(long, default_value_t = 3)]
    flood_rounds: usize,
    /// Seconds of each trial of the flood
    #[arg(long, default_value_t = 4)]
    seconds: u64,
    /// SYNs per second of the flood
    #[arg(long, default_value_t = 50_000)]
    rate: u32,
    /// Requests per second of the other client, each over a connection of its own
    #[arg(long, default_value_t = 100)]
    requests: u32,
    /// Without SYN cookies, which every distribution has switched on
    #[arg(long)]
    no_cookies: bool,
}

/// Prints both tables; whether every request of the other client was answered where the guard stood.
pub(crate) fn run(args: &Args) -> Result<bool> {
    cost::run(args.repeat, args.rounds)?;
    println!();
    flood::run(&flood::Plan {
        rounds: args.flood_rounds,
        length: Duration::from_secs(args.seconds),
        syns_per_s: args.rate,
        requests_per_s: args.requests,
        cookies: !args.no_cookies,
    })
}
