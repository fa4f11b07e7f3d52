//! Load sharing: says what this gateway has in flight, and hears what the others have.
//!
//! Both ends are without memory: a message is the whole load, so one that is lost is made good by the next. What a gateway
//! says comes back to itself, which tells a channel that is quiet from one that is dead.

use std::{
    sync::{Arc, atomic::Ordering::Relaxed},
    time::{Duration, Instant},
};

use futures_util::StreamExt;
use redis::{Client, aio::PubSubStream};
use tokio::time::{MissedTickBehavior, interval, sleep, sleep_until, timeout};

use super::{
    SharedState,
    link::{CurrentLink, Dialer, Fault},
    message::Message,
    peers::Peers,
};
use crate::{
    fleet::Fleet,
    telemetry::{SharedCondition, SharedOutcome, SharedUse},
};

/// An unchanged load is said again after so many intervals.
const REPEAT_AFTER: u32 = 4;
/// Sums are made at most so often, however many gateways speak.
const SUM_EVERY: Duration = Duration::from_millis(10);
/// Without any message for so many intervals the channel is dead.
const SILENT_INTERVALS: u32 = 40;

fn channel(state: &SharedState) -> String {
    format!("{}load", state.settings.key_prefix)
}

fn publish(state: &SharedState, message: &Message) -> redis::Cmd {
    let mut command = redis::cmd("PUBLISH");
    command.arg(channel(state)).arg(message.to_json());
    command
}

/// Says it for ever.
pub(super) async fn say(state: Arc<SharedState>, fleet: Arc<Fleet>, link: CurrentLink) {
    let mut ticks = interval(state.settings.load_interval);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let (mut said, mut same) = (None, 0_u32);
    loop {
        ticks.tick().await;
        let message = Message::of(&state.gateway, state.process, &fleet);
        same = if said.as_ref() == Some(&message) { same + 1 } else { 0 };
        if same > 0 && !same.is_multiple_of(REPEAT_AFTER) {
            continue;
        }
        let command = publish(&state, &message);
        said = Some(message);
        let sent = link.load_full().run(vec![command]).await;
        let outcome = sent.as_ref().map_or_else(Fault::outcome, |_| SharedOutcome::Ok);
        if sent.is_err() {
            said = None;
        }
        state.metrics.shared.count(SharedUse::Load, outcome);
    }
}

/// The last word: the others need not wait for this gateway to expire.
pub(super) async fn say_goodbye(state: &SharedState, link: &CurrentLink) {
    let message = Message::last(&state.gateway, state.process);
    let _ = link.load_full().run(vec![publish(state, &message)]).await; // who did not hear it will notice
}

/// Hears the others for ever.
pub(super) async fn hear(state: Arc<SharedState>, fleet: Arc<Fleet>, dialer: Dialer) {
    let mut peers = Peers::new(state.process, state.settings.peer_ttl);
    let patience = state.settings.load_interval * SILENT_INTERVALS;
    for node in 0.. {
        let subscribed = async {
            let client = dialer.client(node)?;
            timeout(state.settings.timeout, subscribe(&client, &channel(&state)))
                .await
                .map_err(|_| Fault::Late(state.settings.timeout))?
        };
        match subscribed.await {
            Ok(messages) => listen(messages, &state, &fleet, &mut peers, patience).await,
            Err(fault) => tracing::debug!(%fault, "shared state: the channel of loads is not to be had"),
        }
        let again = Instant::now() + state.settings.timeout;
        while Instant::now() < again {
            sleep(state.settings.load_interval).await;
            if peers.expire(Instant::now()) {
                settle(&peers, &state, &fleet);
            }
        }
    }
}

async fn subscribe(client: &Client, channel: &str) -> Result<PubSubStream, Fault> {
    let mut subscription = client.get_async_pubsub().await?;
    subscription.subscribe(channel).await?;
    Ok(subscription.into_on_message())
}

/// Until the channel ends or is dead.
async fn listen(
    mut messages: PubSubStream,
    state: &SharedState,
    fleet: &Fleet,
    peers: &mut Peers,
    patience: Duration,
) {
    let mut last_message = Instant::now();
    let mut next_sum = Instant::now();
    let mut is_news = false;
    loop {
        let sum_at = if is_news { next_sum } else { Instant::now() + state.settings.load_interval };
        tokio::select! {
            message = messages.next() => {
                let Some(message) = message else { return };
                last_message = Instant::now();
                match Message::parse(message.get_payload_bytes()) {
                    Ok(message) => is_news |= peers.hear(message, last_message),
                    Err(error) => tracing::debug!(%error, "shared state: a message of nobody's"),
                }
            }
            () = sleep_until(sum_at.into()) => {
                let now = Instant::now();
                is_news |= peers.expire(now);
                if std::mem::take(&mut is_news) {
                    settle(peers, state, fleet);
                    next_sum = now + SUM_EVERY;
                }
                if now.saturating_duration_since(last_message) > patience {
                    return;
                }
            }
        }
    }
}

fn settle(peers: &Peers, state: &SharedState, fleet: &Fleet) {
    peers.apply(fleet);
    state.metrics.shared.peers.set(peers.count() as i64);
    // Who falls silent because the server has is still there, and has its share of the limits.
    if state.condition() == SharedCondition::Up {
        state.peers.store(peers.count(), Relaxed);
    }
}
