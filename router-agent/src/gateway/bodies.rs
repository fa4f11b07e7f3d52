//! The memory of request bodies, over all connections: counted before it is taken, given back in `Drop`.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering::Relaxed},
};

use bytes::Bytes;

use super::GatewayError;

/// Bytes of bodies in memory.
#[derive(Debug, Default)]
pub(super) struct Bodies(AtomicUsize);

impl Bodies {
    pub(super) fn bytes(&self) -> usize {
        self.0.load(Relaxed)
    }
}

/// What one body has taken.
#[derive(Debug)]
pub(super) struct Held {
    bodies: Arc<Bodies>,
    bytes: usize,
}

impl Held {
    /// Nothing yet.
    pub(super) fn new(bodies: &Arc<Bodies>) -> Self {
        Self { bodies: bodies.clone(), bytes: 0 }
    }

    /// Takes as much as makes `bytes` together; false, and nothing changes, if all bodies would then have more than
    /// `bytes_max`.
    pub(super) fn grow_to(&mut self, bytes: usize, bytes_max: usize) -> bool {
        let more = bytes.saturating_sub(self.bytes);
        let within = |used: usize| used.checked_add(more).filter(|sum| *sum <= bytes_max);
        let may = more == 0 || self.bodies.0.fetch_update(Relaxed, Relaxed, within).is_ok();
        if may {
            self.bytes += more;
        }
        may
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.bodies.0.fetch_sub(self.bytes, Relaxed);
    }
}

/// A whole body, and its memory.
#[derive(Debug)]
pub(super) struct Collected {
    pub(super) bytes: Bytes,
    pub(super) held: Held,
}

impl Collected {
    /// Takes another body in its place, if all bodies then have no more than `bytes_max`.
    pub(super) fn replace(&mut self, bytes: Vec<u8>, bytes_max: usize) -> Result<(), GatewayError> {
        if !self.held.grow_to(bytes.len(), bytes_max) {
            return Err(GatewayError::BodiesTooLarge { limit: bytes_max });
        }
        self.bytes = bytes.into();
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_held_is_bounded_over_all_and_given_back() {
        let bodies = Arc::new(Bodies::default());
        let (mut one, mut other) = (Held::new(&bodies), Held::new(&bodies));
        assert!(one.grow_to(60, 100) && one.grow_to(50, 100), "less than it has is nothing new");
        assert!(!other.grow_to(41, 100) && other.grow_to(40, 100));
        assert_eq!(bodies.bytes(), 100);
        assert!(!one.grow_to(61, 100));
        drop(other);
        assert!(one.grow_to(100, 100));
        drop(one);
        assert_eq!(bodies.bytes(), 0);
    }
}
