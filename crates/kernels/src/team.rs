//! Threads that work on one thing together, in step.
//!
//! A decode step is hundreds of short phases; a barrier by spinning costs about a microsecond, where
//! handing a task to a thread pool costs ten. Members that have nothing to do go to sleep soon.

use std::cell::UnsafeCell;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

type Job = *const (dyn Fn(&Member<'_>) + Sync);

/// How long an idle thread waits for the next job before it sleeps.
const PATIENCE: Duration = Duration::from_micros(200);
/// Turns of a waiting loop before the processor is offered to others.
const SPINS: u32 = 4000;

struct State {
    size: usize,
    /// Counts jobs; a change is what workers wait for.
    epoch: AtomicUsize,
    job: UnsafeCell<Option<Job>>,
    /// Workers that have not finished the job.
    busy: AtomicUsize,
    arrived: AtomicUsize,
    phase: AtomicUsize,
    asleep: Mutex<usize>,
    wake: Condvar,
    closing: AtomicBool,
}

// SAFETY: `job` is written only between jobs, before `epoch` changes (release), and read only after
// that change was seen (acquire).
unsafe impl Sync for State {}
// SAFETY: the job's pointer is used only while `Team::run` keeps what it points to alive.
unsafe impl Send for State {}

/// A fixed number of threads, the caller's among them.
pub struct Team {
    state: Arc<State>,
    /// One job at a time.
    turn: Mutex<()>,
}

impl std::fmt::Debug for Team {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Team")
            .field("size", &self.state.size)
            .finish_non_exhaustive()
    }
}

/// One thread's view of a job.
#[derive(Debug)]
pub struct Member<'a> {
    /// Its number, from 0.
    pub index: usize,
    /// Number of members.
    pub size: usize,
    state: Option<&'a State>,
}

impl std::fmt::Debug for State {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("State")
            .field("size", &self.size)
            .finish_non_exhaustive()
    }
}

impl Member<'_> {
    /// Waits until all members are here; what they wrote before is seen by all after.
    pub fn sync(&self) {
        let Some(state) = self.state else { return };
        let phase = state.phase.load(Ordering::Relaxed);
        if state.arrived.fetch_add(1, Ordering::AcqRel) + 1 == self.size {
            state.arrived.store(0, Ordering::Relaxed);
            state.phase.store(phase.wrapping_add(1), Ordering::Release);
        } else {
            wait(|| state.phase.load(Ordering::Acquire) != phase);
        }
    }

    /// This member's share of `n` things, in one piece.
    pub fn share(&self, n: usize) -> Range<usize> {
        n * self.index / self.size..n * (self.index + 1) / self.size
    }
}

fn wait(done: impl Fn() -> bool) {
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

/// A panic of one member would leave the others waiting for ever.
struct AbortOnPanic;

impl Drop for AbortOnPanic {
    fn drop(&mut self) {
        if std::thread::panicking() {
            std::process::abort();
        }
    }
}

impl Team {
    /// A team of `size` threads, at least one.
    pub fn new(size: usize) -> Self {
        let state = Arc::new(State {
            size: size.max(1),
            epoch: AtomicUsize::new(0),
            job: UnsafeCell::new(None),
            busy: AtomicUsize::new(0),
            arrived: AtomicUsize::new(0),
            phase: AtomicUsize::new(0),
            asleep: Mutex::new(0),
            wake: Condvar::new(),
            closing: AtomicBool::new(false),
        });
        for index in 1..state.size {
            let state = state.clone();
            std::thread::spawn(move || work(&state, index));
        }
        Self {
            state,
            turn: Mutex::new(()),
        }
    }

    /// The process's team: as many threads as the processor runs at once, or as the environment
    /// variable `MOPE_THREADS` says.
    pub fn global() -> &'static Self {
        static TEAM: OnceLock<Team> = OnceLock::new();
        TEAM.get_or_init(|| {
            let asked = std::env::var("MOPE_THREADS")
                .ok()
                .and_then(|v| v.parse().ok());
            let all = || std::thread::available_parallelism().map_or(1, usize::from);
            Self::new(asked.unwrap_or_else(all))
        })
    }

    /// Number of threads.
    pub fn size(&self) -> usize {
        self.state.size
    }

    /// Runs `job` on every thread and returns when all are done. Calls from several threads take
    /// turns; a job must not call it again.
    pub fn run(&self, job: &(dyn Fn(&Member<'_>) + Sync)) {
        let _turn = self.turn.lock().unwrap_or_else(PoisonError::into_inner);
        let state = &*self.state;
        if state.size == 1 {
            return job(&Member {
                index: 0,
                size: 1,
                state: None,
            });
        }
        // SAFETY: the lifetime is only forgotten; all workers are done with the job before this
        // function returns.
        let job_pointer: Job =
            unsafe { std::mem::transmute::<&(dyn Fn(&Member<'_>) + Sync), Job>(job) };
        // SAFETY: no job is running, so no worker reads it.
        unsafe { *state.job.get() = Some(job_pointer) };
        state.busy.store(state.size - 1, Ordering::Relaxed);
        state.epoch.fetch_add(1, Ordering::Release);
        if *state.asleep.lock().unwrap_or_else(PoisonError::into_inner) > 0 {
            state.wake.notify_all();
        }
        let guard = AbortOnPanic;
        job(&Member {
            index: 0,
            size: state.size,
            state: Some(state),
        });
        drop(guard);
        wait(|| state.busy.load(Ordering::Acquire) == 0);
    }

    /// Runs `f` for every number below `n`, spread over the threads in contiguous pieces.
    pub fn for_each(&self, n: usize, f: impl Fn(usize) + Sync) {
        self.run(&|member| member.share(n).for_each(&f));
    }
}

impl Drop for Team {
    fn drop(&mut self) {
        self.state.closing.store(true, Ordering::Release);
        self.state.epoch.fetch_add(1, Ordering::Release);
        let _asleep = self
            .state
            .asleep
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        self.state.wake.notify_all();
    }
}

fn work(state: &State, index: usize) {
    let mut seen = 0;
    loop {
        let idle = Instant::now();
        let mut turns = 0u32;
        while state.epoch.load(Ordering::Acquire) == seen {
            turns = turns.wrapping_add(1);
            std::hint::spin_loop();
            if turns.is_multiple_of(64) && idle.elapsed() > PATIENCE {
                let mut asleep = state.asleep.lock().unwrap_or_else(PoisonError::into_inner);
                *asleep += 1;
                while state.epoch.load(Ordering::Acquire) == seen {
                    asleep = state
                        .wake
                        .wait(asleep)
                        .unwrap_or_else(PoisonError::into_inner);
                }
                *asleep -= 1;
            }
        }
        seen = state.epoch.load(Ordering::Acquire);
        if state.closing.load(Ordering::Acquire) {
            return;
        }
        // SAFETY: written before the epoch changed; `Team::run` keeps it alive until `busy` is 0.
        let job = unsafe { *state.job.get() };
        if let Some(job) = job {
            let _guard = AbortOnPanic;
            // SAFETY: as above.
            let job = unsafe { &*job };
            job(&Member {
                index,
                size: state.size,
                state: Some(state),
            });
        }
        state.busy.fetch_sub(1, Ordering::Release);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Shared;

    #[test]
    fn members_share_the_work_and_see_each_others_after_a_barrier() {
        for size in 1..5 {
            let team = Team::new(size);
            for n in [0, 1, 3, 100] {
                let (mut first, mut second) = (vec![0; n], vec![0; n]);
                let (one, two) = (Shared::new(&mut first), Shared::new(&mut second));
                team.run(&|member| {
                    // SAFETY: shares are disjoint.
                    let own = unsafe { one.write(member.share(n)) };
                    own.iter_mut()
                        .zip(member.share(n))
                        .for_each(|(v, i)| *v = i);
                    member.sync();
                    // SAFETY: written before the barrier; nobody writes `one` after it.
                    let all = unsafe { one.read(0..n) };
                    // SAFETY: shares are disjoint.
                    let own = unsafe { two.write(member.share(n)) };
                    own.iter_mut()
                        .zip(member.share(n))
                        .for_each(|(v, i)| *v = all[n - 1 - i]);
                });
                assert!(second.iter().enumerate().all(|(i, v)| *v == n - 1 - i));
            }
        }
    }

    #[test]
    fn a_team_wakes_up_again_and_again() {
        let team = Team::new(3);
        let count = AtomicUsize::new(0);
        for round in 0..50 {
            team.for_each(7, |_| {
                count.fetch_add(1, Ordering::Relaxed);
            });
            if round % 10 == 0 {
                std::thread::sleep(Duration::from_millis(2));
            }
        }
        assert_eq!(count.into_inner(), 350);
    }
}
