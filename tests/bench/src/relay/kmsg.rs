//! What the kernel has to say while something runs: warnings and worse in its log.

use std::{
    fs::File,
    io::{ErrorKind, Read, Seek, SeekFrom},
    os::fd::AsFd,
};

use rustix::fs::{OFlags, fcntl_setfl};

/// What a line holds that should not be there.
const ALARMS: [&str; 9] = [
    "WARNING:",
    "BUG:",
    "Oops",
    "Call Trace",
    "general protection",
    "soft lockup",
    "hung task",
    "rcu_sched",
    "TCP recvmsg seq # bug",
];
/// Longest record (`CONSOLE_EXT_LOG_MAX` of the kernel is 8192).
const RECORD_BYTES_MAX: usize = 16 * 1024;

/// The kernel's log from now on, or why it cannot be read.
pub(super) struct KernelLog(Result<File, String>);

impl KernelLog {
    pub(super) fn from_now() -> Self {
        let open = || -> std::io::Result<File> {
            let mut file = File::open("/dev/kmsg")?;
            file.seek(SeekFrom::End(0))?;
            fcntl_setfl(file.as_fd(), OFlags::NONBLOCK)?;
            Ok(file)
        };
        Self(open().map_err(|error| format!("/dev/kmsg: {error}")))
    }

    /// Alarming lines since the last look.
    pub(super) fn alarms(&mut self) -> Result<Vec<String>, String> {
        let file = self.0.as_mut().map_err(|why| why.clone())?;
        let mut alarms = Vec::new();
        let mut record = vec![0; RECORD_BYTES_MAX];
        loop {
            match file.read(&mut record) {
                Ok(0) => return Ok(alarms),
                Ok(count) => {
                    let text = String::from_utf8_lossy(&record[..count]);
                    let line = text.split_once(';').map_or(&*text, |(_, line)| line).trim();
                    if ALARMS.iter().any(|alarm| line.contains(alarm)) {
                        alarms.push(line.lines().next().unwrap_or_default().to_owned());
                    }
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(alarms),
                // Records were overwritten before they were read: the next read goes on behind them.
                Err(error) if error.kind() == ErrorKind::BrokenPipe => {}
                Err(error) => return Err(format!("/dev/kmsg: {error}")),
            }
        }
    }
}
