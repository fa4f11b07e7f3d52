//! Python programs that a test needs, in environments of their own below `target/`: made once, kept, and where they cannot
//! be had the test says so and is skipped.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::{Duration, Instant},
};

/// How long an installation may take.
const INSTALL_PATIENCE: Duration = Duration::from_mins(5);

/// The `bin` folder of an environment with this requirement (as `pip install` takes it), or why there is none. Of tests
/// that ask for the same at the same time one makes it, and the others wait.
pub fn python_with(name: &str, requirement: &str) -> Result<PathBuf, String> {
    let target = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/python");
    let directory = target.join(name);
    let (bin, done) = (directory.join("bin"), directory.join("installed"));
    fs::create_dir_all(&target).map_err(|error| error.to_string())?;
    let lock = fs::File::create(target.join(format!("{name}.lock"))).map_err(|error| error.to_string())?;
    lock.lock().map_err(|error| error.to_string())?; // until it is dropped
    if fs::read_to_string(&done).is_ok_and(|what| what == requirement) {
        return Ok(bin);
    }
    let _ = fs::remove_dir_all(&directory);
    run(Command::new("python3").args(["-m", "venv"]).arg(&directory))?;
    let pip = ["-m", "pip", "install", "--quiet", "--disable-pip-version-check", requirement];
    run(Command::new(bin.join("python")).args(pip))?;
    fs::write(done, requirement).map_err(|error| error.to_string())?;
    Ok(bin)
}

fn run(command: &mut Command) -> Result<(), String> {
    let program = command.get_program().display().to_string();
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .map_err(|error| format!("{program}: {error}"))?;
    let started = Instant::now();
    loop {
        match child.try_wait().map_err(|error| error.to_string())? {
            Some(status) if status.success() => return Ok(()),
            Some(status) => {
                return Err(format!("{program} ended with {status}: is the package index reachable?"));
            }
            None if started.elapsed() > INSTALL_PATIENCE => {
                let _ = child.kill();
                let _ = child.wait();
                return Err(format!("{program} took longer than {INSTALL_PATIENCE:?}"));
            }
            None => std::thread::sleep(Duration::from_millis(100)),
        }
    }
}
