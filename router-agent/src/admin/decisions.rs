//! Decisions on the admin port: what was decided lately, and why.
//!
//! | path | answers |
//! |---|---|
//! | `GET /decisions` | the newest, newest first, without their candidates |
//! | `GET /decisions/REQUEST_ID` | every try of one request in full, the first try first |
//! | `GET /decisions/follow` | decisions as they are made and as they end, as server-sent events |
//!
//! All but the second take filters, each of which must match: `request_id`, `worker` (the chosen one), `reason`, `tenant`
//! and `model` (as the client or as the worker knows it). The first takes `limit` (100, at most 1,000), and it and the third
//! `full=true` for candidates, too. [`crate::records::DecisionRecord`] says what is answered.
//!
//! Events are `decided`, `ended` (the same record with its outcome) and `lost` (`{"lost": N}`: so many events came faster
//! than the follower read them, and are gone).

use std::convert::Infallible;

use axum::{
    Json,
    extract::{Path, Query, State, rejection::QueryRejection},
    http::StatusCode,
    response::{
        IntoResponse, Response,
        sse::{Event, KeepAlive, Sse},
    },
};
use futures_util::stream;
use serde::Deserialize;
use serde_json::json;

use super::{Admin, refuse};
use crate::{
    limits,
    records::{Detail, Filter, Seen},
};

/// Records that are answered where no limit is asked for.
const LIMIT: usize = 100;

/// The query string.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Asked {
    request_id: Option<String>,
    worker: Option<String>,
    reason: Option<String>,
    tenant: Option<String>,
    model: Option<String>,
    limit: Option<usize>,
    full: bool,
}

type Question = Result<Query<Asked>, QueryRejection>;

/// What the query asks for.
struct Wanted {
    filter: Filter,
    limit: Option<usize>,
    detail: Detail,
}

impl Wanted {
    fn of(asked: Question) -> Result<Self, String> {
        let Query(asked) = asked.map_err(|error| error.body_text())?;
        let Asked { request_id, worker, reason, tenant, model, limit, full } = asked;
        let filter = Filter { request_id, worker, reason, tenant, model };
        filter.validate().map_err(|error| error.to_string())?;
        if let Some(limit) = limit.filter(|limit| !(1..=limits::DECISIONS_ANSWERED_MAX).contains(limit)) {
            return Err(format!("limit={limit}: 1 to {}", limits::DECISIONS_ANSWERED_MAX));
        }
        Ok(Self { filter, limit, detail: if full { Detail::Full } else { Detail::Brief } })
    }
}

pub(super) async fn list(State(admin): State<Admin>, asked: Question) -> Response {
    let Wanted { filter, limit, detail } = match Wanted::of(asked) {
        Ok(wanted) => wanted,
        Err(error) => return refuse(StatusCode::BAD_REQUEST, error),
    };
    let records = admin.shared.records.newest(&filter, limit.unwrap_or(LIMIT));
    Json(records.iter().map(|record| record.view(detail)).collect::<Vec<_>>()).into_response()
}

pub(super) async fn show(State(admin): State<Admin>, Path(request_id): Path<String>) -> Response {
    let filter = Filter { request_id: Some(request_id.clone()), ..Filter::default() };
    let mut records = admin.shared.records.newest(&filter, limits::DECISIONS_ANSWERED_MAX);
    if records.is_empty() {
        let keep = admin.shared.config().decisions.keep;
        return refuse(
            StatusCode::NOT_FOUND,
            format!("no decision for the request {request_id:?} is among the last {keep} (decisions.keep)"),
        );
    }
    records.reverse();
    Json(records.iter().map(|record| record.view(Detail::Full)).collect::<Vec<_>>()).into_response()
}

pub(super) async fn follow(State(admin): State<Admin>, asked: Question) -> Response {
    let Wanted { filter, detail, .. } = match Wanted::of(asked) {
        Ok(Wanted { limit: Some(_), .. }) => {
            return refuse(StatusCode::BAD_REQUEST, "limit: following has no end; leave it out");
        }
        Ok(wanted) => wanted,
        Err(error) => return refuse(StatusCode::BAD_REQUEST, error),
    };
    let Some(follower) = admin.shared.records.follow() else {
        let limit = limits::DECISION_FOLLOWERS_MAX;
        return refuse(
            StatusCode::TOO_MANY_REQUESTS,
            format!("{limit} connections follow decisions already"),
        );
    };
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
            return Some((Ok::<_, Infallible>(event), (follower, filter)));
        }
    });
    Sse::new(events).keep_alive(KeepAlive::default()).into_response()
}
