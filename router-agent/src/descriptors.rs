//! File descriptors: as many as this process may have, and no more client connections than they allow.
//!
//! Every connection is one, to a client as to a worker. A gateway that has none left could neither ask a worker nor tell a
//! client so; it refuses connections before that, politely.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Of all descriptors, the part (one in so many) that is kept for workers, the admin port, maps and files.
const KEPT: u64 = 4;

/// Raises the limit on open files as far as this process may (`setrlimit(2)`, `RLIMIT_NOFILE`): the soft limit is low for
/// the sake of select(2), which nothing here calls. Returns it; none if there is no limit.
pub fn raise() -> Option<u64> {
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit { current: limit.maximum, maximum: limit.maximum };
    match setrlimit(Resource::Nofile, raised) {
        Ok(()) => limit.maximum,
        Err(_) => limit.current,
    }
}

/// Client connections that `descriptors` allow.
pub fn connections_max(descriptors: Option<u64>) -> usize {
    let max = descriptors.map_or(u64::MAX, |all| all - all / KEPT);
    usize::try_from(max).unwrap_or(usize::MAX)
}

/// Descriptors that `connections` need.
pub fn needed(connections: usize) -> u64 {
    let connections = connections as u64;
    connections.saturating_add(connections.saturating_sub(1) / (KEPT - 1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_needed_is_enough_and_one_less_is_not() {
        for connections in [1, 2, 3, 10, 1_000, 65_536] {
            let needed = needed(connections);
            assert!(connections_max(Some(needed)) >= connections, "{connections}");
            assert!(connections_max(Some(needed - 1)) < connections, "{connections}");
        }
        assert_eq!(connections_max(None), usize::MAX);
    }

    #[test]
    fn the_soft_limit_becomes_the_hard_one() {
        let hard = getrlimit(Resource::Nofile).maximum;
        assert_eq!(raise(), hard);
        assert_eq!(getrlimit(Resource::Nofile).current, hard);
    }
}
