//! A worker of the fleet: a process that can be killed, stopped, started anew and told to misbehave; some are behind a cable
//! of their own, which can be pulled.

use std::{
    io::{ErrorKind, Read, Write},
    net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream},
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use anyhow::{Result, ensure};
use rustix::process::Signal;

use super::{SEED, log};
use crate::{
    namespace::Place,
    processes::{Process, free_ports, sibling},
};

/// Of eight workers, those behind cables.
const BEHIND_CABLES: [u8; 3] = [2, 4, 7];
/// Port of a worker that has a namespace to itself.
const PORT: u16 = 8000;
/// How long an answer to a question of ours may take.
const CONTROL_TIMEOUT: Duration = Duration::from_secs(2);
/// How long a cable may take until it leads somewhere again.
const REACHABLE_TIMEOUT: Duration = Duration::from_secs(15);

/// A cable's two interfaces.
#[derive(Debug)]
struct Cable {
    gateway: String,
    worker: String,
}

/// A worker.
#[derive(Debug)]
pub(super) struct Worker {
    pub(super) number: u8,
    pub(super) address: SocketAddr,
    place: Place,
    /// Both ends of its cable.
    cable: Option<Cable>,
    process: Option<Process>,
    log: PathBuf,
}

impl Worker {
    /// Starts `count` workers.
    pub(super) fn fleet(count: u8, logs: &Path) -> Result<Vec<Self>> {
        let first = free_ports(count.into())?;
        (0..count).map(|number| Self::start(number, first, logs)).collect()
    }

    fn start(number: u8, first_port: u16, logs: &Path) -> Result<Self> {
        let log = log(logs, &format!("worker-{number}"));
        let local = SocketAddr::from((Ipv4Addr::LOCALHOST, first_port + u16::from(number)));
        let mut worker =
            Self { number, address: local, place: Place::default(), cable: None, process: None, log };
        if BEHIND_CABLES.contains(&(number % 8)) {
            match worker.plug() {
                Ok(()) => worker.address = SocketAddr::from((IpAddr::from([10, 78, number, 2]), PORT)),
                Err(error) => println!("worker {number} is not behind a cable: {error:#}"),
            }
        }
        worker.run(1.0)?;
        Ok(worker)
    }

    /// Gives it a namespace of its own and a cable to this one.
    fn plug(&mut self) -> Result<()> {
        let number = self.number;
        let place = Place::new(&format!("chaos{number}"))?;
        let (near, far) = (format!("wpchaos{number}"), format!("wpfar{number}"));
        let here = Place::default();
        // A cable of a run that was killed.
        let _ = here.ip(&["link", "delete", &near]);
        here.ip(&["link", "add", &near, "type", "veth", "peer", "name", &far])?;
        place.adopt(&far)?;
        here.ip(&["address", "add", &format!("10.78.{number}.1/24"), "dev", &near])?;
        here.ip(&["link", "set", &near, "up"])?;
        place.ip(&["address", "add", &format!("10.78.{number}.2/24"), "dev", &far])?;
        place.ip(&["link", "set", &far, "up"])?;
        (self.place, self.cable) = (place, Some(Cable { gateway: near, worker: far }));
        Ok(())
    }

    /// Starts its process, `speed` times as fast as usual, and waits until it answers.
    pub(super) fn run(&mut self, speed: f64) -> Result<()> {
        let host = if self.cable.is_some() { "0.0.0.0" } else { "127.0.0.1" };
        let args: Vec<String> = [
            ("--host", host.to_owned()),
            ("--port", self.address.port().to_string()),
            ("--seed", SEED.to_string()),
            ("--prefix-caching-hash-algo", "xxhash_cbor".to_owned()),
            ("--itl-base-ms", "5".to_owned()),
            ("--time-scale", speed.to_string()),
        ]
        .into_iter()
        .flat_map(|(name, value)| [name.to_owned(), value])
        .collect();
        let program = sibling("vllm-sim")?;
        let mut process = self.place.run(|| Process::start(&program, &args, self.log.clone()))??;
        process.await_ready(self.address, "/health")?;
        self.process = Some(process);
        Ok(())
    }

    /// Ends its process: with SIGTERM it says goodbye.
    pub(super) fn end(&mut self, signal: Signal) -> Result<()> {
        if let Some(mut process) = self.process.take() {
            process.signal(signal)?;
        }
        Ok(())
    }

    /// Sends its process a signal.
    pub(super) fn signal(&mut self, signal: Signal) -> Result<()> {
        self.process.as_mut().map_or(Ok(()), |process| process.signal(signal))
    }

    pub(super) fn has_cable(&self) -> bool {
        self.cable.is_some()
    }

    /// Pulls its cable, or plugs it in again: at the worker's end. Without the gateway's, its address would be looked for
    /// by way of the default route.
    pub(super) fn set_cable(&self, is_plugged: bool) -> Result<()> {
        let Some(cable) = &self.cable else { return Ok(()) };
        self.place.ip(&["link", "set", &cable.worker, if is_plugged { "up" } else { "down" }])
    }

    /// A connection to its control port. Behind a cable that was just plugged in again its address may not be known yet:
    /// what was asked for meanwhile fails for some seconds.
    fn connect(&self) -> Result<TcpStream> {
        let deadline = Instant::now() + REACHABLE_TIMEOUT;
        loop {
            match TcpStream::connect_timeout(&self.address, CONTROL_TIMEOUT) {
                Err(error) if error.kind() == ErrorKind::HostUnreachable && Instant::now() < deadline => {
                    std::thread::sleep(Duration::from_millis(100));
                }
                connected => return Ok(connected?),
            }
        }
    }

    /// Arms faults, in the simulation's JSON; an empty list clears them.
    pub(super) fn set_faults(&self, faults: &str) -> Result<()> {
        let mut stream = self.connect()?;
        stream.set_read_timeout(Some(CONTROL_TIMEOUT))?;
        let length = faults.len();
        write!(
            stream,
            "POST /sim/fault HTTP/1.1\r\nhost: chaos\r\nconnection: close\r\n\
             content-type: application/json\r\ncontent-length: {length}\r\n\r\n{faults}"
        )?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        ensure!(answer.starts_with("HTTP/1.1 200"), "worker {} refuses {faults}: {answer}", self.number);
        Ok(())
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        let _ = self.signal(Signal::CONT);
        drop(self.process.take());
        if let Some(cable) = &self.cable {
            let _ = Place::default().ip(&["link", "delete", &cable.gateway]);
        }
    }
}
