//! Starts a successor: the same command again, by its path, where there may be another version now.
//!
//! A successor needs the privileges that this process gave up when it began to serve. So there is a [`Keeper`]: a child that
//! was started before, has them still, listens to nothing but a pipe from here, and can do one thing: start a successor.

use std::{
    ffi::OsString,
    io::{self, Read, Write},
    process::{Child, ChildStdin, Command, Stdio},
    thread,
};

/// What systemd has set for this process and no other.
const OWN_VARIABLES: [&str; 4] = ["WATCHDOG_PID", "LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES"];
/// The hidden subcommand that [`keep`] runs under.
pub const KEEPER: &str = "keeper";
/// Asks for a successor.
const START: u8 = b'+';

/// A process that keeps the privileges of its start. Gone when dropped.
#[derive(Debug)]
pub struct Keeper {
    child: Child,
    orders: Option<ChildStdin>,
}

impl Keeper {
    /// Starts it, with this thread's privileges.
    pub fn start() -> io::Result<Self> {
        let mut child = Command::new(std::env::current_exe()?)
            .arg(KEEPER)
            .arg("--")
            .args(std::env::args_os())
            .stdin(Stdio::piped())
            .spawn()?;
        let orders = child.stdin.take();
        Ok(Self { child, orders })
    }

    /// Has it start this process's command line once more; that one takes over by itself. Its failure is in the log.
    pub fn start_successor(&mut self) -> io::Result<()> {
        let orders = self.orders.as_mut().ok_or(io::ErrorKind::NotConnected)?;
        orders.write_all(&[START])
    }
}

impl Drop for Keeper {
    fn drop(&mut self) {
        drop(self.orders.take());
        let _ = self.child.wait();
    }
}

/// What a [`Keeper`]'s process does until its gateway has gone: `command` once more for every order.
pub fn keep(command: &[OsString]) -> io::Result<()> {
    let mut order = [0];
    while io::stdin().read(&mut order)? == 1 {
        if let Err(error) = start(command) {
            tracing::error!(%error, "upgrade: the successor could not be started");
        }
    }
    Ok(())
}

fn start(command: &[OsString]) -> io::Result<()> {
    let (program, arguments) = command.split_first().ok_or(io::ErrorKind::InvalidInput)?;
    let mut successor = Command::new(program);
    successor.args(arguments).stdin(Stdio::null());
    for variable in OWN_VARIABLES {
        successor.env_remove(variable);
    }
    let mut child = successor.spawn()?;
    tracing::info!(pid = child.id(), "upgrade: a successor was started");
    thread::Builder::new().name("successor".into()).spawn(move || match child.wait() {
        Ok(status) if status.success() => {}
        Ok(status) => tracing::error!(%status, "upgrade: the successor failed; the gateway before goes on"),
        Err(error) => tracing::error!(%error, "upgrade: the successor cannot be waited for"),
    })?;
    Ok(())
}
