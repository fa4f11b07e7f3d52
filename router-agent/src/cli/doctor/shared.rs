//! What is to be said of the server of the shared state.

use super::Finding;
use crate::shared::{Fault, Probed};

const WHAT: &str = "shared state";

/// Its line. Nothing fails without it, so none says `wrong`.
pub(super) fn judge(probed: &Result<Probed, Fault>) -> Finding {
    match probed {
        Ok(probed) if probed.may_run_full => Finding::no(
            WHAT,
            format!("{probed}; when its memory is full it refuses what is written"),
            "maxmemory-policy allkeys-lru (everything that is written there expires, and may be evicted)",
        ),
        Ok(probed) => Finding::ok(WHAT, probed.to_string()),
        Err(fault) => Finding::no(
            WHAT,
            fault.to_string(),
            "is the server up, and do shared.urls, username, password and ca fit it? redis-cli -u URL ping",
        ),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::cli::doctor::State;

    #[test]
    fn a_server_that_may_run_full_or_is_not_there_has_its_remedy() {
        let good = Probed { version: None, round_trip: Duration::from_micros(90), may_run_full: false };
        assert_eq!(judge(&Ok(good.clone())).state, State::Ok);
        for bad in [Ok(Probed { may_run_full: true, ..good }), Err(Fault::Late(Duration::from_secs(1)))] {
            let line = judge(&bad);
            assert_eq!((line.state, line.remedy.is_some()), (State::No, true));
        }
    }
}
