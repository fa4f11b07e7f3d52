//! The XDP guard and its rules. Changes last until the next reload or the end of the process: the file says what is.

use axum::{Json, extract::State, http::StatusCode};
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use super::{
    Admin,
    error::{ApiError, ApiResult, ErrorBody},
    extract::{Asked, Body},
};
use crate::{
    config::Cidr,
    kernel::{Guard, GuardAction, GuardCounts, GuardRule, KernelError, chain},
    telemetry::action_label,
};

/// A rule.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Rule {
    /// Sources: an address or a range.
    #[schema(example = "192.0.2.0/24")]
    cidr: String,
    /// What becomes of their packets.
    action: Action,
}

/// What becomes of a source's packets.
#[derive(Debug, Clone, Copy, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
enum Action {
    /// They are dropped.
    Deny,
    /// They pass, without a limit on new connections.
    Allow,
}

/// The guard, or that there is none.
#[derive(Debug, Serialize, ToSchema)]
#[serde(untagged)]
pub(super) enum GuardView {
    /// There is one.
    On {
        /// `true`.
        enabled: bool,
        /// The port that it stands in front of.
        port: u16,
        /// Where it stands.
        interfaces: Vec<InterfaceView>,
        /// Its rules.
        rules: Vec<RuleView>,
        /// Packets that were let through and dropped, by why.
        packets: Packets,
    },
    /// There is none.
    Off {
        /// `false`.
        enabled: bool,
        /// Why.
        reason: String,
    },
}

/// An interface that is guarded, or was to be.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct InterfaceView {
    interface: String,
    /// `native`, `generic` or `refused`.
    state: &'static str,
    /// Why so.
    reason: Option<String>,
}

/// A rule in force.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct RuleView {
    cidr: String,
    /// `deny` or `allow`.
    action: &'static str,
    /// Packets that it decided on.
    packets: u64,
}

/// Packets by what became of them.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Packets {
    pass: Passed,
    drop: Dropped,
}

#[derive(Debug, Serialize, ToSchema)]
struct Passed {
    allow_rule: u64,
    no_rule: u64,
    syn: u64,
}

#[derive(Debug, Serialize, ToSchema)]
struct Dropped {
    deny_rule: u64,
    syn_rate: u64,
    malformed: u64,
    headers: u64,
}

/// The guard: where it stands, its rules with their packets, and totals by reason.
#[utoipa::path(
    get, path = "/guard", tag = "guard",
    responses(
        (status = 200, description = "the guard, or why there is none", body = GuardView),
        (status = 500, description = "the kernel does not say", body = ErrorBody),
    )
)]
pub(super) async fn show(State(admin): State<Admin>) -> ApiResult<Json<GuardView>> {
    let Some(guard) = &admin.guard else {
        return Ok(Json(GuardView::Off { enabled: false, reason: admin.guard_state.to_string() }));
    };
    view(guard).map(Json).map_err(|error| failed(&error))
}

fn view(guard: &Guard) -> Result<GuardView, KernelError> {
    let interface = |(name, attached): &(String, crate::kernel::Attached)| InterfaceView {
        interface: name.clone(),
        state: attached.label(),
        reason: attached.reason().map(str::to_owned),
    };
    let rule = |count: crate::kernel::GuardRuleCount| RuleView {
        cidr: count.rule.cidr.to_string(),
        action: action_label(count.rule.action),
        packets: count.packets,
    };
    Ok(GuardView::On {
        enabled: true,
        port: guard.port(),
        interfaces: guard.interfaces().iter().map(interface).collect(),
        rules: guard.rules()?.into_iter().map(rule).collect(),
        packets: totals(&guard.counts()?),
    })
}

fn totals(counts: &GuardCounts) -> Packets {
    Packets {
        pass: Passed {
            allow_rule: counts.passed_allow_rule,
            no_rule: counts.passed_no_rule,
            syn: counts.passed_syn,
        },
        drop: Dropped {
            deny_rule: counts.dropped_deny_rule,
            syn_rate: counts.dropped_syn_rate,
            malformed: counts.dropped_malformed,
            headers: counts.dropped_headers,
        },
    }
}

/// Add a rule, or change what the one for this range does.
#[utoipa::path(
    post, path = "/guard/rules", tag = "guard", request_body = Rule,
    responses(
        (status = 201, description = "the rule is new", body = Rule),
        (status = 200, description = "it was there, and does this now", body = Rule),
        (status = 400, description = "this is no rule", body = ErrorBody),
        (status = 409, description = "there is no guard, or no room for more rules", body = ErrorBody),
        (status = 413, description = "the body is too long", body = ErrorBody),
        (status = 500, description = "the kernel refuses it", body = ErrorBody),
    )
)]
pub(super) async fn add(State(admin): State<Admin>, body: Body) -> ApiResult<(StatusCode, Json<Rule>)> {
    let rule: Rule = body.json(r#"{"cidr": "192.0.2.0/24", "action": "deny" or "allow"}"#)?;
    let cidr: Cidr = rule.cidr.parse().map_err(ApiError::bad_request)?;
    let action = match rule.action {
        Action::Deny => GuardAction::Deny,
        Action::Allow => GuardAction::Allow,
    };
    let guard = admin.guard.clone().ok_or_else(|| switched_off(&admin))?;
    let changed = off_thread(move || guard.add(GuardRule { cidr, action })).await;
    let status = match changed {
        Ok(None) => StatusCode::CREATED,
        Ok(Some(_)) => StatusCode::OK,
        Err(KernelError::TooManyRules { max }) => {
            return Err(ApiError::conflict(format!("there are {max} rules already, the most there can be")));
        }
        Err(error) => return Err(failed(&error)),
    };
    tracing::info!(%cidr, action = action_label(action), "guard: rule set by the admin API");
    Ok((status, Json(Rule { cidr: cidr.to_string(), action: rule.action })))
}

/// Of `DELETE /guard/rules`.
#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub(super) struct Which {
    /// The rule's range, exactly.
    #[param(required = true, example = "192.0.2.0/24")]
    cidr: Option<String>,
}

/// Remove the rule for exactly this range.
#[utoipa::path(
    delete, path = "/guard/rules", tag = "guard", params(Which),
    responses(
        (status = 204, description = "it is gone"),
        (status = 400, description = "this is no range", body = ErrorBody),
        (status = 404, description = "no rule is for exactly this range", body = ErrorBody),
        (status = 409, description = "there is no guard", body = ErrorBody),
        (status = 500, description = "the kernel refuses it", body = ErrorBody),
    )
)]
pub(super) async fn remove(State(admin): State<Admin>, Asked(which): Asked<Which>) -> ApiResult<StatusCode> {
    let wanted = "which rule? DELETE /guard/rules?cidr=192.0.2.0/24";
    let text = which.cidr.ok_or_else(|| ApiError::bad_request(wanted))?;
    let cidr: Cidr = text.parse().map_err(ApiError::bad_request)?;
    let guard = admin.guard.clone().ok_or_else(|| switched_off(&admin))?;
    match off_thread(move || guard.remove(cidr)).await {
        Ok(true) => {
            tracing::info!(%cidr, "guard: rule removed by the admin API");
            Ok(StatusCode::NO_CONTENT)
        }
        Ok(false) => Err(ApiError::not_found(format!("no rule is for exactly {cidr}"))),
        Err(error) => Err(failed(&error)),
    }
}

/// A change waits for the packets under way: not on the control thread.
async fn off_thread<T: Send + 'static>(change: impl FnOnce() -> T + Send + 'static) -> T {
    match tokio::task::spawn_blocking(change).await {
        Ok(done) => done,
        Err(panic) => std::panic::resume_unwind(panic.into_panic()),
    }
}

fn switched_off(admin: &Admin) -> ApiError {
    ApiError::conflict(format!("there is no guard: {}", admin.guard_state))
}

fn failed(error: &KernelError) -> ApiError {
    ApiError::new(StatusCode::INTERNAL_SERVER_ERROR, chain(error))
}
