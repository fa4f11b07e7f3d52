//! What was decided lately, and why. [`crate::records::DecisionRecord`] says what is answered.
//!
//! Events of `/decisions/follow` are `decided`, `ended` (the same record with its outcome) and `lost` (`{"lost": N}`: so many
//! events came faster than the follower read them, and are gone).

use std::convert::Infallible;

use axum::{
    Json,
    extract::State,
    http::StatusCode,
    response::sse::{Event, KeepAlive, Sse},
};
use futures_util::stream::{self, Stream};
use serde::Deserialize;
use serde_json::json;
use utoipa::IntoParams;

use super::{
    Admin,
    error::{ApiError, ApiResult, ErrorBody},
    extract::{Asked, Name},
};
use crate::{
    limits,
    records::{DecisionRecord, Detail, Filter, Seen},
};

/// Records that are answered where no limit is asked for.
const LIMIT: usize = 100;

/// Which decisions, and how much of them. All of the filters must match.
#[derive(Debug, Default, Deserialize, IntoParams)]
#[serde(deny_unknown_fields, default)]
#[into_params(parameter_in = Query)]
pub(super) struct Which {
    /// Of this request (`x-request-id`).
    request_id: Option<String>,
    /// On this worker.
    worker: Option<String>,
    /// For this reason.
    #[param(example = "load_over_prefix")]
    reason: Option<String>,
    /// Of this tenant.
    tenant: Option<String>,
    /// For this model, as the client or as the worker knows it.
    model: Option<String>,
    /// With every worker's part.
    #[param(required = false)]
    full: bool,
}

/// As [`Which`], and how many.
#[derive(Debug, Default, Deserialize, IntoParams)]
#[serde(deny_unknown_fields, default)]
#[into_params(parameter_in = Query)]
pub(super) struct Newest {
    /// Of this request (`x-request-id`).
    request_id: Option<String>,
    /// On this worker.
    worker: Option<String>,
    /// For this reason.
    #[param(example = "load_over_prefix")]
    reason: Option<String>,
    /// Of this tenant.
    tenant: Option<String>,
    /// For this model, as the client or as the worker knows it.
    model: Option<String>,
    /// With every worker's part.
    #[param(required = false)]
    full: bool,
    /// The most that are listed.
    #[param(default = 100, minimum = 1, maximum = 1000)]
    limit: Option<usize>,
}

impl Newest {
    fn split(self) -> (Which, Option<usize>) {
        let Self { request_id, worker, reason, tenant, model, full, limit } = self;
        (Which { request_id, worker, reason, tenant, model, full }, limit)
    }
}

impl Which {
    fn wanted(self) -> ApiResult<(Filter, Detail)> {
        let Self { request_id, worker, reason, tenant, model, full } = self;
        let filter = Filter { request_id, worker, reason, tenant, model };
        filter.validate().map_err(ApiError::bad_request)?;
        Ok((filter, if full { Detail::Full } else { Detail::Brief }))
    }
}

/// The newest decisions, without their filters.
pub(super) fn newest(admin: &Admin, limit: usize) -> Vec<DecisionRecord> {
    let records = admin.shared.records.newest(&Filter::default(), limit);
    records.iter().map(|record| record.view(Detail::Brief)).collect()
}

/// The newest decisions, newest first, without every worker's part unless that is asked for.
#[utoipa::path(
    get, path = "/decisions", tag = "state", params(Newest),
    responses(
        (status = 200, description = "the decisions", body = Vec<DecisionRecord>),
        (status = 400, description = "the query is wrong", body = ErrorBody),
    )
)]
pub(super) async fn list(
    State(admin): State<Admin>,
    Asked(newest): Asked<Newest>,
) -> ApiResult<Json<Vec<DecisionRecord>>> {
    let (which, limit) = newest.split();
    let (filter, detail) = which.wanted()?;
    if let Some(limit) = limit.filter(|limit| !(1..=limits::DECISIONS_ANSWERED_MAX).contains(limit)) {
        return Err(ApiError::bad_request(format!("limit={limit}: 1 to {}", limits::DECISIONS_ANSWERED_MAX)));
    }
    let records = admin.shared.records.newest(&filter, limit.unwrap_or(LIMIT));
    Ok(Json(records.iter().map(|record| record.view(detail)).collect()))
}

/// Every try of one request in full, the first try first.
#[utoipa::path(
    get, path = "/decisions/{request_id}", tag = "state",
    params(("request_id" = String, Path, description = "its `x-request-id`")),
    responses(
        (status = 200, description = "its tries", body = Vec<DecisionRecord>),
        (status = 400, description = "the path is no text", body = ErrorBody),
        (status = 404, description = "it is not among the last", body = ErrorBody),
    )
)]
pub(super) async fn show(
    State(admin): State<Admin>,
    Name(request_id): Name,
) -> ApiResult<Json<Vec<DecisionRecord>>> {
    let filter = Filter { request_id: Some(request_id.clone()), ..Filter::default() };
    let mut records = admin.shared.records.newest(&filter, limits::DECISIONS_ANSWERED_MAX);
    if records.is_empty() {
        let keep = admin.shared.config().decisions.keep;
        return Err(ApiError::not_found(format!(
            "no decision for the request {request_id:?} is among the last {keep} (decisions.keep)"
        )));
    }
    records.reverse();
    Ok(Json(records.iter().map(|record| record.view(Detail::Full)).collect()))
}

/// Decisions as they are made and as they end, as server-sent events.
#[utoipa::path(
    get, path = "/decisions/follow", tag = "state", params(Which),
    responses(
        (status = 200, description = "events named `decided` and `ended`, each with a record as its data, and `lost`", body = DecisionRecord, content_type = "text/event-stream"),
        (status = 400, description = "the query is wrong", body = ErrorBody),
        (status = 429, description = "there are as many followers as there can be", body = ErrorBody),
    )
)]
pub(super) async fn follow(
    State(admin): State<Admin>,
    Asked(which): Asked<Which>,
) -> ApiResult<Sse<impl Stream<Item = Result<Event, Infallible>>>> {
    let (filter, detail) = which.wanted()?;
    let follower = admin.shared.records.follow().ok_or_else(|| {
        let limit = limits::DECISION_FOLLOWERS_MAX;
        ApiError::new(StatusCode::TOO_MANY_REQUESTS, format!("{limit} connections follow decisions already"))
    })?;
    let events = stream::unfold((follower, filter), move |(mut follower, filter)| async move {
        loop {
            let event = match follower.next().await? {
                Seen::Event(event) if filter.matches(event.record()) => {
                    Event::default().event(event.name()).json_data(event.record().view(detail))
                }
                Seen::Event(_) => continue,
                Seen::Lost(count) => Event::default().event("lost").json_data(json!({ "lost": count })),
            };
            let Ok(event) = event else { continue }; // a record is always JSON
            return Some((Ok(event), (follower, filter)));
        }
    });
    Ok(Sse::new(events).keep_alive(KeepAlive::default()))
}
