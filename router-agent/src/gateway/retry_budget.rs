//! How many retries there may be: a share of the requests, so that an outage is not multiplied by those who meet it.
//!
//! A token bucket without a clock. Each request pays in its share of a retry, each retry takes out a whole one. The
//! bucket starts full and holds [`RESERVE`] retries, so a quiet gateway may retry as it likes.

use std::sync::atomic::{AtomicI64, Ordering::Relaxed};

/// Retries that may be saved up.
pub(super) const RESERVE: u32 = 100;
/// Units of one retry: a share of it is a whole number of them.
const RETRY: i64 = 1_000_000;
const FULL: i64 = RESERVE as i64 * RETRY;

/// See the module. Shared by all data threads.
#[derive(Debug)]
pub(super) struct RetryBudget {
    balance: AtomicI64,
    share: AtomicI64,
}

impl RetryBudget {
    /// `share`: retries per request, 0 to 1.
    pub(super) fn new(share: f64) -> Self {
        let budget = Self { balance: AtomicI64::new(FULL), share: AtomicI64::new(0) };
        budget.set_share(share);
        budget
    }

    /// As in [`RetryBudget::new`], from now on.
    pub(super) fn set_share(&self, share: f64) {
        self.share.store((share * RETRY as f64) as i64, Relaxed);
    }

    /// A request has come.
    pub(super) fn pay_in(&self) {
        // Mostly full: then nothing is written.
        if self.balance.load(Relaxed) < FULL {
            self.balance.fetch_add(self.share.load(Relaxed), Relaxed);
        }
    }

    /// Takes a retry out; false if there is none.
    pub(super) fn take(&self) -> bool {
        let rest = |balance: i64| (balance >= RETRY).then_some(balance.min(FULL) - RETRY);
        self.balance.fetch_update(Relaxed, Relaxed, rest).is_ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn taken(budget: &RetryBudget) -> usize {
        std::iter::repeat_with(|| budget.take()).take_while(|took| *took).count()
    }

    #[test]
    fn after_the_reserve_there_is_one_retry_for_five_requests() {
        let budget = RetryBudget::new(0.2);
        assert_eq!(taken(&budget), RESERVE as usize);
        for requests in [5, 50, 500] {
            (0..requests).for_each(|_| budget.pay_in());
            assert_eq!(taken(&budget), requests / 5);
        }
    }

    #[test]
    fn no_more_than_the_reserve_is_saved_up() {
        let budget = RetryBudget::new(1.0);
        (0..10_000).for_each(|_| budget.pay_in());
        assert_eq!(taken(&budget), RESERVE as usize);
    }

    #[test]
    fn a_share_of_nothing_leaves_the_reserve_and_no_more() {
        let budget = RetryBudget::new(0.0);
        assert_eq!(taken(&budget), RESERVE as usize);
        (0..1_000).for_each(|_| budget.pay_in());
        assert_eq!(taken(&budget), 0);
    }
}
