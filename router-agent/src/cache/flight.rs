//! One answer on its way to all who wait for it.
//!
//! The [`Driver`] puts in what comes from the worker, each [`Reader`] takes it out at its own pace, from the first byte. As
//! long as the answer is short enough to be kept, all of it is held and whoever comes may join. An answer that outgrows
//! that, or comes when flights hold too much already, is held from its slowest reader on only and nobody joins any more:
//! then the driver waits for a reader that is too far behind, and after a while leaves it behind, if others are ahead of
//! it. So a flight holds no more than `entry_bytes_max` (or a window, if that is more), and a slow reader does not hold up
//! the others for long.

use std::{
    collections::{HashMap, VecDeque},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    task::{Context, Poll, Waker},
};

use bytes::Bytes;
use http::{HeaderMap, StatusCode};
use memchr::memmem;
use parking_lot::Mutex;

use super::{Bounds, Entry, Key, ResponseCache};
use crate::limits::CACHE_WINDOW_BYTES;

/// The beginning of an answer.
#[derive(Debug, Clone)]
pub struct Head {
    /// Its status.
    pub status: StatusCode,
    /// As the one who asked gets them.
    pub headers: HeaderMap,
    /// Bytes of the body, where they are known.
    pub length: Option<u64>,
    /// Others may have it, too.
    pub is_shared: bool,
}

/// A body that goes no further.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Interrupted {
    /// The answer broke off.
    #[error("the answer that this request shares broke off")]
    BrokenOff,
    /// This reader is too far behind the others.
    #[error("the client read the answer that its request shares too slowly")]
    TooSlow,
}

#[derive(Debug)]
pub(super) struct Flight {
    key: Key,
    hash: u128,
    bounds: Bounds,
    epoch: u64,
    state: Mutex<State>,
    /// Bytes that all flights hold.
    held_by_all: Arc<AtomicUsize>,
}

#[derive(Debug)]
struct State {
    head: Option<Arc<Head>>,
    /// With the place of each one's end in the body.
    pieces: VecDeque<(u64, Bytes)>,
    /// Bytes of the body so far, and of those that are held.
    came: u64,
    held: u64,
    holds_all: bool,
    end: Option<End>,
    readers: HashMap<u64, Place>,
    next_reader: u64,
    driver: Option<Waker>,
}

#[derive(Debug, Default)]
struct Place {
    /// Bytes of the body that it has.
    read: u64,
    is_too_slow: bool,
    waker: Option<Waker>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    Whole,
    BrokenOff,
}

/// The reader that began the flight.
const LEADER: u64 = 0;

pub(super) fn begin(
    cache: Arc<ResponseCache>,
    hash: u128,
    key: Key,
    bounds: Bounds,
    epoch: u64,
) -> (Driver, Reader) {
    let state = State {
        head: None,
        pieces: VecDeque::new(),
        came: 0,
        held: 0,
        holds_all: true,
        end: None,
        readers: HashMap::from([(LEADER, Place::default())]),
        next_reader: LEADER + 1,
        driver: None,
    };
    let held_by_all = cache.in_flight.clone();
    let flight = Arc::new(Flight { key, hash, bounds, epoch, state: Mutex::new(state), held_by_all });
    (Driver { cache, flight: flight.clone() }, Reader { flight, number: LEADER })
}

impl Flight {
    /// One more who waits for it, if it is still there from its beginning and somebody waits.
    pub(super) fn join(self: &Arc<Self>, key: &Key) -> Option<Reader> {
        let mut state = self.state.lock();
        let is_open = state.holds_all
            && state.end != Some(End::BrokenOff)
            && !state.readers.is_empty()
            && state.head.as_ref().is_none_or(|head| head.is_shared);
        if !is_open || self.key.canonical != key.canonical {
            return None;
        }
        let number = state.next_reader;
        state.next_reader += 1;
        state.readers.insert(number, Place::default());
        Some(Reader { flight: self.clone(), number })
    }

    /// Bytes that may be read ahead of a reader.
    fn lag_max(&self) -> u64 {
        CACHE_WINDOW_BYTES.max(self.bounds.entry_bytes_max as u64)
    }

    /// Lets go what nobody needs any more.
    fn let_go(&self, state: &mut State) {
        let freed = state.let_go();
        self.held_by_all.fetch_sub(freed as usize, Relaxed);
    }
}

impl Drop for Flight {
    fn drop(&mut self) {
        self.held_by_all.fetch_sub(self.state.get_mut().held as usize, Relaxed);
    }
}

impl State {
    fn wake_readers(&mut self) {
        self.readers.values_mut().filter_map(|place| place.waker.take()).for_each(Waker::wake);
    }

    /// Where the slowest is of those who are waited for.
    fn slowest(&self) -> Option<u64> {
        self.readers.values().filter(|place| !place.is_too_slow).map(|place| place.read).min()
    }

    /// Where all of it is not held, lets go what everybody has who is still waited for. Says how many bytes that are.
    fn let_go(&mut self) -> u64 {
        if self.holds_all {
            return 0;
        }
        let slowest = self.slowest();
        let mut freed = 0;
        while let Some((end, piece)) = self.pieces.front()
            && slowest.is_none_or(|slowest| *end <= slowest)
        {
            freed += piece.len() as u64;
            self.pieces.pop_front();
        }
        self.held -= freed;
        freed
    }
}

/// Puts in what comes from the worker. Dropped before its end, the flight has broken off.
pub struct Driver {
    cache: Arc<ResponseCache>,
    flight: Arc<Flight>,
}

impl Driver {
    pub(super) fn flight(&self) -> &Arc<Flight> {
        &self.flight
    }

    /// The answer begins.
    pub fn head(&self, head: Head) {
        let mut state = self.flight.state.lock();
        state.head = Some(Arc::new(head));
        state.wake_readers();
    }

    /// Ready when every reader has left.
    pub fn poll_left(&self, cx: &Context<'_>) -> Poll<()> {
        let mut state = self.flight.state.lock();
        if state.readers.is_empty() {
            return Poll::Ready(());
        }
        state.driver = Some(cx.waker().clone());
        Poll::Pending
    }

    /// Ready when the next piece may be put in.
    pub fn poll_room(&self, cx: &Context<'_>) -> Poll<()> {
        let mut state = self.flight.state.lock();
        let behind = state.slowest().map_or(0, |slowest| state.came - slowest);
        if state.holds_all || behind < self.flight.lag_max() {
            return Poll::Ready(());
        }
        state.driver = Some(cx.waker().clone());
        Poll::Pending
    }

    /// There has been no room for too long: those who are as far behind as they may be are waited for no longer, unless
    /// nobody is ahead of them.
    pub fn leave_behind(&self) {
        let mut state = self.flight.state.lock();
        let (came, lag_max) = (state.came, self.flight.lag_max());
        let fastest = state.readers.values().map(|place| place.read).max().unwrap_or(came);
        let is_left = |place: &&mut Place| place.read < fastest && came - place.read >= lag_max;
        for place in state.readers.values_mut().filter(is_left) {
            place.is_too_slow = true;
            if let Some(waker) = place.waker.take() {
                waker.wake();
            }
        }
        self.flight.let_go(&mut state);
    }

    /// The answer goes on with `piece`.
    pub fn push(&self, piece: Bytes) {
        let Bounds { bytes_max, entry_bytes_max, .. } = self.flight.bounds;
        let length = piece.len();
        if length == 0 {
            return;
        }
        let mut state = self.flight.state.lock();
        state.came += length as u64;
        state.held += length as u64;
        let end = state.came;
        state.pieces.push_back((end, piece));
        let of_all = self.flight.held_by_all.fetch_add(length, Relaxed) + length;
        let of_entry = self.flight.key.canonical.len() as u64 + state.came;
        state.holds_all &= of_entry <= entry_bytes_max as u64 && of_all <= bytes_max;
        self.flight.let_go(&mut state);
        state.wake_readers();
    }

    /// The answer is whole; `is_good` if it may be given again.
    pub fn end(&self, is_good: bool) {
        self.finish(End::Whole, is_good);
    }

    fn finish(&self, end: End, is_good: bool) {
        let Flight { key, hash, epoch, state, .. } = &*self.flight;
        let state = state.lock();
        if state.end.is_some() {
            return;
        }
        let head =
            state.head.clone().filter(|head| is_good && state.holds_all && head.status == StatusCode::OK);
        let pieces: Vec<_> = state.pieces.iter().map(|(_, piece)| piece.clone()).collect();
        drop(state);
        let entry = head.and_then(|head| {
            let body: Bytes = pieces.concat().into();
            // vLLM's word for a request that somebody ended.
            let is_aborted = memmem::find(&body, b"\"finish_reason\":\"abort\"").is_some();
            (!is_aborted).then(|| Entry::new(key, &head.headers, body))
        });
        // First, so that whoever finds no flight finds the entry.
        self.cache.landed(&self.flight, *hash, *epoch, entry);
        let mut state = self.flight.state.lock();
        state.end = Some(end);
        state.wake_readers();
    }
}

impl Drop for Driver {
    fn drop(&mut self) {
        self.finish(End::BrokenOff, false);
    }
}

/// Takes out what comes. Dropped, it has left.
#[derive(Debug)]
pub struct Reader {
    flight: Arc<Flight>,
    number: u64,
}

impl Reader {
    /// The answer's beginning; none if there will be none that this reader may have.
    pub fn poll_head(&self, cx: &Context<'_>) -> Poll<Option<Arc<Head>>> {
        let mut state = self.flight.state.lock();
        if let Some(head) = &state.head {
            let is_mine = head.is_shared || self.number == LEADER;
            return Poll::Ready(Some(head.clone()).filter(|_| is_mine));
        }
        if state.end.is_some() {
            return Poll::Ready(None);
        }
        self.wait(&mut state, cx)
    }

    /// The next piece of the body; none behind its last.
    pub fn poll_piece(&self, cx: &Context<'_>) -> Poll<Option<Result<Bytes, Interrupted>>> {
        let state = &mut *self.flight.state.lock();
        let Some(place) = state.readers.get_mut(&self.number) else { return Poll::Ready(None) };
        if place.is_too_slow {
            return Poll::Ready(Some(Err(Interrupted::TooSlow)));
        }
        let next = state.pieces.partition_point(|(end, _)| *end <= place.read);
        if let Some((end, piece)) = state.pieces.get(next) {
            place.read = *end;
            let piece = piece.clone();
            self.flight.let_go(state);
            if !state.holds_all
                && let Some(driver) = state.driver.take()
            {
                driver.wake();
            }
            return Poll::Ready(Some(Ok(piece)));
        }
        match state.end {
            Some(End::Whole) => Poll::Ready(None),
            Some(End::BrokenOff) => Poll::Ready(Some(Err(Interrupted::BrokenOff))),
            None => self.wait(state, cx),
        }
    }

    fn wait<T>(&self, state: &mut State, cx: &Context<'_>) -> Poll<T> {
        if let Some(place) = state.readers.get_mut(&self.number) {
            place.waker = Some(cx.waker().clone());
        }
        Poll::Pending
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        let mut state = self.flight.state.lock();
        state.readers.remove(&self.number);
        self.flight.let_go(&mut state);
        if let Some(driver) = state.driver.take() {
            driver.wake();
        }
    }
}
