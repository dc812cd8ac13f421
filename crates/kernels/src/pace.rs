//! How many members of a team work, on a machine that others use as well.
//!
//! A member that the system does not run holds up all others at the next barrier: a team of `k` members of which one
//! is missing for a share `m` of the time does about `k (1 - m)` times the work of one thread. Where that is less than
//! `k - 1`, the team takes fewer, and tries one more from time to time.

/// What was seen longer ago than this counts half, in nanoseconds. All times here are ours, by trial on two
/// processors with none, one and two busy neighbours.
const WINDOW: u64 = 64_000_000;
/// Time that members must have missed together before there are fewer, in nanoseconds.
const ENOUGH: u64 = 4_000_000;
/// Before one more member is tried, in nanoseconds: at first, and after many trials that failed.
const FIRST_REST: u64 = 100_000_000;
const LONGEST_REST: u64 = 1_600_000_000;
/// A trial that lasts for as long as this has not failed, in nanoseconds.
const PROOF: u64 = 200_000_000;

/// The number of members, from what was seen of them.
#[derive(Debug)]
pub(crate) struct Pace {
    most: usize,
    members: usize,
    /// Time of jobs with this number of members, in nanoseconds.
    worked: u64,
    /// Time of members that were ready to run and did not, of the same time.
    missed: u64,
    /// When `worked` was counted last.
    counted: u64,
    /// When the number changed.
    changed: u64,
    /// One more than last time, on trial.
    trial: bool,
    /// How long fewer members go on.
    rest: u64,
}

impl Pace {
    /// All of `most` members work.
    pub fn new(most: usize) -> Self {
        Self {
            most,
            members: most,
            worked: 0,
            missed: 0,
            counted: 0,
            changed: 0,
            trial: false,
            rest: FIRST_REST,
        }
    }

    /// A job begins at `now`, with as many members as this says.
    pub fn begin(&mut self, now: u64) -> usize {
        self.counted = now;
        let since = now.saturating_sub(self.changed);
        if self.trial && since >= PROOF {
            (self.trial, self.rest) = (false, FIRST_REST);
        }
        if self.members < self.most && since >= self.rest {
            self.trial = true;
            self.change(self.members + 1, now);
        }
        self.members
    }

    /// The job has gone on until `now`; its members missed `missed` nanoseconds, all together, since the last count.
    /// Says how many should go on.
    pub fn count(&mut self, missed: u64, now: u64) -> usize {
        self.worked += now.saturating_sub(self.counted);
        self.missed += missed;
        self.counted = now;
        let k = self.members as u64;
        if k > 1 && self.missed > ENOUGH && k * self.missed > self.worked {
            if std::mem::take(&mut self.trial) {
                self.rest = (2 * self.rest).min(LONGEST_REST);
            }
            self.change(self.members - (self.members / 8).max(1), now);
        }
        if self.worked > WINDOW {
            self.worked /= 2;
            self.missed /= 2;
        }
        self.members
    }

    fn change(&mut self, members: usize, now: u64) {
        (self.members, self.changed) = (members, now);
        (self.worked, self.missed) = (0, 0);
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    const MS: u64 = 1_000_000;

    /// Jobs of 5 ms from `*now` until `until`, of whose time members miss `percent`; the number of members at the end.
    fn work(pace: &mut Pace, now: &mut u64, until: u64, percent: u64) -> usize {
        let mut members = 0;
        while *now < until {
            pace.begin(*now);
            *now += 5 * MS;
            members = pace.count(5 * MS * percent / 100, *now);
        }
        members
    }

    #[test]
    fn a_team_that_runs_stays_whole() {
        let mut now = 0;
        assert_eq!(work(&mut Pace::new(2), &mut now, 10_000 * MS, 5), 2);
        // Once in a while somebody else runs.
        let mut pace = Pace::new(2);
        for _ in 0..20 {
            let start = now;
            assert_eq!(work(&mut pace, &mut now, start + 200 * MS, 0), 2);
            assert_eq!(work(&mut pace, &mut now, start + 205 * MS, 80), 2);
        }
    }

    #[test]
    fn members_that_do_not_run_leave_and_come_back() {
        let (mut pace, mut now) = (Pace::new(2), 0);
        assert_eq!(work(&mut pace, &mut now, 20 * MS, 80), 1);
        // One more is tried, less and less often while that fails.
        let mut trials = 0;
        while now < 20_000 * MS {
            let members = pace.begin(now);
            trials += usize::from(members == 2);
            now += 5 * MS;
            pace.count(if members == 2 { 5 * MS } else { 0 }, now);
        }
        assert!((8..25).contains(&trials), "{trials}");
        // The machine is free.
        let start = now;
        assert_eq!(work(&mut pace, &mut now, start + 2_000 * MS, 0), 2);
        // Patience is new.
        let start = now;
        assert_eq!(work(&mut pace, &mut now, start + 100 * MS, 80), 1);
        assert_eq!(work(&mut pace, &mut now, start + 200 * MS, 0), 2);
    }

    #[test]
    fn large_teams_find_their_number() {
        // Each of 12 processors runs one member; those that are too many run half of the time.
        let (mut pace, mut now) = (Pace::new(16), 0);
        while now < 500 * MS {
            let more = pace.begin(now).saturating_sub(12) as u64;
            now += 5 * MS;
            pace.count(more * 5 * MS / 2, now);
        }
        assert!((12..14).contains(&pace.members), "{}", pace.members);
        while now < 6_000 * MS {
            pace.begin(now);
            now += 5 * MS;
            pace.count(0, now);
        }
        assert_eq!(pace.members, 16);
    }
}
