//! nginx as a contender: `least_conn` over the workers, with the settings that a proxy of token streams needs.

use std::fmt::Write as _;
use std::net::SocketAddr;
use std::path::Path;

use anyhow::{Context, Result, ensure};

use crate::processes::output;

/// Such as `nginx version: nginx/1.22.1`.
pub(super) fn version(nginx: &Path) -> Result<String> {
    // It writes the version to standard error.
    output(nginx, &["-v"]).context("nginx is not installed (Debian: apt install nginx-light)")
}

/// Writes `nginx.conf` into `prefix`, which then holds everything that this nginx writes.
pub(super) fn write_config(prefix: &Path, listen: SocketAddr, workers: &[SocketAddr]) -> Result<()> {
    std::fs::create_dir_all(prefix).with_context(|| prefix.display().to_string())?;
    let threads = std::thread::available_parallelism()?.get();
    std::fs::write(prefix.join("nginx.conf"), config(listen, workers, threads))?;
    Ok(())
}

pub(super) fn arguments(prefix: &Path) -> Result<Vec<String>> {
    let prefix = prefix.canonicalize()?;
    let prefix = prefix.to_str().context("the log directory's name is not UTF-8")?;
    ensure!(!prefix.is_empty());
    Ok(["-p", prefix, "-c", "nginx.conf", "-e", "stderr"].map(str::to_owned).into())
}

/// As many worker processes as our gateway has data threads. `zone` lets them share their counts, without which
/// `least_conn` would balance in each of them alone; `keepalive_timeout` stays below the five seconds after which vLLM
/// closes an idle connection; a request's body fits in memory and goes out whole, as our gateway's does.
fn config(listen: SocketAddr, workers: &[SocketAddr], threads: usize) -> String {
    let mut servers = String::new();
    for worker in workers {
        let _ = writeln!(servers, "    server {worker} max_fails=0;");
    }
    format!(
        "daemon off;
worker_processes {threads};
error_log stderr warn;
pid nginx.pid;
events {{ worker_connections 4096; }}
http {{
  access_log off;
  client_max_body_size 64m;
  client_body_buffer_size 1m;
  client_body_temp_path body;
  proxy_temp_path proxy;
  fastcgi_temp_path fastcgi;
  uwsgi_temp_path uwsgi;
  scgi_temp_path scgi;
  upstream fleet {{
    zone fleet 256k;
    least_conn;
{servers}    keepalive 64;
    keepalive_timeout 4s;
  }}
  server {{
    listen {listen} reuseport;
    keepalive_requests 1000000;
    location / {{
      proxy_pass http://fleet;
      proxy_http_version 1.1;
      proxy_set_header Connection \"\";
      proxy_buffering off;
      proxy_read_timeout 1h;
      proxy_send_timeout 1h;
    }}
  }}
}}
"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_worker_is_a_server_of_the_upstream() {
        let workers: Vec<SocketAddr> =
            ["127.0.0.1:8001", "127.0.0.1:8002"].map(|w| w.parse().unwrap()).into();
        let config = config("127.0.0.1:8080".parse().unwrap(), &workers, 2);
        for line in [
            "    server 127.0.0.1:8001 max_fails=0;\n    server 127.0.0.1:8002 max_fails=0;\n",
            "    least_conn;",
            "    listen 127.0.0.1:8080 reuseport;",
            "worker_processes 2;",
            "proxy_set_header Connection \"\";",
        ] {
            assert!(config.contains(line), "{line} is missing in\n{config}");
        }
        assert_eq!(config.matches('{').count(), config.matches('}').count());
    }
}
