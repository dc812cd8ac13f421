//! Threads, atomics and locks of the [team](crate::Team): the standard library's, or loom's where
//! `scripts/check-loom.sh` explores how they may interleave.

#[cfg(not(loom))]
pub(crate) use standard::*;

#[cfg(loom)]
pub(crate) use model::*;

#[cfg(not(loom))]
mod standard {
    use std::time::{Duration, Instant};

    pub(crate) use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
    pub(crate) use std::sync::{Arc, Condvar, Mutex};
    pub(crate) use std::thread::spawn;

    /// How long an idle thread waits for the next job before it sleeps.
    const PATIENCE: Duration = Duration::from_micros(200);
    /// Turns of a waiting loop before the processor is offered to others.
    const SPINS: u32 = 4000;

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

    /// Loops until `done`, for what takes microseconds.
    pub(crate) fn wait(done: impl Fn() -> bool) {
        let mut turns = 0;
        while !done() {
            turns += 1;
            if turns < SPINS {
                std::hint::spin_loop();
            } else {
                std::thread::yield_now();
            }
        }
    }

    /// Loops until `done` or until patience is over; says whether it is done.
    pub(crate) fn wait_a_little(done: impl Fn() -> bool) -> bool {
        let (start, mut turns) = (Instant::now(), 0u32);
        while !done() {
            turns = turns.wrapping_add(1);
            std::hint::spin_loop();
            if turns.is_multiple_of(64) && start.elapsed() > PATIENCE {
                return false;
            }
        }
        true
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
    pub(crate) use loom::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
    pub(crate) use loom::sync::{Arc, Condvar, Mutex};
    pub(crate) use loom::thread::spawn;

    /// Loops until `done`; others run meanwhile.
    pub(crate) fn wait(done: impl Fn() -> bool) {
        while !done() {
            loom::thread::yield_now();
        }
    }

    /// Looks once: the shortest patience there is.
    pub(crate) fn wait_a_little(done: impl Fn() -> bool) -> bool {
        done()
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
