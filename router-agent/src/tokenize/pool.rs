//! Threads that tokenise, apart from those that move data, behind a queue with an end.
//!
//! Work that nobody waits for any more is not begun. Work that has begun is finished although its request went on without
//! it: the next turn of that conversation finds its pieces in the cache.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};

use tokio::sync::oneshot;

use super::{LoadError, Unknown};

/// The threads.
pub(super) struct Pool {
    threads: rayon::ThreadPool,
    /// Requests that are waiting or under way.
    inside: Arc<AtomicUsize>,
    inside_max: usize,
    deadline: Duration,
}

/// A request in the pool; leaves it when dropped.
struct Inside(Arc<AtomicUsize>);

impl Drop for Inside {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Relaxed);
    }
}

impl Pool {
    /// `threads` threads and room for `queue` requests that wait; each is waited for until `deadline`.
    pub(super) fn start(threads: usize, queue: usize, deadline: Duration) -> Result<Self, LoadError> {
        let threads_started = rayon::ThreadPoolBuilder::new()
            .num_threads(threads)
            .thread_name(|number| format!("tokenize-{number}"))
            // Its request goes on without tokens; the panic itself is in the log already.
            .panic_handler(|_| tracing::error!("tokenising panicked: please report it"))
            .build()
            .map_err(|error| LoadError::Threads(error.to_string()))?;
        let inside = Arc::new(AtomicUsize::new(0));
        Ok(Self { threads: threads_started, inside, inside_max: queue + threads, deadline })
    }

    /// What `work` gives, if that is in time.
    pub(super) async fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> Result<T, Unknown> + Send + 'static,
    ) -> Result<T, Unknown> {
        let enter = |inside: usize| (inside < self.inside_max).then_some(inside + 1);
        self.inside.fetch_update(Relaxed, Relaxed, enter).map_err(|_| Unknown::Busy)?;
        let inside = Inside(self.inside.clone());
        let (sender, receiver) = oneshot::channel();
        self.threads.spawn_fifo(move || {
            let _inside = inside;
            if !sender.is_closed() {
                let _ = sender.send(work());
            }
        });
        match tokio::time::timeout(self.deadline, receiver).await {
            Ok(Ok(result)) => result,
            Ok(Err(_)) => Err(Unknown::Refused("tokenising panicked".to_owned())),
            Err(_) => Err(Unknown::Late),
        }
    }
}

impl std::fmt::Debug for Pool {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Pool").field("inside", &self.inside).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    const LONG: Duration = Duration::from_secs(30);

    #[tokio::test]
    async fn one_more_than_there_is_room_for_is_turned_away() {
        let pool = Pool::start(1, 1, LONG).expect("a thread");
        let (finish, finished) = mpsc::channel::<()>();
        let first = pool.run(move || Ok(finished.recv().is_ok()));
        tokio::pin!(first);
        assert!(poll_once(first.as_mut()).await.is_none(), "it is under way");
        let second = pool.run(|| Ok(2));
        tokio::pin!(second);
        assert!(poll_once(second.as_mut()).await.is_none(), "it waits");
        assert_eq!(pool.run(|| Ok(3)).await, Err(Unknown::Busy));
        finish.send(()).expect("the first one waits for it");
        assert_eq!(first.await, Ok(true));
        assert_eq!(second.await, Ok(2));
        assert_eq!(pool.run(|| Ok(3)).await, Ok(3), "there is room again");
    }

    #[tokio::test]
    async fn what_is_late_is_not_waited_for_and_not_begun() {
        let pool = Pool::start(1, 8, Duration::from_millis(50)).expect("a thread");
        let (finish, finished) = mpsc::channel::<()>();
        assert_eq!(pool.run(move || Ok(finished.recv().is_ok())).await, Err(Unknown::Late));
        let (begun, was_begun) = mpsc::channel::<()>();
        assert_eq!(pool.run(move || Ok(begun.send(()).is_ok())).await, Err(Unknown::Late));
        finish.send(()).expect("the first one is still under way");
        // The channel's other end is dropped with the work, without having been used.
        assert!(was_begun.recv().is_err());
    }

    #[tokio::test]
    async fn a_panic_costs_its_own_request_only() {
        let pool = Pool::start(1, 8, LONG).expect("a thread");
        let panicking = pool.run(|| -> Result<(), Unknown> { panic!("on purpose") });
        assert!(matches!(panicking.await, Err(Unknown::Refused(_))));
        assert_eq!(pool.run(|| Ok(1)).await, Ok(1));
    }

    /// Polls once.
    async fn poll_once<F: Future>(mut future: std::pin::Pin<&mut F>) -> Option<F::Output> {
        std::future::poll_fn(|context| match future.as_mut().poll(context) {
            std::task::Poll::Ready(output) => std::task::Poll::Ready(Some(output)),
            std::task::Poll::Pending => std::task::Poll::Ready(None),
        })
        .await
    }
}
