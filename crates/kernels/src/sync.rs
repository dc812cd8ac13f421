//! Threads, atomics, locks and clocks of the [team](crate::Team): the standard library's, or loom's where
//! `scripts/check-loom.sh` explores how they may interleave.

#[cfg(not(loom))]
pub(crate) use standard::*;

#[cfg(loom)]
pub(crate) use model::*;

#[cfg(not(loom))]
mod standard {
    use std::sync::OnceLock;
    use std::time::Instant;

    pub(crate) use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering, fence};
    pub(crate) use std::sync::{Arc, Condvar, Mutex};
    pub(crate) use std::thread::spawn;

    /// The standard library's cell with loom's methods.
    #[derive(Debug)]
    pub(crate) struct UnsafeCell<T>(std::cell::UnsafeCell<T>);

    impl<T> UnsafeCell<T> {
        pub fn new(value: T) -> Self {
            Self(std::cell::UnsafeCell::new(value))
        }

        /// For reading.
        pub fn with<R>(&self, f: impl FnOnce(*const T) -> R) -> R {
            f(self.0.get())
        }

        /// For writing.
        pub fn with_mut<R>(&self, f: impl FnOnce(*mut T) -> R) -> R {
            f(self.0.get())
        }
    }

    /// Loops until `done` or until `patience` nanoseconds are over; says whether it is done.
    pub(crate) fn spin(patience: u64, done: impl Fn() -> bool) -> bool {
        let (mut start, mut turns) = (None, 0u32);
        while !done() {
            turns = turns.wrapping_add(1);
            std::hint::spin_loop();
            if turns.is_multiple_of(64) {
                let now = nanoseconds();
                if now - *start.get_or_insert(now) > patience {
                    return false;
                }
            }
        }
        true
    }

    /// Time since the first call in this process, in nanoseconds.
    pub(crate) fn nanoseconds() -> u64 {
        static START: OnceLock<Instant> = OnceLock::new();
        START.get_or_init(Instant::now).elapsed().as_nanos() as u64
    }

    /// Time that the system ran this thread, in nanoseconds from an unknown start; where nobody counts it, time.
    #[cfg(target_os = "linux")]
    pub(crate) fn thread_nanoseconds() -> u64 {
        let mut time = libc::timespec {
            tv_sec: 0,
            tv_nsec: 0,
        };
        // SAFETY: it writes the time to the struct and nothing else.
        match unsafe { libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, &mut time) } {
            0 => time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64,
            _ => nanoseconds(),
        }
    }

    /// Time that the system ran this thread, in nanoseconds from an unknown start; where nobody counts it, time.
    #[cfg(not(target_os = "linux"))]
    pub(crate) fn thread_nanoseconds() -> u64 {
        nanoseconds()
    }

    /// A panic of one member would leave the others waiting for ever.
    pub(crate) struct AbortOnPanic;

    impl Drop for AbortOnPanic {
        fn drop(&mut self) {
            if std::thread::panicking() {
                std::process::abort();
            }
        }
    }
}

#[cfg(loom)]
mod model {
    use std::ops::Range;

    pub(crate) use loom::cell::UnsafeCell;
    pub(crate) use loom::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering, fence};
    pub(crate) use loom::sync::{Arc, Condvar, Mutex};
    pub(crate) use loom::thread::spawn;

    /// Looks once: the shortest patience there is.
    pub(crate) fn spin(_patience: u64, done: impl Fn() -> bool) -> bool {
        done()
    }

    /// No time passes in a model.
    pub(crate) fn nanoseconds() -> u64 {
        0
    }

    /// No time passes in a model.
    pub(crate) fn thread_nanoseconds() -> u64 {
        0
    }

    /// A model reports a panic itself.
    pub(crate) struct AbortOnPanic;

    /// What makes a model fail when an element of a [`crate::Shared`] is written without being ordered before or
    /// after every other use of it. A part counts as used when it is handed out.
    #[derive(Debug, Clone, Copy)]
    pub(crate) struct Watched<'a>(&'a [UnsafeCell<()>]);

    impl Watched<'_> {
        pub fn new(len: usize) -> Self {
            let cells = (0..len).map(|_| UnsafeCell::new(()));
            // A few bytes for each model; what is shared may be copied, so nobody could free it.
            Self(Box::leak(cells.collect()))
        }

        pub fn read(&self, range: Range<usize>) {
            self.0[range].iter().for_each(|cell| cell.with(|_| ()));
        }

        pub fn write(&self, range: Range<usize>) {
            self.0[range].iter().for_each(|cell| cell.with_mut(|_| ()));
        }
    }
}
