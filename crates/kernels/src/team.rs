//! Threads that work on one thing together, in step.
//!
//! A decode step is hundreds of short phases; a barrier by spinning costs about a microsecond, where
//! handing a task to a thread pool costs ten. Who waits for longer goes to sleep, so that others may use the
//! processor. Members that are ready and do not run, because others do, hold up the rest: a job then goes on
//! with fewer.

use std::cell::Cell;
use std::ops::Range;
use std::sync::{OnceLock, PoisonError};

use crate::pace::Pace;
use crate::shared::Shared;
use crate::sync::{
    AbortOnPanic, Arc, AtomicBool, AtomicU64, AtomicUsize, Mutex, Ordering, UnsafeCell,
    nanoseconds, spawn, spin, thread_nanoseconds,
};
use crate::waiting::WaitQueue;

/// How long a thread spins before it sleeps, in nanoseconds: at a barrier, and for the next job (ours).
const AT_BARRIER: u64 = 50_000;
const FOR_JOB: u64 = 200_000;
/// Members look at the clock of their thread where a job has gone on for this long, in nanoseconds (ours).
const A_WHILE: u64 = 2_000_000;

type Job = *const (dyn Fn(&Member<'_>) + Sync);

struct State {
    size: usize,
    job: UnsafeCell<Option<Job>>,
    /// One for each worker.
    starts: Vec<Start>,
    /// Workers that have not finished the job.
    busy: AtomicUsize,
    arrived: AtomicUsize,
    phase: AtomicUsize,
    /// Members that go on with the job.
    members: AtomicUsize,
    /// Members at most.
    limit: AtomicUsize,
    /// Time that members were ready and did not run, in nanoseconds, since it was last counted.
    missed: AtomicU64,
    pace: Mutex<Pace>,
    /// Members of a job sleep here.
    queue: WaitQueue,
    closing: AtomicBool,
}

/// Where a worker waits for its jobs.
#[repr(align(64))]
struct Start {
    /// Counts its jobs; a change is what it waits for.
    jobs: AtomicUsize,
    queue: WaitQueue,
}

// SAFETY: `job` is written only between jobs, before a worker's `jobs` change (release), and read only after
// that change was seen (acquire).
unsafe impl Sync for State {}
// SAFETY: the job's pointer is used only while `Team::run` keeps what it points to alive.
unsafe impl Send for State {}

/// A number of threads, the caller's among them. How many of them work on a job depends on what else runs on the
/// machine: a job's results must not.
///
/// ```
/// use mope_kernels::Team;
///
/// let team = Team::new(2);
/// let mut squares = vec![0; 6];
/// team.for_each_row(&mut squares, 2, |row, values| {
///     for (column, value) in values.iter_mut().enumerate() {
///         *value = (2 * row + column).pow(2);
///     }
/// });
/// assert_eq!(squares, [0, 1, 4, 9, 16, 25]);
/// ```
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
    size: Cell<usize>,
    state: Option<&'a State>,
    clock: Clock,
}

/// When a member looked last: time, time of its thread, and how long it has slept since, in nanoseconds.
#[derive(Debug, Default)]
struct Clock {
    time: Cell<u64>,
    run: Cell<u64>,
    slept: Cell<u64>,
}

impl std::fmt::Debug for State {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("State")
            .field("size", &self.size)
            .finish_non_exhaustive()
    }
}

impl<'a> Member<'a> {
    /// The only one.
    fn alone() -> Self {
        Self {
            index: 0,
            size: Cell::new(1),
            state: None,
            clock: Clock::default(),
        }
    }

    fn of(state: &'a State, index: usize) -> Self {
        let clock = Clock::default();
        clock.time.set(nanoseconds());
        clock.run.set(thread_nanoseconds());
        Self {
            index,
            size: Cell::new(state.members.load(Ordering::Relaxed)),
            state: Some(state),
            clock,
        }
    }

    /// Number of members. It stays until [`Self::regroup`].
    pub fn size(&self) -> usize {
        self.size.get()
    }

    /// Waits until all members are here; what they wrote before is seen by all after.
    pub fn sync(&self) {
        if let Some(state) = self.state {
            self.meet(state, || ());
        }
    }

    /// [`Self::sync`], after which there may be fewer members; says whether this one is still among them. If not, it
    /// must return from the job: the others share all that is left.
    #[must_use = "who is no longer a member leaves"]
    pub fn regroup(&self) -> bool {
        let Some(state) = self.state else { return true };
        self.count(state, A_WHILE);
        self.meet(state, || {
            let members = state.count().min(state.limit.load(Ordering::Relaxed));
            state
                .members
                .store(members.min(self.size()), Ordering::Relaxed);
        });
        // It cannot change again before all who stay are at the next barrier.
        self.size.set(state.members.load(Ordering::Relaxed));
        self.index < self.size()
    }

    /// A barrier; the last to arrive does something for all before they go on.
    fn meet(&self, state: &State, last: impl FnOnce()) {
        let phase = state.phase.load(Ordering::Relaxed);
        if state.arrived.fetch_add(1, Ordering::AcqRel) + 1 == self.size() {
            last();
            state.arrived.store(0, Ordering::Relaxed);
            state.phase.store(phase.wrapping_add(1), Ordering::Release);
            state.queue.wake();
        } else {
            self.wait(state, || state.phase.load(Ordering::Acquire) != phase);
        }
    }

    fn wait(&self, state: &State, done: impl Fn() -> bool) {
        if !spin(AT_BARRIER, &done) {
            let slept = self.clock.slept.get() + state.queue.sleep(done);
            self.clock.slept.set(slept);
        }
    }

    /// Adds up for how long this thread was ready and did not run, where it last looked `patience` ago or longer.
    fn count(&self, state: &State, patience: u64) {
        let Clock { time, run, slept } = &self.clock;
        let passed = nanoseconds().saturating_sub(time.get());
        if passed >= patience {
            let now = thread_nanoseconds();
            let ran = now.saturating_sub(run.get());
            let missed = passed.saturating_sub(ran + slept.get());
            state.missed.fetch_add(missed, Ordering::Relaxed);
            time.set(time.get() + passed);
            run.set(now);
            slept.set(0);
        }
    }

    /// This member's share of `n` things, in one piece.
    pub fn share(&self, n: usize) -> Range<usize> {
        let size = self.size();
        n * self.index / size..n * (self.index + 1) / size
    }
}

impl State {
    /// How many members should go on with a job, after what they missed.
    fn count(&self) -> usize {
        let missed = self.missed.swap(0, Ordering::Relaxed);
        let mut pace = self.pace.lock().unwrap_or_else(PoisonError::into_inner);
        pace.count(missed, nanoseconds())
    }

    /// How many members begin a job.
    fn begin(&self) -> usize {
        let mut pace = self.pace.lock().unwrap_or_else(PoisonError::into_inner);
        let members = pace.begin(nanoseconds());
        members.min(self.limit.load(Ordering::Relaxed))
    }
}

impl Team {
    /// A team of `size` threads, at least one.
    pub fn new(size: usize) -> Self {
        let size = size.max(1);
        let start = || Start {
            jobs: AtomicUsize::new(0),
            queue: WaitQueue::new(),
        };
        let state = Arc::new(State {
            size,
            job: UnsafeCell::new(None),
            starts: (1..size).map(|_| start()).collect(),
            busy: AtomicUsize::new(0),
            arrived: AtomicUsize::new(0),
            phase: AtomicUsize::new(0),
            members: AtomicUsize::new(size),
            limit: AtomicUsize::new(size),
            missed: AtomicU64::new(0),
            pace: Mutex::new(Pace::new(size)),
            queue: WaitQueue::new(),
            closing: AtomicBool::new(false),
        });
        for index in 1..state.size {
            let state = state.clone();
            spawn(move || work(&state, index));
        }
        Self {
            state,
            turn: Mutex::new(()),
        }
    }

    /// The process's team: as many threads as this process may run at once (its processors, within the affinity and
    /// the cgroup's quota that it began with), or as the environment variable `MOPE_THREADS` says, where
    /// [`Self::asked`] understands it.
    pub fn global() -> &'static Self {
        static TEAM: OnceLock<Team> = OnceLock::new();
        TEAM.get_or_init(|| {
            let all = || std::thread::available_parallelism().map_or(1, usize::from);
            Self::new(Self::asked().ok().flatten().unwrap_or_else(all))
        })
    }

    /// Threads that the environment variable `MOPE_THREADS` asks for.
    ///
    /// # Errors
    /// What is wrong with it, in words: it is no number from 1 to 1024.
    pub fn asked() -> Result<Option<usize>, String> {
        match std::env::var_os("MOPE_THREADS") {
            None => Ok(None),
            Some(text) => threads(&text.to_string_lossy()).map(Some),
        }
    }

    /// Number of threads: members of a job at most.
    pub fn size(&self) -> usize {
        self.state.size
    }

    /// Takes at most `members` for each job from now on, at least one. A job under way goes on with them from its
    /// next [`Member::regroup`].
    pub fn limit(&self, members: usize) {
        let members = members.clamp(1, self.state.size);
        self.state.limit.store(members, Ordering::Relaxed);
    }

    /// Runs `job` on every member's thread and returns when all are done. Calls from several threads take
    /// turns; a job must not call it again.
    pub fn run(&self, job: &(dyn Fn(&Member<'_>) + Sync)) {
        let _turn = self.turn.lock().unwrap_or_else(PoisonError::into_inner);
        let state = &*self.state;
        let members = if state.size == 1 { 1 } else { state.begin() };
        if members == 1 {
            return job(&Member::alone());
        }
        // SAFETY: the lifetime is only forgotten; all workers are done with the job before this
        // function returns.
        let job_pointer: Job =
            unsafe { std::mem::transmute::<&(dyn Fn(&Member<'_>) + Sync), Job>(job) };
        // SAFETY: no job is running, so no worker reads it.
        state
            .job
            .with_mut(|job| unsafe { *job = Some(job_pointer) });
        state.members.store(members, Ordering::Relaxed);
        state.busy.store(members - 1, Ordering::Relaxed);
        let starts = &state.starts[..members - 1];
        for start in starts {
            start.jobs.fetch_add(1, Ordering::Release);
        }
        starts.iter().for_each(|start| start.queue.wake());
        let guard = AbortOnPanic;
        let member = Member::of(state, 0);
        job(&member);
        drop(guard);
        member.wait(state, || state.busy.load(Ordering::Acquire) == 0);
        member.count(state, A_WHILE);
        state.count();
    }

    /// Runs `f` for every number below `n`, spread over the threads in contiguous pieces.
    pub fn for_each(&self, n: usize, f: impl Fn(usize) + Sync) {
        self.run(&|member| member.share(n).for_each(&f));
    }

    /// Runs `f` for every row of `[rows, width]`, spread over the threads in contiguous pieces: with its number
    /// and its elements.
    ///
    /// # Panics
    /// When `rows` is not made of whole rows.
    pub fn for_each_row<T: Send + Sync>(
        &self,
        rows: &mut [T],
        width: usize,
        f: impl Fn(usize, &mut [T]) + Sync,
    ) {
        self.for_each_part(rows, width, width, |row, _, part| f(row, part));
    }

    /// Runs `f` for every part of every row of `[rows, width]`, at most `size` elements each, spread over the
    /// threads in contiguous pieces: with the row's number, the part's first column and its elements.
    ///
    /// # Panics
    /// When `rows` is not made of whole rows, or `size` is 0.
    pub fn for_each_part<T: Send + Sync>(
        &self,
        rows: &mut [T],
        width: usize,
        size: usize,
        f: impl Fn(usize, usize, &mut [T]) + Sync,
    ) {
        if rows.is_empty() {
            return;
        }
        assert!(width > 0 && size > 0, "rows and parts of a width above 0");
        let parts = width.div_ceil(size);
        let count = rows.len() / width;
        whole_rows(rows.len(), count, width);
        let shared = Shared::new(rows);
        self.for_each(count * parts, |task| {
            let (row, first) = (task / parts, task % parts * size);
            let last = width.min(first + size);
            // SAFETY: `for_each` hands out each number once, so no two threads have the same part.
            let part = unsafe { shared.write(row * width + first..row * width + last) };
            f(row, first, part);
        });
    }

    /// Runs `f` for `count` rows of two buffers at once, spread over the threads in contiguous pieces: with the
    /// row's number and its elements in each. Rows of a buffer may be empty.
    ///
    /// # Panics
    /// When a buffer is not made of `count` rows.
    pub fn for_each_row_of_two<T: Send + Sync, U: Send + Sync>(
        &self,
        count: usize,
        first: &mut [T],
        second: &mut [U],
        f: impl Fn(usize, &mut [T], &mut [U]) + Sync,
    ) {
        let widths = [first.len(), second.len()].map(|len| len.checked_div(count).unwrap_or(0));
        whole_rows(first.len(), count, widths[0]);
        whole_rows(second.len(), count, widths[1]);
        let (first, second) = (Shared::new(first), Shared::new(second));
        self.for_each(count, |row| {
            let [one, two] = widths.map(|width| row * width..(row + 1) * width);
            // SAFETY: `for_each` hands out each number once, so no two threads have the same row.
            let (one, two) = unsafe { (first.write(one), second.write(two)) };
            f(row, one, two);
        });
    }
}

/// Nothing may be left over.
fn whole_rows(len: usize, count: usize, width: usize) {
    assert_eq!(len, count * width, "elements of {count} rows");
}

impl Drop for Team {
    fn drop(&mut self) {
        self.state.closing.store(true, Ordering::Release);
        for start in &self.state.starts {
            start.jobs.fetch_add(1, Ordering::Release);
            start.queue.wake();
        }
    }
}

/// Most threads of a team (ours).
const THREADS: usize = 1024;

fn threads(text: &str) -> Result<usize, String> {
    let number = text.trim().parse().ok();
    number
        .filter(|n| (1..=THREADS).contains(n))
        .ok_or_else(|| format!("MOPE_THREADS is '{text}', not a number from 1 to {THREADS}"))
}

fn work(state: &State, index: usize) {
    let Start { jobs, queue } = &state.starts[index - 1];
    let mut seen = 0;
    loop {
        let next = || jobs.load(Ordering::Acquire) != seen;
        if !spin(FOR_JOB, next) {
            queue.sleep(next);
        }
        seen = jobs.load(Ordering::Acquire);
        if state.closing.load(Ordering::Acquire) {
            return;
        }
        // SAFETY: written before the number of jobs changed; `Team::run` keeps it alive until `busy` is 0.
        let job = state.job.with(|job| unsafe { *job });
        if let Some(job) = job {
            let _guard = AbortOnPanic;
            // SAFETY: as above.
            let job = unsafe { &*job };
            let member = Member::of(state, index);
            job(&member);
            member.count(state, A_WHILE);
        }
        if state.busy.fetch_sub(1, Ordering::Release) == 1 {
            state.queue.wake();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn members_share_the_work_and_see_each_others_after_a_barrier() {
        for size in 1..5 {
            let team = Team::new(size);
            for n in [0, 1, 3, 100] {
                let (mut first, mut second) = (vec![0; n], vec![0; n]);
                let (one, two) = (Shared::new(&mut first), Shared::new(&mut second));
                team.run(&|member| {
                    // SAFETY: shares are disjoint.
                    let part = unsafe { one.write(member.share(n)) };
                    part.iter_mut()
                        .zip(member.share(n))
                        .for_each(|(v, i)| *v = i);
                    member.sync();
                    // SAFETY: written before the barrier; nobody writes `one` after it.
                    let all = unsafe { one.read(0..n) };
                    // SAFETY: shares are disjoint.
                    let part = unsafe { two.write(member.share(n)) };
                    part.iter_mut()
                        .zip(member.share(n))
                        .for_each(|(v, i)| *v = all[n - 1 - i]);
                });
                assert!(second.iter().enumerate().all(|(i, v)| *v == n - 1 - i));
            }
        }
    }

    #[test]
    fn rows_and_parts_are_handed_out_once_each() {
        for size in 1..4 {
            let team = Team::new(size);
            for (count, width, part) in [(0, 3, 2), (1, 1, 1), (5, 7, 3), (4, 6, 3), (3, 2, 9)] {
                let numbers: Vec<usize> = (0..count * width).collect();
                let mut rows = vec![0; count * width];
                team.for_each_row(&mut rows, width, |row, values| {
                    let first = row * width;
                    assert_eq!(values.len(), width);
                    values
                        .iter_mut()
                        .enumerate()
                        .for_each(|(i, v)| *v += first + i);
                });
                assert_eq!(rows, numbers);
                rows.fill(0);
                team.for_each_part(&mut rows, width, part, |row, first, values| {
                    assert_eq!(values.len(), part.min(width - first));
                    let first = row * width + first;
                    values
                        .iter_mut()
                        .enumerate()
                        .for_each(|(i, v)| *v += first + i);
                });
                assert_eq!(rows, numbers);
                let mut sums = vec![0; count];
                rows.fill(0);
                team.for_each_row_of_two(count, &mut rows, &mut sums, |row, values, sum| {
                    values.iter_mut().for_each(|v| *v += row);
                    sum[0] += values.iter().sum::<usize>();
                });
                assert!(rows.iter().enumerate().all(|(i, v)| *v == i / width));
                assert!(
                    sums.iter()
                        .enumerate()
                        .all(|(row, sum)| *sum == row * width)
                );
            }
        }
        let mut none: [u8; 0] = [];
        let count = AtomicUsize::new(0);
        Team::new(2).for_each_row_of_two(2, &mut none, &mut [0; 4], |_, empty, two| {
            assert!(empty.is_empty() && two.len() == 2);
            count.fetch_add(1, Ordering::Relaxed);
        });
        assert_eq!(count.into_inner(), 2);
    }

    #[test]
    #[should_panic(expected = "elements of 2 rows")]
    fn a_piece_of_a_row_is_refused() {
        Team::new(1).for_each_row(&mut [0; 10], 4, |_, _| ());
    }

    #[test]
    fn numbers_of_threads_are_bounded() {
        assert_eq!((threads("1"), threads(" 1024 ")), (Ok(1), Ok(1024)));
        for text in [
            "",
            "0",
            "two",
            "-1",
            "1025",
            "1000000",
            "1e3",
            "99999999999999999999",
        ] {
            assert!(threads(text).is_err(), "{text}");
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
