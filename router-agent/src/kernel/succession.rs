//! Changing hands: a gateway that runs gives what only one process can have to its successor, which has loaded programs and
//! maps of its own meanwhile.
//!
//! * **Steering.** A listening socket can be in one array of the kernel's only (`EBUSY`), so the one that runs empties its
//!   array; until the successor has filled its own and attached its program, the kernel's hash places connections.
//! * **Pins.** The successor pins its maps under names beside those that are in use, and renames them over those once the
//!   lock on the directory is its own: at no time is a name not there.
//! * **Guard.** An interface takes one program, so between the two it has none for some milliseconds.
//!
//! Relays need nothing: their maps and sockets are each process's own, and go with its last stream.

use std::{
    os::fd::AsFd,
    time::{Duration, Instant},
};

use super::{Capabilities, Capability, Kernel, KernelError, PROGRAM, guard, steering_program};

/// How long what the one before has given up may take to be free: it does so at once, the kernel a little later.
const PATIENCE: Duration = Duration::from_secs(2);
const RETRY: Duration = Duration::from_millis(5);

impl Kernel {
    /// For the one that runs: gives up what its successor needs. Streams that the kernel moves go on.
    pub fn release(&mut self) {
        if let Some(steering) = &self.steering {
            steering.release();
        }
        if let Some(guard) = &self.guard {
            guard.detach();
        }
        if let Some(pins) = self.pins.take() {
            pins.hand_over();
        }
    }

    /// For the successor, once the one before has released it: takes pins and interfaces, and says what came of it.
    pub fn succeed(&mut self, capabilities: &mut Capabilities) {
        if let Some(staged) = self.staged.take() {
            capabilities.pins = match staged.take_over() {
                Ok(pins) => {
                    self.pins = Some(pins);
                    Capability::Available
                }
                Err(reason) => Capability::Unavailable(reason),
            };
        }
        if let Some(options) = self.deferred_guard.take()
            && let Some(mut ebpf) = self.ebpf.take()
        {
            guard::wait_until_free(&options, PATIENCE, RETRY);
            capabilities.guard = self.open_guard(&mut ebpf, &options);
            self.ebpf = Some(ebpf);
        }
    }

    /// Attaches steering to `listeners` as [`Kernel::attach_steering`], where [`Kernel::prepare_steering`] was before, as
    /// soon as the one before has let go of them.
    pub fn take_over_steering(&mut self, listeners: &[impl AsFd]) -> Result<(), KernelError> {
        let missing = KernelError::Missing { what: "program", name: PROGRAM };
        let (Some(steering), Some(ebpf)) = (self.steering.clone(), self.ebpf.as_mut()) else {
            return Err(missing);
        };
        let program = steering_program(ebpf)?;
        retry(|| steering.attach(program, listeners))
    }
}

/// Tries again while the kernel says that something is not free yet.
fn retry<T>(mut attempt: impl FnMut() -> Result<T, KernelError>) -> Result<T, KernelError> {
    let began = Instant::now();
    loop {
        match attempt() {
            Err(error) if super::errno(&error) == Some(libc::EBUSY) && began.elapsed() < PATIENCE => {
                std::thread::sleep(RETRY);
            }
            result => return result,
        }
    }
}
