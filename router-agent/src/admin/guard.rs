//! The guard on the admin port.
//!
//! | path | does |
//! |---|---|
//! | `GET /guard` | interfaces with their mode, rules with their packets, totals by reason |
//! | `POST /guard/rules` `{"cidr": "192.0.2.0/24", "action": "deny"}` | adds a rule (201), or changes the action of the one for this range (200) |
//! | `DELETE /guard/rules?cidr=192.0.2.0/24` | removes the rule for exactly this range (204) |
//!
//! A wrong request is answered 400 and a range without a rule 404, each with `{"error": …}`; without a guard every
//! change is answered 409. Changes last until the next reload (SIGHUP) or the end of the process: the file says what is.

use axum::{
    Json,
    body::Bytes,
    extract::{Query, State},
    http::StatusCode,
    response::{IntoResponse, Response},
};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::Admin;
use crate::{
    config::Cidr,
    kernel::{Guard, GuardAction, GuardCounts, GuardRule, KernelError, chain},
    telemetry::action_label,
};

/// A rule in a request.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct NewRule {
    cidr: String,
    action: WantedAction,
}

#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(rename_all = "lowercase")]
enum WantedAction {
    Deny,
    Allow,
}

/// Of `DELETE /guard/rules`.
#[derive(Debug, Deserialize)]
pub(super) struct Which {
    cidr: Option<String>,
}

/// One rule, as JSON.
#[derive(Debug, Serialize)]
struct RuleView {
    cidr: String,
    action: &'static str,
    packets: u64,
}

pub(super) async fn show(State(admin): State<Admin>) -> Response {
    let Some(guard) = &admin.guard else {
        return Json(json!({ "enabled": false, "reason": *admin.guard_state })).into_response();
    };
    match view(guard) {
        Ok(view) => Json(view).into_response(),
        Err(error) => failed(&error),
    }
}

fn view(guard: &Guard) -> Result<Value, KernelError> {
    let interfaces: Vec<Value> = guard
        .interfaces()
        .iter()
        .map(|(name, attached)| {
            json!({ "interface": name, "state": attached.label(), "reason": attached.reason() })
        })
        .collect();
    let rule = |count: crate::kernel::GuardRuleCount| RuleView {
        cidr: count.rule.cidr.to_string(),
        action: action_label(count.rule.action),
        packets: count.packets,
    };
    let rules: Vec<RuleView> = guard.rules()?.into_iter().map(rule).collect();
    Ok(json!({
        "enabled": true,
        "port": guard.port(),
        "interfaces": interfaces,
        "rules": rules,
        "packets": totals(&guard.counts()?),
    }))
}

fn totals(counts: &GuardCounts) -> Value {
    json!({
        "pass": {
            "allow_rule": counts.passed_allow_rule,
            "no_rule": counts.passed_no_rule,
            "syn": counts.passed_syn,
        },
        "drop": {
            "deny_rule": counts.dropped_deny_rule,
            "syn_rate": counts.dropped_syn_rate,
            "malformed": counts.dropped_malformed,
            "headers": counts.dropped_headers,
        },
    })
}

pub(super) async fn add(State(admin): State<Admin>, body: Bytes) -> Response {
    // Not by axum's `Json`: that insists on a content type, which `curl -d` gives another one.
    let rule: NewRule = match serde_json::from_slice(&body) {
        Ok(rule) => rule,
        Err(why) => {
            let wanted = r#"wanted {"cidr": "192.0.2.0/24", "action": "deny" or "allow"}"#;
            return refused(StatusCode::BAD_REQUEST, &format!("{why}; {wanted}"));
        }
    };
    let cidr = match rule.cidr.parse::<Cidr>() {
        Ok(cidr) => cidr,
        Err(why) => return refused(StatusCode::BAD_REQUEST, &why.to_string()),
    };
    let action = match rule.action {
        WantedAction::Deny => GuardAction::Deny,
        WantedAction::Allow => GuardAction::Allow,
    };
    let Some(guard) = admin.guard.clone() else { return switched_off(&admin) };
    let changed = off_thread(move || guard.add(GuardRule { cidr, action })).await;
    let status = match changed {
        Ok(None) => StatusCode::CREATED,
        Ok(Some(_)) => StatusCode::OK,
        Err(KernelError::TooManyRules { max }) => {
            return refused(
                StatusCode::CONFLICT,
                &format!("there are {max} rules already, the most there can be"),
            );
        }
        Err(error) => return failed(&error),
    };
    tracing::info!(%cidr, action = action_label(action), "guard: rule set by the admin API");
    (status, Json(json!({ "cidr": cidr.to_string(), "action": action_label(action) }))).into_response()
}

pub(super) async fn remove(State(admin): State<Admin>, Query(which): Query<Which>) -> Response {
    let Some(text) = which.cidr else {
        return refused(StatusCode::BAD_REQUEST, "which rule? DELETE /guard/rules?cidr=192.0.2.0/24");
    };
    let cidr = match text.parse::<Cidr>() {
        Ok(cidr) => cidr,
        Err(why) => return refused(StatusCode::BAD_REQUEST, &why.to_string()),
    };
    let Some(guard) = admin.guard.clone() else { return switched_off(&admin) };
    match off_thread(move || guard.remove(cidr)).await {
        Ok(true) => {
            tracing::info!(%cidr, "guard: rule removed by the admin API");
            StatusCode::NO_CONTENT.into_response()
        }
        Ok(false) => refused(StatusCode::NOT_FOUND, &format!("no rule is for exactly {cidr}")),
        Err(error) => failed(&error),
    }
}

/// A change waits for the packets under way: not on the control thread.
async fn off_thread<T: Send + 'static>(change: impl FnOnce() -> T + Send + 'static) -> T {
    match tokio::task::spawn_blocking(change).await {
        Ok(done) => done,
        Err(panic) => std::panic::resume_unwind(panic.into_panic()),
    }
}

fn refused(status: StatusCode, why: &str) -> Response {
    (status, Json(json!({ "error": why }))).into_response()
}

fn switched_off(admin: &Admin) -> Response {
    refused(StatusCode::CONFLICT, &format!("there is no guard: {}", admin.guard_state))
}

fn failed(error: &KernelError) -> Response {
    refused(StatusCode::INTERNAL_SERVER_ERROR, &chain(error))
}
