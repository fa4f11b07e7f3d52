//! Pins: where other processes find the maps.
//!
//! The default instance pins straight into `/sys/fs/bpf/warmpath/`, an instance with a name into
//! `/sys/fs/bpf/warmpath-NAME/`. The directory belongs to one live process at a time, by an exclusive `flock` on the
//! directory itself: the kernel releases it however the process ends, so what lies in a directory that can be locked
//! is stale. A gateway that starts replaces what is stale in its own directory and removes what other instances left
//! behind. Pins are never reused, hence never of another version's shape. They are removed, with the directory, when
//! [`Pins`] is dropped.
//!
//! A user who is not root needs a directory of its own, made by root, and the right to pass through the root of the
//! file system; it then empties the directory but cannot remove it.

use std::{
    fs::{self, File, TryLockError},
    io,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use aya::maps::Map;

use super::error::{KernelError, chain};

/// Where bpffs is mounted on every distribution.
pub const DEFAULT_ROOT: &str = "/sys/fs/bpf";

/// The pin directory's name of the instance without a name, and what the others' begin with.
const DEFAULT_DIRECTORY: &str = "warmpath";

/// Longest instance name, bytes.
const INSTANCE_NAME_MAX: usize = 32;

/// The pin directory of an instance.
pub fn directory(root: &Path, instance: Option<&str>) -> PathBuf {
    match instance {
        None => root.join(DEFAULT_DIRECTORY),
        Some(name) => root.join(format!("{DEFAULT_DIRECTORY}-{name}")),
    }
}

const LOCK_TRIES: u32 = 10;
const LOCK_RETRY: Duration = Duration::from_millis(5);
/// How long the gateway before may take to give up the directory after it has said so.
const HAND_OVER_MAX: Duration = Duration::from_secs(2);

/// The instances that have a pin directory below `root`, with the name (`None`: the default instance) of each.
pub(super) fn instances(root: &Path) -> Vec<(Option<String>, PathBuf)> {
    let Ok(entries) = fs::read_dir(root) else { return Vec::new() };
    let mut instances: Vec<_> = entries
        .filter_map(|entry| {
            let path = entry.ok()?.path();
            let name = path.file_name()?.to_str()?.strip_prefix(DEFAULT_DIRECTORY)?;
            let name = if name.is_empty() { None } else { Some(name.strip_prefix('-')?.to_owned()) };
            Some((name, path))
        })
        .collect();
    instances.sort();
    instances
}

/// Whether a live process holds this pin directory.
pub(super) fn is_held(directory: &Path) -> bool {
    let lock = File::open(directory).map(|lock| lock.try_lock_shared());
    matches!(lock, Ok(Err(TryLockError::WouldBlock)))
}

/// Removes what killed gateways left below `root`. Directories of live ones, and of other users, stay.
fn sweep(root: &Path) {
    for (_, directory) in instances(root) {
        if let Ok(lock) = File::open(&directory)
            && lock.try_lock().is_ok()
        {
            drop(Pins { directory, lock, is_handed_over: false });
        }
    }
}

/// A pin directory held by this process.
#[derive(Debug)]
pub(super) struct Pins {
    directory: PathBuf,
    /// Holds the lock; closing it releases it.
    lock: File,
    /// What is pinned is for whoever comes next.
    is_handed_over: bool,
}

impl Pins {
    /// Creates, locks and empties the directory of `instance`. The error is the reason to show.
    pub(super) fn claim(root: &Path, instance: Option<&str>) -> Result<Self, String> {
        if let Some(name) = instance
            && !is_valid_name(name)
        {
            return Err(format!(
                "instance name `{name}`: 1 to {INSTANCE_NAME_MAX} ASCII letters, digits, `-` and `_` (bpffs takes no dots)"
            ));
        }
        if !is_bpffs(root) {
            let root = root.display();
            return Err(format!("no BPF file system at {root}: mount it with `mount -t bpf bpf {root}`"));
        }
        let directory = directory(root, instance);
        let lock = Self::lock(&directory)?;
        let pins = Self { directory, lock, is_handed_over: false };
        pins.clear().map_err(|error| chain(&error))?;
        sweep(root);
        Ok(pins)
    }

    fn lock(directory: &Path) -> Result<File, String> {
        let refused = |what: &str, error: &io::Error| match error.kind() {
            // A matter of file modes, which no capability that the programs need has a say in.
            io::ErrorKind::PermissionDenied => {
                let fix = remedy(directory).map_or(String::new(), |fix| format!("; as root: `{fix}`"));
                format!("{what} {}: {error}{fix}", directory.display())
            }
            _ => format!("{what} {}: {error}", directory.display()),
        };
        // Twice it is worth another try: a process that ends cleanly removes the directory that we have just opened,
        // and one that looks whether the directory is stale holds the lock for a moment.
        let mut held = false;
        for _ in 0..LOCK_TRIES {
            fs::create_dir_all(directory).map_err(|error| refused("creating", &error))?;
            let lock = match File::open(directory) {
                Ok(lock) => lock,
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                Err(error) => return Err(refused("opening", &error)),
            };
            match lock.try_lock() {
                Ok(()) if is_same_file(&lock, directory) => return Ok(lock),
                Ok(()) => {}
                Err(TryLockError::WouldBlock) => {
                    held = true;
                    std::thread::sleep(LOCK_RETRY);
                }
                Err(TryLockError::Error(error)) => return Err(refused("locking", &error)),
            }
        }
        Err(if held {
            format!(
                "another running gateway holds {}: give this one a name of its own (`instance`)",
                directory.display()
            )
        } else {
            format!("{} keeps being removed by other processes", directory.display())
        })
    }

    /// Pins one map under its name.
    pub(super) fn pin(&self, name: &'static str, map: &Map) -> Result<(), KernelError> {
        map.pin(self.directory.join(name)).map_err(|source| KernelError::Pin { name, source })
    }

    /// Removes whatever is pinned: a killed process's maps live on for as long as a pin holds them.
    fn clear(&self) -> Result<(), KernelError> {
        let io = |path: &Path| {
            let path = path.to_owned();
            move |source| KernelError::Io { path, source }
        };
        for entry in fs::read_dir(&self.directory).map_err(io(&self.directory))? {
            let path = entry.map_err(io(&self.directory))?.path();
            fs::remove_file(&path).map_err(io(&path))?;
        }
        Ok(())
    }

    /// Gives the directory up as it stands: a successor replaces what is in it.
    pub(super) fn hand_over(mut self) {
        self.is_handed_over = true;
    }

    pub(super) fn directory(&self) -> &Path {
        &self.directory
    }
}

impl Drop for Pins {
    fn drop(&mut self) {
        // Only if the path still names what we locked: someone may have removed it and another instance moved in.
        if !self.is_handed_over && is_same_file(&self.lock, &self.directory) {
            let _ = self.clear();
            let _ = fs::remove_dir(&self.directory);
        }
    }
}

/// Maps that are pinned beside those of the gateway that runs, to take their places. Dropped before that, they are removed.
#[derive(Debug)]
pub(super) struct Staged {
    directory: PathBuf,
    names: Vec<&'static str>,
}

impl Staged {
    /// In the directory of `instance`, which a live gateway holds.
    pub(super) fn new(root: &Path, instance: Option<&str>) -> Self {
        Self { directory: directory(root, instance), names: Vec::new() }
    }

    /// Pins one map beside the name that it will have.
    pub(super) fn pin(&mut self, name: &'static str, map: &Map) -> Result<(), KernelError> {
        let path = self.beside(name);
        let _ = fs::remove_file(&path); // of a successor that failed
        map.pin(path).map_err(|source| KernelError::Pin { name, source })?;
        self.names.push(name);
        Ok(())
    }

    /// Takes the names, once the directory has been given up.
    pub(super) fn take_over(mut self) -> Result<Pins, String> {
        let began = Instant::now();
        let lock = loop {
            match Pins::lock(&self.directory) {
                Err(reason) if began.elapsed() > HAND_OVER_MAX => return Err(reason),
                Err(_) => {}
                Ok(lock) => break lock,
            }
        };
        let pins = Pins { directory: self.directory.clone(), lock, is_handed_over: false };
        let names = std::mem::take(&mut self.names);
        for name in &names {
            let path = self.directory.join(name);
            fs::rename(self.beside(name), &path).map_err(|error| format!("{}: {error}", path.display()))?;
        }
        // What the one before had and this one has not, the guard's maps for one.
        for entry in fs::read_dir(&self.directory).into_iter().flatten().flatten() {
            if !names.iter().any(|name| entry.file_name() == **name) {
                let _ = fs::remove_file(entry.path());
            }
        }
        Ok(pins)
    }

    fn beside(&self, name: &str) -> PathBuf {
        self.directory.join(format!("{name}_next"))
    }
}

impl Drop for Staged {
    fn drop(&mut self) {
        for name in &self.names {
            let _ = fs::remove_file(self.beside(name));
        }
    }
}

/// What root does once so that this process's user may pin in `directory`.
fn remedy(directory: &Path) -> Option<String> {
    let user = fs::metadata("/proc/self").ok()?.uid();
    let (root, directory) = (directory.parent()?.display(), directory.display());
    Some(format!("chmod 0711 {root} && install -d -o {user} -m 0750 {directory}"))
}

fn is_same_file(open: &File, path: &Path) -> bool {
    match (open.metadata(), fs::metadata(path)) {
        (Ok(open), Ok(named)) => (open.dev(), open.ino()) == (named.dev(), named.ino()),
        _ => false,
    }
}

fn is_valid_name(name: &str) -> bool {
    (1..=INSTANCE_NAME_MAX).contains(&name.len())
        && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_')
}

/// Whether `path` lies on a BPF file system.
fn is_bpffs(path: &Path) -> bool {
    // Without /proc nobody can say: then the first pin tells.
    fs::read_to_string("/proc/self/mounts").map_or(true, |mounts| file_system(&mounts, path) == Some("bpf"))
}

/// The type of the file system that `path` lies on, by a `/proc/self/mounts`.
fn file_system<'a>(mounts: &'a str, path: &Path) -> Option<&'a str> {
    mounts
        .lines()
        .filter_map(|line| {
            let mut fields = line.split(' ');
            let (_device, point, kind) = (fields.next()?, fields.next()?, fields.next()?);
            path.starts_with(point).then_some((Path::new(point).components().count(), kind))
        })
        // The deepest mount point wins; of two on the same point, the later one.
        .max_by_key(|(depth, _)| *depth)
        .map(|(_, kind)| kind)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn instances_have_directories_of_their_own() {
        let root = Path::new(DEFAULT_ROOT);
        assert_eq!(directory(root, None), Path::new("/sys/fs/bpf/warmpath"));
        assert_eq!(directory(root, Some("b")), Path::new("/sys/fs/bpf/warmpath-b"));
    }

    #[test]
    fn names_that_bpffs_or_a_path_would_not_take_are_refused() {
        assert!(is_valid_name("gateway-2_b"));
        for name in ["", "a.b", "../x", "a/b", "é", &"x".repeat(33)] {
            assert!(!is_valid_name(name), "{name}");
        }
    }

    #[test]
    fn the_deepest_and_latest_mount_decides() {
        let mounts = "sysfs /sys sysfs rw 0 0\nbpf /sys/fs/bpf bpf rw,mode=700 0 0\ntmpfs /sys/fs/bpf/x tmpfs rw 0 0\n";
        assert_eq!(file_system(mounts, Path::new("/sys/fs/bpf")), Some("bpf"));
        assert_eq!(file_system(mounts, Path::new("/sys/fs/bpf/x")), Some("tmpfs"));
        assert_eq!(file_system(mounts, Path::new("/sys/fs/bpfx")), Some("sysfs"));
        assert_eq!(file_system("a /m bpf rw\nb /m tmpfs rw\n", Path::new("/m")), Some("tmpfs"));
    }
}
