//! `warmpath workers`: the fleet of a running gateway, over its admin port.

use std::{
    io::{self, Read as _, Write as _},
    path::PathBuf,
    thread,
    time::Duration,
};

use bytes::Bytes;
use clap::{Args, Subcommand};
use http::Method;
use serde_json::{Value, json};

use super::{
    admin::{AdminArgs, AdminClient, AdminError, encoded},
    columns,
};

/// How often a drain is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(500);

/// Arguments of `warmpath workers`.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  \
    warmpath workers list\n  \
    warmpath workers drain gpu1 --wait          # returns when nothing is in flight there\n  \
    warmpath workers undrain gpu1\n  \
    warmpath workers add http://10.0.0.7:8000 --name gpu7\n  \
    warmpath workers remove gpu7 --timeout 5m   # what is in flight then is cut off\n  \
    warmpath workers list --json | jq '.[] | select(.health != \"healthy\") | .name'\n\n\
Changes last over reloads, until the gateway is restarted: the file says what is then.")]
pub struct WorkersArgs {
    #[command(subcommand)]
    action: Action,
    #[command(flatten)]
    admin: AdminArgs,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// Show all workers.
    List {
        /// As the admin API answers it.
        #[arg(long)]
        json: bool,
    },
    /// Add a worker: it is asked for its health, and then it may be chosen.
    Add {
        /// http://HOST:PORT or https://HOST:PORT.
        url: String,
        /// What it is called [default: HOST:PORT].
        #[arg(long)]
        name: Option<String>,
        /// A file with the key that it wants (vLLM's --api-key); `-` for standard input.
        #[arg(long, value_name = "FILE")]
        api_key_file: Option<PathBuf>,
    },
    /// Give a worker no more requests; those in flight finish. It stays in the fleet.
    Drain {
        /// Its name.
        name: String,
        /// Return when nothing is in flight there, and show how far it is.
        #[arg(long)]
        wait: bool,
    },
    /// Give a drained worker requests again.
    Undrain {
        /// Its name.
        name: String,
    },
    /// Drain a worker, then take it out of the fleet.
    Remove {
        /// Its name.
        name: String,
        /// Cut off what is still in flight after this long, e.g. 5m [default: never].
        #[arg(long, value_name = "DURATION", value_parser = humantime::parse_duration)]
        timeout: Option<Duration>,
        /// Cut off what is in flight at once.
        #[arg(long, conflicts_with = "timeout")]
        force: bool,
        /// Return when it is gone.
        #[arg(long)]
        wait: bool,
    },
}

/// Why the fleet is as it was.
#[derive(Debug, thiserror::Error)]
pub enum WorkersError {
    /// The gateway.
    #[error("workers: {0}")]
    Admin(#[from] AdminError),
    /// The worker's key.
    #[error("workers: cannot read the key from {}: {source}", path.display())]
    Key {
        /// The file.
        path: PathBuf,
        /// The system's word.
        source: io::Error,
    },
    /// Nobody reads what is printed.
    #[error("workers: cannot print: {0}")]
    Output(#[from] io::Error),
}

pub(super) fn run(args: &WorkersArgs) -> Result<(), WorkersError> {
    let client = AdminClient::new(&args.admin)?;
    match &args.action {
        Action::List { json } => list(&client, *json),
        Action::Add { url, name, api_key_file } => {
            let key = api_key_file.as_deref().map(read_key).transpose()?;
            let mut entry = json!({ "url": url });
            for (member, value) in [("name", name.clone()), ("api_key", key)] {
                if let Some(value) = value {
                    entry[member] = value.into();
                }
            }
            let worker = client.ask(Method::POST, "/workers", entry.to_string().into())?;
            say(&format!("{}: added, {}", text(&worker, "name"), state(&worker)))
        }
        Action::Drain { name, wait } => {
            let worker = client.ask(Method::POST, &path(name, "/drain"), Bytes::new())?;
            say(&format!("{name}: {}", state(&worker)))?;
            if *wait { wait_until(&client, name, state(&worker), is_drained) } else { Ok(()) }
        }
        Action::Undrain { name } => {
            let worker = client.ask(Method::POST, &path(name, "/undrain"), Bytes::new())?;
            say(&format!("{name}: {}", state(&worker)))
        }
        Action::Remove { name, timeout, force, wait } => {
            let query = match timeout {
                Some(timeout) => {
                    format!("?timeout={}", encoded(&humantime::format_duration(*timeout).to_string()))
                }
                None if *force => "?force=true".to_owned(),
                None => String::new(),
            };
            let worker = client.ask(Method::DELETE, &path(name, &query), Bytes::new())?;
            say(&format!("{name}: {}", state(&worker)))?;
            if *wait { wait_until(&client, name, state(&worker), |_| false) } else { Ok(()) }
        }
    }
}

fn read_key(path: &std::path::Path) -> Result<String, WorkersError> {
    let mut key = String::new();
    let read = if path.as_os_str() == "-" {
        io::stdin().read_to_string(&mut key)
    } else {
        std::fs::File::open(path).and_then(|mut file| file.read_to_string(&mut key))
    };
    read.map_err(|source| WorkersError::Key { path: path.to_owned(), source })?;
    Ok(key.trim_end_matches(['\r', '\n']).to_owned())
}

fn path(name: &str, rest: &str) -> String {
    format!("/workers/{}{rest}", encoded(name))
}

fn list(client: &AdminClient, json: bool) -> Result<(), WorkersError> {
    let workers: Vec<Value> = client.get("/workers")?;
    if json {
        return say(&format!("{:#}", Value::Array(workers)));
    }
    let heads =
        ["NAME", "URL", "STATE", "BREAKER", "IN FLIGHT", "KV CACHE", "PREFILL QUEUE", "COMPLETED", "FAILED"];
    let row = |worker: &Value| {
        let kv_cache = worker["kv_cache_usage"].as_f64().unwrap_or(0.0);
        [
            text(worker, "name"),
            text(worker, "url"),
            state(worker),
            text(worker, "breaker"),
            text(worker, "in_flight_requests"),
            format!("{:.0} %", kv_cache * 100.0),
            text(worker, "queued_prefill_tokens"),
            text(worker, "requests_completed"),
            text(worker, "requests_failed"),
        ]
    };
    let rows: Vec<_> = std::iter::once(heads.map(str::to_owned)).chain(workers.iter().map(row)).collect();
    say(columns(&rows).trim_end())
}

/// Looks at the worker until it is as wanted, or gone, and says how far it is whenever that has changed.
fn wait_until(
    client: &AdminClient,
    name: &str,
    mut said: String,
    is_done: impl Fn(&Value) -> bool,
) -> Result<(), WorkersError> {
    loop {
        match client.get::<Value>(&path(name, "")) {
            Ok(worker) => {
                let now = state(&worker);
                if now != said {
                    say(&format!("{name}: {now}"))?;
                    said = now;
                }
                if is_done(&worker) {
                    return Ok(());
                }
            }
            Err(AdminError::Refused { status, .. }) if status == http::StatusCode::NOT_FOUND => {
                return say(&format!("{name}: gone"));
            }
            Err(error) => return Err(error.into()),
        }
        thread::sleep(LOOK_EVERY);
    }
}

fn is_drained(worker: &Value) -> bool {
    worker["drain"]["done"] == true || worker["standing"] == "serving"
}

/// What a worker is, the worst first.
pub(super) fn state(worker: &Value) -> String {
    let standing = text(worker, "standing");
    let left =
        format!("{} of {} left", worker["drain"]["in_flight_left"], worker["drain"]["in_flight_at_first"]);
    match standing.as_str() {
        "draining" if worker["drain"]["done"] == true => "drained".to_owned(),
        "draining" | "leaving" => format!("{standing}, {left}"),
        _ if worker["health"] != "healthy" => text(worker, "health"),
        _ if worker["engine"] != "live" => text(worker, "engine"),
        _ if worker["ejected"] == true => "left out".to_owned(),
        _ if worker["resting"] == true => "resting".to_owned(),
        _ => standing,
    }
}

/// A member as it is to be read: names come from outside, and this is a terminal.
pub(super) fn text(value: &Value, member: &str) -> String {
    let text = match &value[member] {
        Value::String(text) => text.clone(),
        Value::Null => "-".to_owned(),
        other => other.to_string(),
    };
    text.chars().map(|c| if c.is_control() { '?' } else { c }).collect()
}

fn say(line: &str) -> Result<(), WorkersError> {
    match writeln!(io::stdout(), "{line}") {
        // `warmpath workers list | head -1`
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        other => Ok(other?),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_worker_s_state_is_the_worst_that_is_known_of_it() {
        let serving = json!({
            "standing": "serving", "health": "healthy", "engine": "live", "ejected": false, "resting": false,
        });
        let with = |changes: Value| {
            let mut worker = serving.clone();
            for (name, value) in changes.as_object().expect("members") {
                worker[name] = value.clone();
            }
            state(&worker)
        };
        assert_eq!(with(json!({})), "serving");
        assert_eq!(with(json!({"resting": true})), "resting");
        assert_eq!(with(json!({"resting": true, "engine": "hung"})), "hung");
        assert_eq!(with(json!({"engine": "hung", "health": "unhealthy"})), "unhealthy");
        let drain = |left: u32| json!({"standing": "draining", "drain": {"in_flight_left": left, "in_flight_at_first": 7, "done": left == 0}});
        assert_eq!(with(drain(3)), "draining, 3 of 7 left");
        assert_eq!(with(drain(0)), "drained");
        assert!(is_drained(&drain(0)) && !is_drained(&drain(1)) && is_drained(&serving));
    }

    #[test]
    fn a_name_is_one_segment_of_a_path() {
        assert_eq!(path("gpu1", "/drain"), "/workers/gpu1/drain");
        assert_eq!(path("a/b?c#d%", ""), "/workers/a%2Fb%3Fc%23d%25");
    }
}
