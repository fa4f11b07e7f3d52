//! The processes of a trial: started fresh, awaited until they answer, stopped by their own id.

use std::fs::File;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use rustix::process::{Pid, Signal, kill_process};

const READY_TIMEOUT: Duration = Duration::from_secs(20);
/// Of one attempt; a machine with a long run queue takes more than a second.
const GET_TIMEOUT: Duration = Duration::from_secs(5);
const STOP_TIMEOUT: Duration = Duration::from_secs(5);
/// Linux accounts a process's CPU time to user space in ticks of this length, on every architecture.
const TICK: Duration = Duration::from_millis(10);

/// A child process, its output in a log file. Dropped, it is asked to stop (SIGTERM), then killed.
#[derive(Debug)]
pub(crate) struct Process {
    child: Child,
    log: PathBuf,
}

impl Process {
    pub(crate) fn start(program: &Path, args: &[String], log: PathBuf) -> Result<Self> {
        let output = File::create(&log).with_context(|| log.display().to_string())?;
        let child = Command::new(program)
            .args(args)
            .stdin(Stdio::null())
            .stdout(output.try_clone()?)
            .stderr(output)
            .spawn()
            .with_context(|| format!("cannot start {}", program.display()))?;
        Ok(Self { child, log })
    }

    /// Waits until `GET path` answers 200.
    pub(crate) fn await_ready(&mut self, address: SocketAddr, path: &str) -> Result<()> {
        let deadline = Instant::now() + READY_TIMEOUT;
        while !matches!(get(address, path), Ok((200, _))) {
            if let Some(status) = self.child.try_wait()? {
                bail!("ended at once ({status}): see {}", self.log.display());
            }
            if Instant::now() > deadline {
                bail!("http://{address}{path} does not answer 200: see {}", self.log.display());
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(())
    }

    pub(crate) fn id(&self) -> u32 {
        self.child.id()
    }

    /// Sends a signal; a process that has ended gets none.
    pub(crate) fn signal(&mut self, signal: Signal) -> Result<()> {
        if matches!(self.child.try_wait(), Ok(None)) {
            kill_process(Pid::from_child(&self.child), signal)?;
        }
        Ok(())
    }

    /// User and system time so far, all threads, its children and theirs included.
    pub(crate) fn cpu(&self) -> Duration {
        let mut ids = vec![self.child.id().to_string()];
        let mut sum = Duration::ZERO;
        while let Some(id) = ids.pop() {
            sum += cpu_of(&id);
            for task in std::fs::read_dir(format!("/proc/{id}/task")).into_iter().flatten().flatten() {
                let children = std::fs::read_to_string(task.path().join("children")).unwrap_or_default();
                ids.extend(children.split_whitespace().map(str::to_owned));
            }
        }
        sum
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if !matches!(self.child.try_wait(), Ok(None)) {
            return; // its id may be somebody else's by now
        }
        let pid = self.child.id();
        let _ = self.signal(Signal::TERM);
        let deadline = Instant::now() + STOP_TIMEOUT;
        while Instant::now() < deadline {
            if !matches!(self.child.try_wait(), Ok(None)) {
                return;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        eprintln!("process {pid} did not stop on SIGTERM within {STOP_TIMEOUT:?}: killed");
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Status and body of `GET path`, on a connection of its own; for bodies with a length, not for chunks.
pub(crate) fn get(address: SocketAddr, path: &str) -> Result<(u16, String)> {
    let mut stream = TcpStream::connect_timeout(&address, GET_TIMEOUT)?;
    stream.set_read_timeout(Some(GET_TIMEOUT))?;
    write!(stream, "GET {path} HTTP/1.1\r\nhost: {address}\r\nconnection: close\r\n\r\n")?;
    // Not to the end of the connection: not every server closes it because it is asked to.
    let mut response = Vec::new();
    let mut piece = [0; 16 * 1024];
    while !is_whole(&response) {
        match stream.read(&mut piece)? {
            0 => break,
            count => response.extend_from_slice(&piece[..count]),
        }
    }
    let response = String::from_utf8(response)?;
    let (head, body) = response.split_once("\r\n\r\n").context("no end of the head")?;
    let status = head.split(' ').nth(1).and_then(|status| status.parse().ok()).context("no status")?;
    Ok((status, body.to_owned()))
}

/// Whether a response with a length is all there.
fn is_whole(response: &[u8]) -> bool {
    let text = String::from_utf8_lossy(response);
    let Some((head, _)) = text.split_once("\r\n\r\n") else { return false };
    let length = head.lines().find_map(|line| {
        let (name, value) = line.split_once(':')?;
        name.eq_ignore_ascii_case("content-length").then(|| value.trim().parse::<usize>().ok())?
    });
    length.is_some_and(|length| response.len() >= head.len() + 4 + length)
}

/// User and system time of process `pid` (or "self"); zero when it is gone.
pub(crate) fn cpu_of(pid: &str) -> Duration {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    // The second field is the name in parentheses and may hold spaces: count from behind it.
    let fields = stat.rsplit_once(')').map_or("", |(_, fields)| fields).split_whitespace();
    fields.skip(11).take(2).filter_map(|ticks| ticks.parse::<u32>().ok()).map(|ticks| TICK * ticks).sum()
}

/// Memory of a process that is resident now.
pub(crate) fn resident_kib(pid: u32) -> u64 {
    status_kib(pid, "VmRSS:")
}

/// The most of it that ever was.
pub(crate) fn peak_resident_kib(pid: u32) -> u64 {
    status_kib(pid, "VmHWM:")
}

fn status_kib(pid: u32, field: &str) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix(field));
    line.and_then(|line| line.split_whitespace().next()?.parse().ok()).unwrap_or(0)
}

/// Busy and total time of all CPUs since boot, in ticks. Time of niced processes counts as free: they give way.
pub(crate) fn host_cpu() -> (u64, u64) {
    let stat = std::fs::read_to_string("/proc/stat").unwrap_or_default();
    let first = stat.lines().next().unwrap_or_default();
    let ticks: Vec<u64> = first.split_whitespace().skip(1).take(8).filter_map(|t| t.parse().ok()).collect();
    let total: u64 = ticks.iter().sum();
    let free = [1, 3, 4].into_iter().filter_map(|column| ticks.get(column)).sum::<u64>(); // nice, idle, iowait
    (total - free, total)
}

/// A binary that was built into the same directory as this one.
pub(crate) fn sibling(name: &str) -> Result<PathBuf> {
    let own = std::env::current_exe()?;
    let path = own.parent().unwrap_or(Path::new(".")).join(name);
    ensure!(path.exists(), "{} is not built: use `cargo xtask bench`", path.display());
    Ok(path)
}

/// What a program that runs to its end prints, without the white space around it; an error has what it said.
pub(crate) fn output(program: &Path, args: &[&str]) -> Result<String> {
    let shown = || format!("{} {}", program.display(), args.join(" "));
    let output = Command::new(program)
        .args(args)
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("cannot start {}", program.display()))?;
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    ensure!(
        output.status.success(),
        "{} failed: {}",
        shown(),
        err.trim_end().lines().last().unwrap_or_default()
    );
    let said = if out.trim().is_empty() { err } else { out };
    Ok(said.trim().to_owned())
}

/// The first of `count` neighbouring ports that are free on the loopback interface now.
pub(crate) fn free_ports(count: u16) -> Result<u16> {
    for _ in 0..50 {
        let probe = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
        let first = probe.local_addr()?.port();
        let rest: Vec<_> = (1..count)
            .map_while(|i| first.checked_add(i))
            .map_while(|port| TcpListener::bind((Ipv4Addr::LOCALHOST, port)).ok())
            .collect();
        if rest.len() + 1 == usize::from(count) {
            return Ok(first);
        }
    }
    bail!("no {count} neighbouring ports are free")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn own_cpu_time_grows_with_work() {
        let before = cpu_of("self");
        let started = Instant::now();
        let mut sum = 0_u64;
        while cpu_of("self") < before + TICK {
            sum = std::hint::black_box(sum.wrapping_mul(31) + 1);
            assert!(started.elapsed() < Duration::from_secs(30), "no CPU time was counted");
        }
    }

    #[test]
    fn a_process_that_ends_at_once_is_reported() {
        let log = std::env::temp_dir().join(format!("warmpath-bench-{}.log", std::process::id()));
        let mut process = Process::start(Path::new("false"), &[], log.clone()).unwrap();
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, free_ports(1).unwrap()));
        let error = process.await_ready(address, "/health").unwrap_err().to_string();
        assert!(error.contains("ended at once"), "{error}");
        std::fs::remove_file(log).unwrap();
    }
}
