//! How the gateway behaves, told by running it: a `warmpath` process in front of simulated workers.
#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used, reason = "clippy knows test functions, not what they call")]

mod admin_access;
mod cache;
mod check;
mod command;
mod conformance;
mod controller;
mod dashboards;
mod decisions;
mod drain;
mod dropped_privileges;
mod early_answers;
mod endings;
mod errors;
mod failover;
mod guard;
mod hang_up;
mod hooks;
mod http2;
mod hung;
mod keep_alive;
mod kernel;
mod kernel_relay;
mod keys;
mod kv_events;
mod limits;
mod models;
mod observe;
mod overload;
mod passthrough;
mod policies;
mod privileges;
mod relay_stress;
mod reload;
mod routing;
mod schema;
mod secrets;
mod shaping;
mod systemd;
mod tidy;
mod timing;
mod tls;
mod tokens;
mod upgrade;
mod workers;
