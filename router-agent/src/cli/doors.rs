//! Where the listening sockets come from: the gateway that runs, systemd, or this process itself.

use std::net::TcpListener;

use super::serve::{ServeError, system};
use crate::{
    config::Config,
    gateway::Listeners,
    lifecycle::{
        Activated,
        handover::{self, Addresses, Giver, Offer, Release, Sockets},
    },
};

/// The sockets, and whose they were.
pub(super) struct Doors {
    pub(super) listeners: Listeners,
    pub(super) admin: TcpListener,
    configured: Addresses,
    pub(super) actual: Addresses,
    /// The gateway that runs waits to be told that this one serves.
    pub(super) offer: Option<Offer>,
}

/// Gets the sockets.
pub(super) fn open(config: &Config) -> Result<Doors, ServeError> {
    let configured = Addresses { listen: config.listen, admin: config.admin };
    let activated = Activated::take().map_err(system("cannot use the sockets that systemd has passed"))?;
    let mut offer = handover::take(&config.instance, configured).unwrap_or_else(|error| {
        tracing::warn!(%error, "no upgrade: the gateway that runs could not be asked for its sockets");
        None
    });
    let (passed, admin) = match &mut offer {
        Some(offer) => (std::mem::take(&mut offer.clients), offer.admin.take()),
        None => (activated.clients, activated.admin),
    };
    let listeners = if passed.is_empty() {
        Listeners::open(config.listen, config.threads)?
    } else {
        Listeners::adopt(passed, config.threads).map_err(system("cannot use the sockets that were passed"))?
    };
    let admin = match admin {
        Some(admin) => admin,
        None => TcpListener::bind(config.admin)
            .map_err(|source| Listeners::explain(config.admin, "admin", source))?,
    };
    admin.set_nonblocking(true).map_err(system("cannot use the admin socket"))?;
    let address = admin.local_addr().map_err(system("cannot read the admin address"))?;
    let actual = Addresses { listen: listeners.address, admin: address };
    Ok(Doors { listeners, admin, configured, actual, offer })
}

impl Doors {
    /// Second handles, for a successor.
    pub(super) fn sockets(&self) -> std::io::Result<Sockets> {
        let (clients, admin) = (self.listeners.handles()?, self.admin.try_clone()?);
        Ok(Sockets { configured: self.configured, actual: self.actual, clients, admin })
    }
}

/// Who waits for a successor, and its word.
pub(super) struct Succession {
    pub(super) giver: Option<Giver>,
    successors: Option<tokio::sync::mpsc::Receiver<Release>>,
}

impl Succession {
    /// Waits for a successor from now on, if nobody of this name does.
    pub(super) fn start(instance: &str, sockets: Sockets) -> Self {
        match Giver::start(instance, sockets) {
            Ok((giver, successors)) => Self { giver: Some(giver), successors: Some(successors) },
            Err(error) => {
                tracing::warn!(
                    %error,
                    "no successor can take over from this gateway: another one has the name {instance:?}; give this one a \
                     name of its own (`instance`)"
                );
                Self { giver: None, successors: None }
            }
        }
    }

    /// Completes when a successor serves.
    pub(super) async fn next(&mut self) -> Release {
        let next = match &mut self.successors {
            Some(successors) => successors.recv().await,
            None => None,
        };
        match next {
            Some(release) => release,
            None => std::future::pending().await,
        }
    }
}
