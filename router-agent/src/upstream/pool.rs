//! Idle connections of one data thread, per worker.
//!
//! The freshest connection is taken first, so that the surplus of a burst grows old and is closed. The age limit is below
//! vLLM's keep-alive time (5.0 s): a connection that the worker is about to close is not worth the race.

use std::{
    cell::{Cell, RefCell},
    collections::HashMap,
    rc::Rc,
    time::{Duration, Instant},
};

use super::{
    ConnectError, Lease,
    connect::connect,
    lease::{Connection, RawConnection},
};
use crate::{
    fleet::{Worker, WorkerId},
    limits,
};

/// How a pool connects.
#[derive(Debug, Clone, Copy)]
pub struct PoolSettings {
    /// How long connecting may take.
    pub connect_timeout: Duration,
}

#[derive(Debug)]
struct Idle {
    connection: Parked,
    since: Instant,
}

/// An idle connection.
#[derive(Debug)]
pub(super) enum Parked {
    /// hyper watches it.
    Driven(Connection),
    /// Nobody does: its last response was relayed without hyper.
    Raw(RawConnection),
}

impl Parked {
    fn is_open(&self) -> bool {
        match self {
            Self::Driven(connection) => connection.is_open(),
            Self::Raw(raw) => raw.is_idle(),
        }
    }

    fn connection(self) -> Connection {
        match self {
            Self::Driven(connection) => connection,
            Self::Raw(raw) => raw.start(),
        }
    }
}

/// The pools of one data thread. Cloning gives another handle on the same pools.
#[derive(Debug, Clone)]
pub struct Pool {
    settings: Rc<Cell<PoolSettings>>,
    idle: Rc<RefCell<HashMap<WorkerId, Vec<Idle>>>>,
}

impl Pool {
    /// Empty pools.
    pub fn new(settings: PoolSettings) -> Self {
        Self { settings: Rc::new(Cell::new(settings)), idle: Rc::default() }
    }

    /// For the connections to come.
    pub fn configure(&self, settings: PoolSettings) {
        self.settings.set(settings);
    }

    /// A connection that was used before and is still good, if there is one.
    pub fn reuse(&self, worker: &Worker) -> Option<Lease> {
        let mut idle = self.idle.borrow_mut();
        let connections = idle.get_mut(&worker.id)?;
        let now = Instant::now();
        while let Some(Idle { connection, since }) = connections.pop() {
            if now.duration_since(since) >= limits::IDLE_CONNECTION_TIMEOUT {
                connections.clear(); // the rest is older still
            } else if connection.is_open() {
                return Some(Lease::new(self.clone(), worker.id, connection.connection(), true));
            }
        }
        None
    }

    /// A new connection. Needs a `LocalSet`: the connection is driven by a task on this thread.
    pub async fn connect(&self, worker: &Worker) -> Result<Lease, ConnectError> {
        let stream = connect(worker, self.settings.get().connect_timeout).await?;
        Ok(Lease::new(self.clone(), worker.id, Connection::start(stream), false))
    }

    /// Takes back a connection whose last response has been read to its end.
    pub(super) fn put(&self, worker: WorkerId, connection: Parked) {
        let mut idle = self.idle.borrow_mut();
        let connections = idle.entry(worker).or_default();
        if connection.is_open() && connections.len() < limits::IDLE_CONNECTIONS_MAX {
            connections.push(Idle { connection, since: Instant::now() });
        }
    }

    /// Closes what has been idle for too long. Called once a second by the data thread.
    pub fn sweep(&self) {
        let now = Instant::now();
        self.idle.borrow_mut().retain(|_, connections| {
            connections.retain(|idle| {
                idle.connection.is_open() && now.duration_since(idle.since) < limits::IDLE_CONNECTION_TIMEOUT
            });
            !connections.is_empty()
        });
    }
}
