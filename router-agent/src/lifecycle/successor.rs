//! Starts a successor: the same command again, by its path, where there may be another version now.

use std::{
    io,
    process::{Command, Stdio},
    thread,
};

/// What systemd has set for this process and no other.
const OWN_VARIABLES: [&str; 4] = ["WATCHDOG_PID", "LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES"];

/// Runs this process's command line once more; it takes over by itself. Its failure is in the log.
pub fn start() -> io::Result<()> {
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
