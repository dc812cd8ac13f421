//! Models of [`Team`] and [`Shared`]: loom runs each in every order in which its threads may interleave (up to a
//! number of preemptions) and with every value that a relaxed load may give. `scripts/check-loom.sh` runs them.

use loom::model::Builder;

use crate::sync::{Arc, AtomicUsize, Ordering, spawn};
use crate::{Shared, Team};

/// Explores `f` with at most `preemptions` of them.
fn explore(preemptions: usize, f: impl Fn() + Send + Sync + 'static) {
    let mut builder = Builder::new();
    // The variable LOOM_MAX_PREEMPTIONS asks for more.
    builder.preemption_bound = builder.preemption_bound.or(Some(preemptions));
    builder.max_branches = 100_000;
    builder.check(f);
}

/// Every member writes its own element.
fn write_own(team: &Team, values: &mut [usize], offset: usize) {
    let shared = Shared::new(values);
    team.run(&|member| {
        // SAFETY: members have different numbers.
        let part = unsafe { shared.write(member.index..member.index + 1) };
        part[0] += member.index + offset;
    });
}

#[test]
fn the_caller_sees_what_members_wrote() {
    explore(4, || {
        let team = Team::new(2);
        let mut values = [0; 2];
        write_own(&team, &mut values, 1);
        assert_eq!(values, [1, 2]);
    });
}

#[test]
fn members_see_what_the_last_job_wrote() {
    explore(4, || {
        let team = Team::new(2);
        let mut values = [0; 2];
        write_own(&team, &mut values, 1);
        let mut sums = [0; 2];
        {
            let (from, to) = (Shared::new(&mut values), Shared::new(&mut sums));
            team.run(&|member| {
                // SAFETY: nobody writes the first slice; members have different elements of the second.
                unsafe {
                    to.set(member.index, from.read(0..2).iter().sum());
                }
            });
        }
        assert_eq!(sums, [3, 3]);
    });
}

#[test]
fn three_members_end_and_sleep_and_wake() {
    explore(2, || {
        let team = Team::new(3);
        let mut values = [0; 3];
        write_own(&team, &mut values, 1);
        write_own(&team, &mut values, 10);
        assert_eq!(values, [11, 13, 15]);
    });
}

/// Members read what the others wrote before a barrier, and write it after the next.
#[test]
fn barriers_order_what_two_members_write() {
    explore(4, || {
        let team = Team::new(2);
        let mut values = [0; 2];
        let shared = Shared::new(&mut values);
        team.run(&|member| {
            let other = 1 - member.index;
            // SAFETY: between barriers each member has an element alone, or all read.
            unsafe {
                shared.set(member.index, member.index + 1);
                member.sync();
                let seen = shared.read(other..other + 1)[0];
                assert_eq!(seen, other + 1);
                member.sync();
                shared.set(other, seen + 10);
                member.sync();
                assert_eq!(shared.read(0..2), [11, 12]);
            }
        });
    });
}

/// Threads change places where they wait alone: three that spin have too many orders for more.
#[test]
fn a_barrier_orders_what_three_members_write() {
    explore(0, || {
        let team = Team::new(3);
        let mut values = [0; 3];
        let shared = Shared::new(&mut values);
        team.run(&|member| {
            // SAFETY: each member has an element alone before the barrier, and all read after it.
            unsafe {
                shared.set(member.index, member.index + 1);
                member.sync();
                assert_eq!(shared.read(0..3), [1, 2, 3]);
            }
        });
    });
}

#[test]
fn rows_go_to_one_member_each() {
    explore(4, || {
        let team = Team::new(2);
        let mut values = [0; 4];
        team.for_each_row(&mut values, 2, |row, values| values.fill(row + 1));
        assert_eq!(values, [1, 1, 2, 2]);
        team.for_each_part(&mut values, 4, 3, |_, first, part| part.fill(first));
        assert_eq!(values, [0, 0, 0, 3]);
    });
}

#[test]
fn callers_take_turns() {
    explore(3, || {
        let team = Arc::new(Team::new(2));
        let count = Arc::new(AtomicUsize::new(0));
        let other = {
            let (team, count) = (team.clone(), count.clone());
            spawn(move || {
                team.for_each(2, |_| {
                    count.fetch_add(1, Ordering::Relaxed);
                });
            })
        };
        let mut values = [0; 2];
        write_own(&team, &mut values, 1);
        assert_eq!(values, [1, 2]);
        assert!(other.join().is_ok());
        assert_eq!(count.load(Ordering::Relaxed), 2);
    });
}

#[test]
fn a_team_that_never_worked_ends() {
    explore(3, || drop(Team::new(3)));
}

/// A barrier after which the second of two members has left: the first goes on with all that there is.
#[test]
fn a_member_leaves_and_comes_back() {
    explore(3, || {
        let team = Team::new(2);
        let mut values = [0; 2];
        let shared = Shared::new(&mut values);
        team.run(&|member| {
            // SAFETY: each member has the elements of its share alone between two barriers.
            unsafe {
                member.share(2).for_each(|i| shared.set(i, i + 1));
                team.limit(1);
                if !member.regroup() {
                    return;
                }
                assert_eq!((member.size(), shared.read(0..2)), (1, &[1, 2][..]));
                member.share(2).for_each(|i| shared.set(i, 10));
                member.sync();
            }
        });
        assert_eq!(values, [10, 10]);
        write_own(&team, &mut values, 1);
        assert_eq!(values, [11, 10]);
        team.limit(2);
        write_own(&team, &mut values, 1);
        assert_eq!(values, [12, 12]);
    });
}

/// The models can fail: without a barrier the same exchange is a race.
#[test]
#[should_panic(expected = "Causality violation")]
fn a_missing_barrier_is_found() {
    explore(2, || {
        let team = Team::new(2);
        let mut values = [0; 2];
        let shared = Shared::new(&mut values);
        team.run(&|member| {
            let next = (member.index + 1) % 2;
            // SAFETY: it is not, which is what is to be found.
            unsafe {
                shared.set(member.index, 1);
                let _ = shared.read(next..next + 1);
            }
        });
    });
}
