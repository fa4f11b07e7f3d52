//! A tenant's limit, where several gateways keep it together: who finds nothing left here asks for a lease of what all have
//! ([`crate::shared`]), and goes by this gateway's own share where nobody answers in time.

use std::time::Instant;

use super::Shared;
use crate::{
    shared::Lent,
    tenants::{OverLimit, Source},
};

/// Others may take what one has leased: so often it is asked again.
const TRIES: usize = 3;

/// Takes by `take` what a limit has, leasing what is missing.
pub(super) async fn within_limits<T>(
    shared: &Shared,
    mut take: impl FnMut(Source, Instant) -> Result<T, OverLimit>,
) -> Result<T, OverLimit> {
    let source = shared.state.as_ref().map_or(Source::ALONE, |state| state.limits_source());
    let mut over = match take(source, Instant::now()) {
        Err(over) if over.lease.is_some() => over,
        done => return done,
    };
    for _ in 0..TRIES {
        let Some((state, lease)) = shared.state.as_ref().zip(over.lease) else { break };
        match state.lease(&over.tenant.name, over.kind, lease).await {
            Lent::Granted { amount, left } => {
                over.tenant.grant(over.kind, amount, left, Instant::now());
                match take(Source::Leases, Instant::now()) {
                    Err(again) if again.lease.is_some() => over = again,
                    done => return done,
                }
            }
            Lent::Refused { after } => {
                over.retry_after = Some(after);
                break;
            }
            Lent::Unknown => return take(state.own_share(), Instant::now()),
        }
    }
    over.count();
    Err(over)
}
