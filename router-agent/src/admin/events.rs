//! `GET /events`: what the web page shows, as server-sent events (WHATWG HTML, section 9.2). Each event is a whole
//! snapshot; the first has the last five minutes of the charts, each later one the points since the one before.
//!
//! A follower that reads slowly gets fewer snapshots: the next one is made when the last has been taken. Streams end when
//! the gateway drains or a successor takes over, so that a follower finds the successor.

use std::{
    convert::Infallible,
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use axum::{
    extract::State,
    http::StatusCode,
    response::sse::{Event, Sse},
};
use futures_util::stream::{self, Stream};
use serde::{Deserialize, Serialize};
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    time::{Instant, sleep_until},
};
use utoipa::{IntoParams, ToSchema};

use super::{
    Admin, decisions,
    error::{ApiError, ApiResult, ErrorBody},
    extract::Asked,
    index::{PrefixView, hottest},
    live::{self, LiveView},
    stats::{self, PointView, Stats},
    workers::{self, WorkerView},
};
use crate::{gateway::Phase, limits::EVENT_FOLLOWERS_MAX, records::DecisionRecord};

/// Prefixes in a snapshot.
const PREFIXES: usize = 12;
/// Streams in a snapshot.
const STREAMS: usize = 30;
/// Decisions in a snapshot.
const DECISIONS: usize = 30;
/// What a follower may ask for.
const INTERVALS: std::ops::RangeInclusive<Duration> = Duration::from_millis(250)..=Duration::from_mins(1);
/// How soon a browser's own `EventSource` comes again.
const RETRY: Duration = Duration::from_secs(2);

/// Places of followers.
#[derive(Clone)]
pub struct Followers(Arc<Semaphore>);

impl Default for Followers {
    fn default() -> Self {
        Self(Arc::new(Semaphore::new(EVENT_FOLLOWERS_MAX)))
    }
}

/// The gateway at one moment.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Snapshot {
    /// Unix time, milliseconds.
    at_ms: u64,
    /// Of this program.
    version: &'static str,
    /// The gateway's name among several on its host.
    instance: String,
    /// How a worker is chosen.
    policy: &'static str,
    /// Whether a request that came now would find a worker.
    ready: bool,
    /// The whole gateway.
    stats: Stats,
    /// Points of the charts since the last snapshot.
    history: Vec<PointView>,
    /// The fleet.
    workers: Vec<WorkerView>,
    /// The most used prefixes.
    hottest_prefixes: Vec<PrefixView>,
    /// The responses under way.
    live: LiveView,
    /// The newest decisions first, without every worker's part.
    decisions: Vec<DecisionRecord>,
}

impl Snapshot {
    fn of(admin: &Admin, after_ms: u64) -> Self {
        let config = admin.shared.config();
        Self {
            at_ms: SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64),
            version: env!("CARGO_PKG_VERSION"),
            instance: config.instance.clone(),
            policy: config.routing.settings.policy.name(),
            ready: *admin.phase.borrow() == Phase::Serve && admin.shared.fleet.is_ready(),
            stats: stats::view(admin),
            history: stats::points(admin, after_ms),
            workers: workers::all(admin),
            hottest_prefixes: hottest(admin, PREFIXES),
            live: live::view(admin, STREAMS),
            decisions: decisions::newest(admin, DECISIONS),
        }
    }
}

/// Of `GET /events`.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct How {
    /// Between two snapshots: 250ms to 1m.
    #[serde(default = "every_second", with = "humantime_serde")]
    #[param(value_type = String, required = false, default = "1s", example = "1s")]
    interval: Duration,
}

fn every_second() -> Duration {
    Duration::from_secs(1)
}

/// One follower.
struct Follower {
    admin: Admin,
    /// Given back with the stream.
    _place: OwnedSemaphorePermit,
    interval: Duration,
    next: Instant,
    /// Of the last point that it was sent.
    after_ms: u64,
}

/// Snapshots as server-sent events, one per interval.
#[utoipa::path(
    get, path = "/events", tag = "state", params(How),
    responses(
        (status = 200, description = "events named `snapshot`, each with a `Snapshot` as its data", body = Snapshot, content_type = "text/event-stream"),
        (status = 400, description = "the interval is wrong", body = ErrorBody),
        (status = 503, description = "there are as many followers as there can be", body = ErrorBody),
    )
)]
pub(super) async fn follow(
    State(admin): State<Admin>,
    Asked(how): Asked<How>,
) -> ApiResult<Sse<impl Stream<Item = Result<Event, Infallible>>>> {
    if !INTERVALS.contains(&how.interval) {
        return Err(ApiError::bad_request(format!("interval={:?}: 250ms to 1m", how.interval)));
    }
    let place = admin.followers.0.clone().try_acquire_owned().map_err(|_| {
        let message =
            format!("{EVENT_FOLLOWERS_MAX} follow the events already: close a page, or ask GET /stats");
        ApiError::new(StatusCode::SERVICE_UNAVAILABLE, message)
    })?;
    let follower =
        Follower { admin, _place: place, interval: how.interval, next: Instant::now(), after_ms: 0 };
    Ok(Sse::new(stream::unfold(follower, next)))
}

async fn next(mut follower: Follower) -> Option<(Result<Event, Infallible>, Follower)> {
    let mut phase = follower.admin.phase.clone();
    tokio::select! {
        () = sleep_until(follower.next) => {}
        _ = phase.wait_for(|phase| *phase != Phase::Serve) => return None,
    }
    follower.next = Instant::now() + follower.interval;
    let snapshot = Snapshot::of(&follower.admin, follower.after_ms);
    let is_first = follower.after_ms == 0;
    if let Some(last) = snapshot.history.last() {
        follower.after_ms = last.at_ms();
    }
    let event = Event::default().event("snapshot").json_data(&snapshot).expect("a snapshot is JSON");
    let event = if is_first { event.retry(RETRY) } else { event };
    Some((Ok(event), follower))
}
