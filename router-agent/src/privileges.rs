//! What this process may still do once it serves: as little as it needs.
//!
//! Opening the kernel side, low ports and keys that only root can read take privileges; serving does not. So they are given
//! up behind that, and before the threads that serve are started: capabilities, uid and gid belong to a thread, and a new one
//! has those of the thread that starts it. A thread that serves and has to be started before is started by one that has none
//! ([`without`]), and those that wait for the kernel follow within a turn of their loop ([`Follower`]). What a
//! successor needs, another process keeps (`lifecycle::Keeper`).
//!
//! What serving needs of the kernel side is looking up and changing its maps, and running one program, all by descriptors
//! that are open. Linux 5.19 and later let any process do that; before, one with `CAP_BPF`, unless
//! `kernel.unprivileged_bpf_disabled` is 0. It is tried, and kept only where it is needed.

use std::{
    fmt,
    sync::atomic::{
        AtomicBool,
        Ordering::{Acquire, Release},
    },
};

use caps::{CapSet, Capability, CapsHashSet, errors::CapsError};
use nix::{
    sys::prctl,
    unistd::{self, Gid, Uid, User},
};

/// Why privileges could not be given up.
#[derive(Debug, thiserror::Error)]
pub enum PrivilegeError {
    /// The user to become is not there.
    #[error("user: this system has no user {0:?}")]
    NoUser(String),
    /// Only root may become somebody else.
    #[error("user: cannot become {user}: {source}; start as root, or as that user and without `user`")]
    User {
        /// As configured.
        user: String,
        /// The system's word.
        source: nix::Error,
    },
    /// The capabilities stayed.
    #[error("cannot give up capabilities: {0}")]
    Caps(#[from] CapsError),
    /// A program that this one started could gain privileges.
    #[error("no_new_privs: {0}")]
    NoNewPrivileges(nix::Error),
}

/// A user to become.
#[derive(Debug, Clone)]
pub struct Account {
    /// Its name, as configured.
    name: String,
    uid: Uid,
    gid: Gid,
}

impl Account {
    /// Looks a user up.
    pub fn find(name: &str) -> Result<Self, PrivilegeError> {
        let found = User::from_name(name).ok().flatten();
        let User { uid, gid, .. } = found.ok_or_else(|| PrivilegeError::NoUser(name.to_owned()))?;
        Ok(Self { name: name.to_owned(), uid, gid })
    }
}

/// What is left.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Kept {
    /// Who the process is.
    uid: u32,
    /// Whether it had any capability before.
    had_any: bool,
    /// `CAP_BPF` is left, because this kernel asks for it at every look into a map.
    bpf: bool,
}

impl fmt::Display for Kept {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.bpf, self.had_any) {
            (true, _) => write!(out, "CAP_BPF (this kernel asks for it at each use of a map)")?,
            (false, true) => write!(out, "none: all were given up")?,
            (false, false) => write!(out, "none: there were none")?,
        }
        write!(out, "; uid {}", self.uid)
    }
}

/// Becomes `account`, with the capabilities that there are. To be called before other threads are started.
pub fn become_account(account: &Account) -> Result<(), PrivilegeError> {
    let permitted = caps::read(None, CapSet::Permitted)?;
    // Else all capabilities go with root's uid.
    caps::securebits::set_keepcaps(true)?;
    set_ids(account).map_err(|source| PrivilegeError::User { user: account.name.clone(), source })?;
    caps::securebits::set_keepcaps(false)?;
    caps::set(None, CapSet::Effective, &permitted)?;
    Ok(())
}

fn set_ids(account: &Account) -> nix::Result<()> {
    if unistd::getuid() == account.uid && unistd::getgid() == account.gid {
        return Ok(());
    }
    unistd::setgroups(&[account.gid])?;
    unistd::setresgid(account.gid, account.gid, account.gid)?;
    unistd::setresuid(account.uid, account.uid, account.uid)
}

/// Gives up, in this thread and those that it will start, what serving does not need.
///
/// `can_serve` says whether the kernel side can be used without any capability.
pub fn drop(can_serve: impl FnOnce() -> bool) -> Result<Kept, PrivilegeError> {
    let kept = drop_here(can_serve)?;
    DROPPED.store(true, Release);
    Ok(kept)
}

fn drop_here(can_serve: impl FnOnce() -> bool) -> Result<Kept, PrivilegeError> {
    let had_any = !caps::read(None, CapSet::Permitted)?.is_empty();
    let had_bpf = caps::has_cap(None, CapSet::Permitted, Capability::CAP_BPF)?;
    prctl::set_no_new_privs().map_err(PrivilegeError::NoNewPrivileges)?;
    // A program that is executed could gain these; who has not CAP_SETPCAP cannot, for want of new privileges.
    if caps::has_cap(None, CapSet::Effective, Capability::CAP_SETPCAP)? {
        caps::clear(None, CapSet::Bounding)?;
    }
    for set in [CapSet::Ambient, CapSet::Inheritable, CapSet::Effective] {
        caps::clear(None, set)?;
    }
    let bpf = !can_serve() && had_bpf;
    let kept: CapsHashSet = bpf.then_some(Capability::CAP_BPF).into_iter().collect();
    caps::set(None, CapSet::Permitted, &kept)?;
    caps::set(None, CapSet::Effective, &kept)?;
    Ok(Kept { uid: unistd::getuid().as_raw(), had_any, bpf })
}

/// Runs `start` in a thread without privileges, for what it starts; `can_serve` as for [`drop`].
pub fn without<T: Send>(
    can_serve: impl FnOnce() -> bool + Send,
    start: impl FnOnce() -> T + Send,
) -> Result<T, PrivilegeError> {
    let run = || drop_here(can_serve).map(|_| start());
    std::thread::scope(|scope| scope.spawn(run).join())
        .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

/// A thread has called [`drop`].
static DROPPED: AtomicBool = AtomicBool::new(false);

/// For a thread that was started before [`drop`] and needs no privilege.
#[derive(Debug, Default)]
pub struct Follower {
    has_followed: bool,
}

impl Follower {
    /// Gives up everything, once the process has. To be called again and again; costs a look at a flag.
    pub fn follow(&mut self) {
        if !self.has_followed && DROPPED.load(Acquire) {
            self.has_followed = true;
            if let Err(error) = drop_in_this_thread() {
                tracing::warn!(%error, "a thread keeps privileges that it has no use for");
            }
        }
    }
}

fn drop_in_this_thread() -> Result<(), PrivilegeError> {
    for set in [CapSet::Ambient, CapSet::Inheritable, CapSet::Effective, CapSet::Permitted] {
        caps::clear(None, set)?;
    }
    prctl::set_no_new_privs().map_err(PrivilegeError::NoNewPrivileges)
}
