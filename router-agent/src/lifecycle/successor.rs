//! Starts a successor: the same command again, by its path, where there may be another version now.
//!
//! A process that serves has no privileges that it could hand on; a thread that was started before it gave them up has.

use std::{
    io,
    process::{Command, Stdio},
    sync::mpsc::{Receiver, SyncSender, sync_channel},
    thread,
};

use crate::privileges;

/// What systemd has set for this process and no other.
const OWN_VARIABLES: [&str; 4] = ["WATCHDOG_PID", "LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES"];

/// The thread that starts successors. It ends with this.
#[derive(Debug)]
pub struct Starter(SyncSender<()>);

impl Starter {
    /// To be called while the process has what a successor needs.
    pub fn new() -> io::Result<Self> {
        let (sender, asked) = sync_channel(1);
        thread::Builder::new().name("successor".into()).spawn(move || serve(&asked))?;
        Ok(Self(sender))
    }

    /// Runs this process's command line once more; it takes over by itself. Its failure is in the log.
    pub fn start(&self) {
        // Where one is asked for already, another one would find nothing to take over.
        let _ = self.0.try_send(());
    }
}

fn serve(asked: &Receiver<()>) {
    if let Err(error) = privileges::keep_for_a_successor() {
        tracing::warn!(%error, "a successor by SIGUSR2 would have no privileges");
    }
    while asked.recv().is_ok() {
        if let Err(error) = run() {
            tracing::error!(%error, "upgrade: the successor could not be started");
        }
    }
}

fn run() -> io::Result<()> {
    let mut arguments = std::env::args_os();
    let program = arguments.next().ok_or(io::ErrorKind::NotFound)?;
    let mut command = Command::new(program);
    command.args(arguments).stdin(Stdio::null());
    for variable in OWN_VARIABLES {
        command.env_remove(variable);
    }
    let mut child = command.spawn()?;
    tracing::info!(pid = child.id(), "upgrade: a successor was started");
    thread::Builder::new().name("successor".into()).spawn(move || match child.wait() {
        Ok(status) if status.success() => {}
        Ok(status) => tracing::error!(%status, "upgrade: the successor failed; this gateway goes on"),
        Err(error) => tracing::error!(%error, "upgrade: the successor cannot be waited for"),
    })?;
    Ok(())
}
