//! A request that is ready for a worker: from its plan to the first answer that is worth passing on.

use std::{
    rc::Rc,
    time::{Duration, Instant},
};

use http::HeaderValue;

use super::{
    GatewayError,
    account::RequestAccount,
    admission::Bid,
    bodies::Held,
    choose::Plan,
    lease::within_limits,
    outgoing::Outgoing,
    route::Route,
    snapshot::Snapshot,
    thread::ThreadContext,
    tokens,
    tries::{Answer, Tries},
};
use crate::traces::Phase;

/// See the module.
pub(super) struct Planned {
    pub(super) route: Route,
    pub(super) outgoing: Outgoing,
    pub(super) plan: Plan,
    /// What parsing and hashing took.
    pub(super) planning: Duration,
    /// The memory of its body.
    pub(super) _held: Held,
}

impl Planned {
    /// Tokens → charge → (queue → decide → send).
    pub(super) async fn send(
        mut self,
        context: &Rc<ThreadContext>,
        config: &Snapshot,
        request_id: &HeaderValue,
        account: &mut RequestAccount,
    ) -> Result<Answer, GatewayError> {
        let shared = &context.shared;
        let Self { route, ref outgoing, ref mut plan, planning, .. } = self;
        let trace = account.trace().cloned();
        let tokenizing = Instant::now();
        let tokens = tokens::learn(context, config, plan.ask_tokens(), &outgoing.body).await;
        if let Some(tokens) = &tokens {
            plan.set_tokens(shared, tokens);
        }
        if let Some(trace) = &trace {
            trace.step(Phase::Tokenize, tokenizing);
        }
        let admission = account.admission().expect("only requests that were let in are answered");
        let prompt_tokens = plan.prompt_tokens();
        let charge = |source, now| admission.charge_prompt(prompt_tokens, source, now);
        within_limits(shared, charge).await?;
        let tenant = admission.tenant();
        let bid = Bid {
            tenant: tenant.name.clone(),
            weight: tenant.weight,
            priority: tenant.priority_of(outgoing.wishes.priority.or(plan.priority)),
            cost: u64::from(plan.prompt_tokens().max(1)),
        };
        if let Some(controller) = config.lmcache.as_ref().filter(|_| plan.asks_lmcache()) {
            plan.lmcache = controller.matched(shared, tokens.as_deref()).await;
        }
        let known = plan.known_blocks(shared, &mut context.scratch.borrow_mut().matches);
        plan.ask_others(shared, known).await;
        let plan = &*plan;
        let (began, trace) = (Instant::now(), trace.as_ref());
        Tries { context, config, route, outgoing, plan, planning, request_id, bid, began, trace }.run().await
    }
}
