//! What `warmpath serve` says when it is ready: for a person in text, as one event in JSON logs.

use std::{net::SocketAddr, time::Instant};

use crate::{
    config::{Config, Front, LogFormat},
    fleet::{Fleet, Health},
    kernel::Capabilities,
    privileges::Kept,
};

pub(super) struct Banner<'a> {
    pub(super) config: &'a Config,
    /// Where clients connect.
    pub(super) listen: SocketAddr,
    /// Where operators connect.
    pub(super) admin: SocketAddr,
    pub(super) capabilities: &'a Capabilities,
    /// What the process may still do.
    pub(super) rights: &'a Kept,
    /// Simulated workers that this process started.
    pub(super) simulated: usize,
    pub(super) started: Instant,
}

impl Banner<'_> {
    /// Says that the gateway is ready, with whom it serves, what the kernel allows, and how to try it.
    pub(super) fn announce(&self, fleet: &Fleet) {
        let elapsed_ms = self.started.elapsed().as_millis() as u64;
        let workers = fleet.workers();
        let healthy = workers.iter().filter(|worker| worker.health() == Health::Healthy).count();
        let Self { listen, admin, .. } = self;
        let Config { routing, threads, .. } = self.config;
        let policy = routing.settings.policy;
        if self.config.log_format == LogFormat::Json {
            for (name, capability) in self.capabilities.iter() {
                tracing::info!(capability = name, state = %capability, "kernel");
            }
            tracing::info!(rights = %self.rights, "privileges");
            tracing::info!(%listen, %admin, %policy, threads, workers = workers.len(), healthy, elapsed_ms, "ready");
            return;
        }
        println!("warmpath {} ready in {elapsed_ms} ms", env!("CARGO_PKG_VERSION"));
        let scheme = |tls: bool| if tls { "https" } else { "http" };
        let is_picker = self.config.front == Front::EndpointPicker;
        let clients = match (is_picker, self.config.tls.is_some()) {
            (true, true) => "grpcs",
            (true, false) => "grpc",
            (false, is_tls) => scheme(is_tls),
        };
        println!("  clients   {clients}://{listen}   ({policy} policy, {threads} data threads)");
        println!(
            "  admin     {}://{admin}   (a page for browsers; /metrics /ready /workers /openapi.json)",
            scheme(self.config.admin_tls.is_some())
        );
        let simulated = if self.simulated > 0 {
            format!(", {} simulated ones started here", self.simulated)
        } else {
            String::new()
        };
        println!("  workers   {healthy} of {} healthy{simulated}", workers.len());
        for worker in workers.iter() {
            println!(
                "            {:<24} {:<32} {}",
                worker.name,
                worker.url.to_string(),
                worker.health().label()
            );
        }
        for (name, capability) in self.capabilities.iter() {
            println!("  kernel    {name:<12} {capability}");
        }
        println!("  rights    capabilities kept: {}", self.rights);
        if is_picker {
            println!("Envoy's ext_proc filter and gRPC health checks connect to {listen}: docs/epp.md.");
        } else {
            println!("try it:");
            println!("  curl -s {clients}://{listen}/v1/models");
            println!("{}", self.curl(clients));
        }
        println!("Ctrl-C stops everything.");
    }

    /// A command that works when pasted into another terminal: no model is named, the worker takes its own.
    fn curl(&self, scheme: &str) -> String {
        format!(
            "  curl -sN {}://{}/v1/chat/completions -H 'content-type: application/json' \\\n    \
             -d '{{\"messages\":[{{\"role\":\"user\",\"content\":\"Hello\"}}],\"stream\":true,\"max_tokens\":16}}'",
            scheme, self.listen
        )
    }
}
