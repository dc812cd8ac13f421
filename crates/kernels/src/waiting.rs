//! A place to sleep until others have done something: the second half of waiting, after a brief spin.

use std::sync::PoisonError;

use crate::sync::{AtomicU64, AtomicUsize, Condvar, Mutex, Ordering, fence, nanoseconds};

/// Where threads sleep until a condition holds. Who makes it hold calls [`Self::wake`], which costs a fence and a
/// look while nobody sleeps.
#[derive(Debug)]
pub(crate) struct WaitQueue {
    sleepers: AtomicUsize,
    /// When somebody was woken last, in nanoseconds.
    woken: AtomicU64,
    lock: Mutex<()>,
    bell: Condvar,
}

impl WaitQueue {
    pub fn new() -> Self {
        Self {
            sleepers: AtomicUsize::new(0),
            woken: AtomicU64::new(0),
            lock: Mutex::new(()),
            bell: Condvar::new(),
        }
    }

    /// Sleeps until `done`. Returns for how many nanoseconds: until it was woken, not until it ran again.
    pub fn sleep(&self, done: impl Fn() -> bool) -> u64 {
        let start = nanoseconds();
        let mut guard = self.lock.lock().unwrap_or_else(PoisonError::into_inner);
        self.sleepers.fetch_add(1, Ordering::Relaxed);
        // Either this thread sees what was done, or who did it sees this thread.
        fence(Ordering::SeqCst);
        while !done() {
            guard = self
                .bell
                .wait(guard)
                .unwrap_or_else(PoisonError::into_inner);
        }
        self.sleepers.fetch_sub(1, Ordering::Relaxed);
        self.woken.load(Ordering::Relaxed).saturating_sub(start)
    }

    /// Wakes who sleeps here. What they wait for was done before, with release.
    pub fn wake(&self) {
        fence(Ordering::SeqCst);
        if self.sleepers.load(Ordering::Relaxed) > 0 {
            self.woken.store(nanoseconds(), Ordering::Relaxed);
            // Between its look and its sleep a thread holds the lock.
            drop(self.lock.lock().unwrap_or_else(PoisonError::into_inner));
            self.bell.notify_all();
        }
    }
}
