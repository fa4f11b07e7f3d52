//! A cable between two network namespaces that treats packets badly: some are lost, some come twice, some overtake
//! others, all come late. What `tc netem` does, made here because many kernels are built without it.
//!
//! Two TUN devices, and a thread for each direction that reads from one and writes to the other. Their queues are as
//! long as the kernel makes them, so a flood is cut down too.

use std::{
    cmp::Reverse,
    collections::BinaryHeap,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    thread::JoinHandle,
    time::Duration,
};

use anyhow::{Context, Result};
use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    io::Errno,
};
use tappers::{Interface, Tun};
use warmpath_tests::stress::Random;

use super::load::now_ns;
use crate::namespace::Place;

/// How late a packet is that does not overtake.
const DELAY: Duration = Duration::from_millis(1);
/// Per thousand packets: come twice; overtake by coming at once.
const TWICE_PER_MILLE: u64 = 10;
const EARLY_PER_MILLE: u64 = 20;
/// How often a thread looks whether it is still wanted.
const LOOK: Duration = Duration::from_millis(50);
/// As Ethernet's, so that bodies are many packets.
const MTU: usize = 1500;

/// What was done to packets.
#[derive(Debug, Default)]
pub(super) struct Damage {
    pub(super) passed: AtomicU64,
    pub(super) lost: AtomicU64,
    pub(super) doubled: AtomicU64,
    pub(super) early: AtomicU64,
}

/// A cable that is plugged in. Unplugged when dropped.
pub(super) struct Cable {
    ends: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
    pub(super) damage: Arc<Damage>,
}

impl Cable {
    /// Joins two namespaces: `addresses` are those of the ends, of one /30 network. `name` is that of both devices.
    pub(super) fn plug(
        places: [&Place; 2],
        addresses: [&str; 2],
        name: &str,
        lost_percent: u64,
        seed: u64,
    ) -> Result<Self> {
        let device = |place: &Place, address: &str| -> Result<Arc<Tun>> {
            let mut tun = place.run(|| Tun::new_named(Interface::new(name)?))?.context("no TUN device")?;
            tun.set_nonblocking(true)?;
            place.ip(&["address", "add", &format!("{address}/30"), "dev", name])?;
            place.ip(&["link", "set", name, "mtu", &MTU.to_string(), "txqueuelen", "2000", "up"])?;
            Ok(Arc::new(tun))
        };
        let (a, b) = (device(places[0], addresses[0])?, device(places[1], addresses[1])?);
        let ends = Arc::new(AtomicBool::new(false));
        let damage = Arc::new(Damage::default());
        let threads =
            [(a.clone(), b.clone()), (b, a)].into_iter().zip(0..).map(|((from, into), direction)| {
                let (ends, damage) = (ends.clone(), damage.clone());
                let random = Random::new(seed ^ direction);
                std::thread::spawn(move || carry(&from, &into, lost_percent, random, &damage, &ends))
            });
        Ok(Self { ends: ends.clone(), threads: threads.collect(), damage })
    }
}

impl Drop for Cable {
    fn drop(&mut self) {
        self.ends.store(true, Relaxed);
        for thread in self.threads.drain(..) {
            let _ = thread.join(); // it has said why it panicked
        }
    }
}

/// One direction, until it is not wanted any more or a device is gone.
fn carry(from: &Tun, into: &Tun, lost_percent: u64, mut random: Random, damage: &Damage, ends: &AtomicBool) {
    let mut buffer = vec![0; MTU + 100];
    // By the moment at which they are due; the number keeps the order among equals.
    let mut under_way: BinaryHeap<Reverse<(u64, u64, Vec<u8>)>> = BinaryHeap::new();
    let mut number = 0;
    while !ends.load(Relaxed) {
        let now = now_ns();
        while under_way.peek().is_some_and(|Reverse((due, ..))| *due <= now) {
            if let Some(Reverse((_, _, packet))) = under_way.pop() {
                let _ = into.send(&packet); // a full queue loses it, as queues do
            }
        }
        let wait =
            under_way.peek().map_or(LOOK, |Reverse((due, ..))| Duration::from_nanos(due - now)).min(LOOK);
        let wait = Timespec { tv_sec: 0, tv_nsec: wait.as_nanos() as i64 };
        match poll(&mut [PollFd::new(from, PollFlags::IN)], Some(&wait)) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(_) => return,
        }
        loop {
            let length = match from.recv(&mut buffer) {
                Ok(length) => length,
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => break,
                Err(_) => return,
            };
            if random.below(100) < lost_percent {
                damage.lost.fetch_add(1, Relaxed);
                continue;
            }
            let copies = if random.below(1000) < TWICE_PER_MILLE { 2 } else { 1 };
            let is_early = random.below(1000) < EARLY_PER_MILLE;
            damage.doubled.fetch_add(copies - 1, Relaxed);
            damage.early.fetch_add(u64::from(is_early), Relaxed);
            damage.passed.fetch_add(1, Relaxed);
            let delay = if is_early { Duration::ZERO } else { DELAY };
            for _ in 0..copies {
                number += 1;
                let due = now_ns() + delay.as_nanos() as u64;
                under_way.push(Reverse((due, number, buffer[..length].to_vec())));
            }
        }
    }
}
