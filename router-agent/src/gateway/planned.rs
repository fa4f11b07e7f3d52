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
    bodies::{Collected, Held},
    choose::{self, Plan},
    outgoing::Outgoing,
    overrides::Overrides,
    route::Route,
    shape::{Shaped, Whose},
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
    /// Shape → parse, of a request whose body is here.
    pub(super) async fn of(
        context: &ThreadContext,
        config: &Snapshot,
        (route, overrides, request_id): (Route, &Overrides, &HeaderValue),
        mut outgoing: Outgoing,
        mut body: Collected,
        shaped: &mut Shaped,
        account: &mut RequestAccount,
    ) -> Result<Self, GatewayError> {
        let shared = &context.shared;
        let admission = account.admission().expect("only requests that were let in are planned");
        let tenant = admission.tenant().clone();
        let whose = Whose { tenant: &tenant, route, request_id };
        shaped.before_planning(context, config, whose, &mut outgoing, &mut body).await?;
        let began = Instant::now();
        let mut plan =
            choose::plan(shared, config, &tenant, route, &outgoing.headers, overrides, &body.bytes)?;
        if let Some(model) = plan.model_instead() {
            shaped.set_model(&mut body, model, config.limits.bodies_bytes)?;
        }
        let Collected { bytes, held } = body;
        outgoing.body = bytes;
        account.names(plan.model_metrics.clone());
        plan.is_traced = account.trace().is_some();
        if let Some(trace) = account.trace() {
            trace.step(Phase::Parse, began);
        }
        Ok(Self { route, outgoing, plan, planning: began.elapsed(), _held: held })
    }

    /// Tokens → charge → (queue → decide → send).
    pub(super) async fn send(
        mut self,
        context: &Rc<ThreadContext>,
        config: &Snapshot,
        request_id: &HeaderValue,
        account: &mut RequestAccount,
    ) -> Result<Answer, GatewayError> {
        let bid = self.prepare(context, config, account).await?;
        let Self { route, ref outgoing, ref plan, planning, .. } = self;
        let (began, trace) = (Instant::now(), account.trace());
        Tries { context, config, route, outgoing, plan, planning, request_id, bid, began, trace }.run().await
    }

    /// Tokens → charge; what it waits for a worker as.
    pub(super) async fn prepare(
        &mut self,
        context: &ThreadContext,
        config: &Snapshot,
        account: &mut RequestAccount,
    ) -> Result<Bid, GatewayError> {
        let shared = &context.shared;
        let Self { outgoing, plan, .. } = self;
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
        admission.charge_prompt(plan.prompt_tokens(), Instant::now())?;
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
        Ok(bid)
    }
}
