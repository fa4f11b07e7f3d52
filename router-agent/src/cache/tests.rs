//! What is kept and for how long, and how a flight serves all who wait for it.

use std::task::{Context, Poll, Waker};

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, StatusCode};

use super::*;
use crate::telemetry::Metrics;

const BOUNDS: Bounds = Bounds { bytes_max: 1 << 20, entry_bytes_max: 16 * 1024, ttl: Duration::from_mins(1) };

fn cache() -> (Arc<ResponseCache>, Arc<CacheMetrics>) {
    let metrics = Metrics::new().expect("a fresh registry").cache.clone();
    (Arc::new(ResponseCache::new(BOUNDS.bytes_max, metrics.clone())), metrics)
}

fn key(text: &str) -> Key {
    Key { canonical: text.as_bytes().into(), tenant: "t".into(), model: Some("m".into()) }
}

fn lead(cache: &Arc<ResponseCache>, text: &str) -> (Driver, Reader) {
    match cache.seek(key(text), BOUNDS, false) {
        Found::Lead(driver, reader) => (driver, reader),
        _ => panic!("{text} is there"),
    }
}

fn follow(cache: &Arc<ResponseCache>, text: &str) -> Reader {
    match cache.seek(key(text), BOUNDS, false) {
        Found::Follow(reader) => reader,
        _ => panic!("nobody asks for {text}"),
    }
}

fn hit(cache: &Arc<ResponseCache>, text: &str) -> Option<Arc<Entry>> {
    match cache.seek(key(text), BOUNDS, false) {
        Found::Hit(entry) => Some(entry),
        _ => None,
    }
}

fn ok() -> Head {
    let headers = [("content-type", "text/plain"), ("x-warmpath-worker", "w"), ("date", "now")];
    let headers =
        headers.map(|(name, value)| (name.parse().expect("a name"), HeaderValue::from_static(value)));
    Head { status: StatusCode::OK, headers: HeaderMap::from_iter(headers), length: None, is_shared: true }
}

fn answer(cache: &Arc<ResponseCache>, text: &str, body: Vec<u8>) {
    let (driver, _reader) = lead(cache, text);
    driver.head(ok());
    driver.push(body.into());
    driver.end(true);
}

/// All that is there for a reader now, and how that ends: none if more is to come.
fn read(reader: &Reader) -> (Vec<u8>, Option<Result<(), Interrupted>>) {
    let cx = Context::from_waker(Waker::noop());
    let mut all = Vec::new();
    loop {
        match reader.poll_piece(&cx) {
            Poll::Pending => return (all, None),
            Poll::Ready(None) => return (all, Some(Ok(()))),
            Poll::Ready(Some(Err(error))) => return (all, Some(Err(error))),
            Poll::Ready(Some(Ok(piece))) => all.extend_from_slice(&piece),
        }
    }
}

fn has_head(reader: &Reader) -> Poll<bool> {
    reader.poll_head(&Context::from_waker(Waker::noop())).map(|head| head.is_some())
}

#[test]
fn an_answer_is_given_again_to_who_asks_for_the_same_and_to_nobody_else() {
    let (cache, _) = cache();
    answer(&cache, "a", b"answer".to_vec());
    let entry = hit(&cache, "a").expect("it is kept");
    assert_eq!(entry.body, "answer");
    assert_eq!(entry.headers.len(), 1, "what was said of its way is not: {:?}", entry.headers);
    assert!(hit(&cache, "b").is_none());
    // Even if the hash were the same.
    let hash = xxh3_128_with_seed(b"c", cache.seed);
    cache.entries.insert(hash, entry);
    assert!(hit(&cache, "c").is_none());
}

#[test]
fn only_whole_good_answers_with_200_are_kept() {
    type End = fn(Driver);
    let (cache, _) = cache();
    let ends: [(&str, StatusCode, &str, End); 5] = [
        ("broken off", StatusCode::OK, "x", drop),
        ("not good", StatusCode::OK, "x", |driver| driver.end(false)),
        ("an error", StatusCode::BAD_REQUEST, "x", |driver| driver.end(true)),
        ("aborted", StatusCode::OK, "{\"finish_reason\":\"abort\"}", |driver| driver.end(true)),
        ("good", StatusCode::OK, "{\"finish_reason\":\"stop\"}", |driver| driver.end(true)),
    ];
    for (text, status, body, end) in ends {
        let (driver, reader) = lead(&cache, text);
        driver.head(Head { status, ..ok() });
        driver.push(Bytes::from_static(body.as_bytes()));
        end(driver);
        assert_eq!(hit(&cache, text).is_some(), text == "good", "{text}");
        let expected = if text == "broken off" { Err(Interrupted::BrokenOff) } else { Ok(()) };
        assert_eq!(
            read(&reader),
            (body.as_bytes().to_vec(), Some(expected)),
            "its reader gets it all the same"
        );
    }
}

#[test]
fn an_old_entry_is_none_and_what_was_begun_before_a_clearing_is_not_kept() {
    let (cache, metrics) = cache();
    answer(&cache, "a", b"a".to_vec());
    let brief = Bounds { ttl: Duration::ZERO, ..BOUNDS };
    assert!(matches!(cache.seek(key("a"), brief, false), Found::Lead(..)));
    assert_eq!((metrics.expired.get(), cache.size().0), (1, 0));

    answer(&cache, "b", b"b".to_vec());
    let (driver, reader) = lead(&cache, "c");
    driver.head(ok());
    let other = Which { tenant: Some("other".into()), ..Which::default() };
    assert_eq!(cache.clear(&other), 0);
    assert_eq!(cache.clear(&Which { model: Some("m".into()), tenant: Some("t".into()) }), 1);
    driver.push(Bytes::from_static(b"c"));
    driver.end(true);
    assert_eq!(read(&reader), (b"c".to_vec(), Some(Ok(()))));
    assert!(hit(&cache, "b").is_none() && hit(&cache, "c").is_none());
    assert_eq!(metrics.cleared.get(), 1);
}

#[test]
fn it_holds_no_more_than_it_may() {
    let (cache, metrics) = cache();
    for number in 0..1_000 {
        answer(&cache, &number.to_string(), vec![b'x'; 10_000]);
        assert!(cache.size().1 <= BOUNDS.bytes_max as u64);
    }
    let (entries, bytes) = cache.size();
    assert!(
        entries > 20 && bytes > BOUNDS.bytes_max as u64 / 2,
        "and it is used: {entries} entries, {bytes} bytes"
    );
    assert!(metrics.evicted_for_room.get() > 900);
    cache.resize(1 << 18);
    assert!(cache.size().1 <= 1 << 18);
    assert_eq!(cache.in_flight_bytes(), 0, "of flights that are over nothing is left");
}

#[test]
fn who_comes_later_gets_all_of_it_and_whoever_leaves_it_goes_on_for_the_others() {
    let (cache, _) = cache();
    let cx = Context::from_waker(Waker::noop());
    let (driver, leader) = lead(&cache, "a");
    assert!(has_head(&leader).is_pending());
    let early = follow(&cache, "a");
    driver.head(ok());
    driver.push(Bytes::from_static(b"one "));
    assert_eq!((has_head(&early), read(&leader)), (Poll::Ready(true), (b"one ".to_vec(), None)));
    let late = follow(&cache, "a");
    drop((leader, early));
    assert!(driver.poll_left(&cx).is_pending());
    driver.push(Bytes::from_static(b"two"));
    driver.end(true);
    assert_eq!(read(&late), (b"one two".to_vec(), Some(Ok(()))));

    let (driver, leader) = lead(&cache, "b");
    drop(leader);
    assert!(driver.poll_left(&cx).is_ready());
    assert!(
        matches!(cache.seek(key("b"), BOUNDS, false), Found::Lead(..)),
        "nobody joins what nobody waits for"
    );
    drop(driver);
    assert!(matches!(cache.seek(key("a"), BOUNDS, true), Found::Lead(..)), "it is to be asked anew");
}

#[test]
fn who_follows_a_flight_that_fails_or_says_nothing_for_all_is_told_to_go_on_alone() {
    let (cache, _) = cache();
    let (driver, leader) = lead(&cache, "a");
    let follower = follow(&cache, "a");
    drop(driver);
    assert_eq!((has_head(&leader), has_head(&follower)), (Poll::Ready(false), Poll::Ready(false)));
    let (driver, leader) = lead(&cache, "b");
    let follower = follow(&cache, "b");
    driver.head(Head { status: StatusCode::SERVICE_UNAVAILABLE, is_shared: false, ..ok() });
    assert_eq!((has_head(&leader), has_head(&follower)), (Poll::Ready(true), Poll::Ready(false)));
}

#[test]
fn a_long_answer_is_held_in_a_window_and_a_slow_reader_slows_nobody() {
    let (cache, _) = cache();
    let cx = Context::from_waker(Waker::noop());
    let (driver, fast) = lead(&cache, "a");
    let slow = follow(&cache, "a");
    driver.head(ok());
    let piece = Bytes::from_static(&[b'x'; 1024]);
    let mut got = 0;
    for _ in 0..1_000 {
        if driver.poll_room(&cx).is_pending() {
            driver.leave_behind();
        }
        assert!(driver.poll_room(&cx).is_ready(), "the fast one has all");
        driver.push(piece.clone());
        got += read(&fast).0.len();
        assert!(cache.in_flight_bytes() <= 64 * 1024 + piece.len(), "{}", cache.in_flight_bytes());
    }
    assert_eq!(got, 1_000 * piece.len());
    assert_eq!(read(&slow).1, Some(Err(Interrupted::TooSlow)));
    assert!(matches!(cache.seek(key("a"), BOUNDS, false), Found::Lead(..)), "its beginning is gone");
    // Alone, it is waited for.
    drop(slow);
    let mut held = 0;
    while driver.poll_room(&cx).is_ready() {
        driver.push(piece.clone());
        held += piece.len();
    }
    assert!((64 * 1024..=65 * 1024).contains(&held), "{held}");
    driver.leave_behind();
    assert!(driver.poll_room(&cx).is_pending());
    assert_eq!(read(&fast).0.len(), held, "and loses nothing");
    driver.end(true);
    assert!(hit(&cache, "a").is_none(), "too long to be kept");
}
