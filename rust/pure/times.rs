// SPDX-License-Identifier: GPL-2.0
//! Where the time of an exit went: from the exit to the next entry in four parts that add up.
//!
//! [`Open`] is kept for the exit that a vCPU is in, by the same writer as [`super::exits::Record`]. It
//! knows two windows: in the kernel, from the exit until the task goes to user space, and from there
//! to the entry. In each it sums up how long KVM says that the vCPU halted, and how long the
//! scheduler says that its task waited for a CPU (`run_delay`): the latter apart by whether it fell
//! before the end of a halt, for KVM takes waiting for a CPU after being woken for halted time. More of
//! it than the halt took was before the halt began.
//!
//! What others measured, by other clocks, is cut to the window it is said to have fallen in: so the
//! parts add up whatever they say.

use super::cycles;
use core::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed};

/// A task, and how long it has waited for a CPU so far, in nanoseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Moment {
    /// Which task; never 0. Another may have the same when this one has gone.
    pub task: usize,
    /// When it was made.
    pub made: u64,
    /// Its `sched_info.run_delay`.
    pub delay: u64,
}

/// Where time went, in cycles. What is left of `total` was the kernel's.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Parts {
    /// From the exit to the entry.
    pub total: u64,
    /// In user space, or on the way between there and the entry.
    pub user: u64,
    /// Halted, without waiting for a CPU after being woken.
    pub halted: u64,
    /// Waiting for a CPU.
    pub preempted: u64,
}

impl Parts {
    /// Take in others'.
    pub fn add(&mut self, other: &Self) {
        // Years of many vCPUs that wait are more than 64 bits of cycles.
        self.total = self.total.saturating_add(other.total);
        self.user = self.user.saturating_add(other.user);
        self.halted = self.halted.saturating_add(other.halted);
        self.preempted = self.preempted.saturating_add(other.preempted);
    }

    /// The part that the kernel needed.
    #[cfg(test)]
    pub fn kernel(&self) -> u64 {
        // Never below nothing: the others were cut out of the total.
        self.total
            .wrapping_sub(self.user)
            .wrapping_sub(self.halted)
            .wrapping_sub(self.preempted)
    }

    /// The parts in nanoseconds; they add up too: total, user, halted, preempted, kernel.
    pub fn ns(&self, khz: u32) -> [u64; 5] {
        let [total, user, halted, preempted] =
            [self.total, self.user, self.halted, self.preempted].map(|c| cycles::to_ns(c, khz));
        // Each is rounded down, so together they are at most the total.
        let kernel = total
            .saturating_sub(user)
            .saturating_sub(halted)
            .saturating_sub(preempted);
        [total, user, halted, preempted, kernel]
    }
}

/// What is known of a window, in nanoseconds.
struct Window {
    halted: AtomicU64,
    /// Waiting for a CPU until a halt's end; what exceeds the halt was before it.
    delay_halted: AtomicU64,
    /// Waiting for a CPU otherwise.
    delay: AtomicU64,
}

/// The exit that a vCPU is in. All zero bytes is a value; what it says counts from
/// [`Open::begin`] on.
pub struct Open {
    /// Counts how often splitting was switched on or off.
    turn: AtomicU64,
    task: AtomicUsize,
    made: AtomicU64,
    /// The task's `run_delay` when it was last looked at.
    seen: AtomicU64,
    /// When the task went to user space; 0: it has not.
    user_since: AtomicU64,
    kernel: Window,
    user: Window,
}

fn add(to: &AtomicU64, by: u64) {
    to.store(to.load(Relaxed).wrapping_add(by), Relaxed);
}

impl Window {
    /// How a window of `length` cycles divides: halted, preempted, the rest.
    fn divide(&self, length: u64, khz: u32) -> [u64; 3] {
        let [halted, delay_halted, delay] = [&self.halted, &self.delay_halted, &self.delay]
            .map(|ns| cycles::from_ns(ns.load(Relaxed), khz));
        divide(length, halted, delay_halted, delay)
    }

    fn clear(&self) {
        for sum in [&self.halted, &self.delay_halted, &self.delay] {
            sum.store(0, Relaxed);
        }
    }
}

/// Halted, preempted and the rest of `length`: what others say is cut to what there is.
fn divide(length: u64, halted: u64, delay_halted: u64, delay: u64) -> [u64; 3] {
    let halted = halted.min(length);
    let before = delay_halted.saturating_sub(halted);
    let delay_halted = delay_halted.min(halted);
    let delay = delay.saturating_add(before).min(length - halted);
    [
        halted - delay_halted,
        delay_halted + delay,
        length - halted - delay,
    ]
}

impl Open {
    /// The writer: the guest has exited, in this turn of splitting.
    pub fn begin(&self, at: Moment, turn: u64) {
        self.turn.store(turn, Relaxed);
        self.set_task(at);
        self.seen.store(at.delay, Relaxed);
        self.user_since.store(0, Relaxed);
        self.kernel.clear();
        self.user.clear();
    }

    /// Whether it began in that turn.
    pub fn is_of(&self, turn: u64) -> bool {
        self.turn.load(Relaxed) == turn
    }

    fn set_task(&self, at: Moment) {
        self.task.store(at.task, Relaxed);
        self.made.store(at.made, Relaxed);
    }

    fn is_task(&self, at: Moment) -> bool {
        self.task.load(Relaxed) == at.task && self.made.load(Relaxed) == at.made
    }

    /// How long the task has waited since it was last looked at. Of another task that is not known.
    fn waited(&self, at: Moment) -> u64 {
        let before = self.seen.load(Relaxed);
        self.seen.store(at.delay, Relaxed);
        if !self.is_task(at) {
            self.set_task(at);
            return 0;
        }
        at.delay.saturating_sub(before)
    }

    fn window(&self) -> &Window {
        match self.user_since.load(Relaxed) {
            0 => &self.kernel,
            _ => &self.user,
        }
    }

    /// The writer: a halt of so many nanoseconds is over.
    pub fn halted(&self, ns: u64, at: Moment) {
        let (window, waited) = (self.window(), self.waited(at));
        add(&window.halted, ns);
        add(&window.delay_halted, waited);
    }

    /// The writer: the task goes to user space. Whether it was in the kernel for this exit.
    pub fn to_user(&self, now: u64, at: Moment) -> bool {
        if !self.is_task(at) || self.user_since.load(Relaxed) != 0 {
            return false;
        }
        add(&self.kernel.delay, self.waited(at));
        self.user_since.store(now.max(1), Relaxed);
        true
    }

    /// The writer: the guest goes on, `total` cycles after the exit. Where they went.
    pub fn end(&self, now: u64, total: u64, at: Moment, khz: u32) -> Parts {
        let waited = self.waited(at);
        add(&self.window().delay, waited);
        let in_user = match self.user_since.load(Relaxed) {
            0 => 0,
            since => now.saturating_sub(since).min(total),
        };
        let [halted, preempted, _] = self.kernel.divide(total - in_user, khz);
        let [halted_too, preempted_too, user] = self.user.divide(in_user, khz);
        Parts {
            total,
            user,
            halted: halted + halted_too,
            preempted: preempted + preempted_too,
        }
    }
}

#[cfg(test)]
impl Open {
    /// What zeroed memory is.
    pub(super) fn zeroed() -> Self {
        let window = || Window {
            halted: AtomicU64::new(0),
            delay_halted: AtomicU64::new(0),
            delay: AtomicU64::new(0),
        };
        Self {
            turn: AtomicU64::new(0),
            task: AtomicUsize::new(0),
            made: AtomicU64::new(0),
            seen: AtomicU64::new(0),
            user_since: AtomicU64::new(0),
            kernel: window(),
            user: window(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// A counter of which a cycle is a nanosecond.
    const KHZ: u32 = 1_000_000;

    fn at(delay: u64) -> Moment {
        Moment {
            task: 7,
            made: 1,
            delay,
        }
    }

    #[test]
    fn all_four() {
        let open = Open::zeroed();
        open.begin(at(1000), 1);
        // 10 in the kernel, then halted 100, of which it waited 30 after being woken; 5 more of waiting.
        open.halted(100, at(1030));
        assert!(open.to_user(115, at(1035)));
        // It went there once.
        assert!(!open.to_user(120, at(1035)));
        // 50 in user space, 8 of them waiting; halted 20 before the entry, none of it waiting.
        open.halted(20, at(1035));
        let parts = open.end(165, 165, at(1043), KHZ);
        let expected = Parts {
            total: 165,
            user: 50 - 8 - 20,
            halted: 70 + 20,
            preempted: 30 + 5 + 8,
        };
        assert_eq!(parts, expected);
        assert_eq!(parts.kernel(), 10);
    }

    #[test]
    fn nothing_of_the_exit_before() {
        let open = Open::zeroed();
        open.begin(at(0), 1);
        open.halted(50, at(20));
        assert!(open.to_user(60, at(20)));
        open.end(70, 70, at(20), KHZ);
        open.begin(at(20), 1);
        let parts = open.end(100, 9, at(20), KHZ);
        assert_eq!((parts.total, parts.kernel()), (9, 9));
    }

    #[test]
    fn preempted_before_a_short_halt() {
        let open = Open::zeroed();
        open.begin(at(0), 1);
        open.halted(5, at(1000));
        let parts = open.end(1100, 1100, at(1000), KHZ);
        assert_eq!(
            [parts.halted, parts.preempted, parts.kernel()],
            [0, 1000, 100]
        );
    }

    #[test]
    fn another_task_has_another_delay() {
        let open = Open::zeroed();
        // The second has the address of one that has gone.
        for (task, made) in [(8, 1), (7, 2)] {
            let other = Moment {
                task,
                made,
                delay: 1 << 40,
            };
            open.begin(at(5), 1);
            assert!(!open.to_user(10, other));
            assert!(open.to_user(10, at(5)));
            assert_eq!(open.end(100, 100, other, KHZ).preempted, 0);
        }
    }

    proptest! {
        #[test]
        fn always_adds_up(
            steps in prop::collection::vec((0..3u8, any::<u32>(), any::<u32>(), 7..9usize), 0..20),
            total: u64, now: u64, khz in prop_oneof![Just(0), 1..10_000_000u32],
        ) {
            let open = Open::zeroed();
            open.begin(at(0), 1);
            let mut delay = 0;
            for (step, ns, waited, task) in steps {
                delay += u64::from(waited);
                let at = Moment {
                    task,
                    made: 1,
                    delay,
                };
                match step {
                    0 => open.halted(u64::from(ns) * 1000, at),
                    1 => { open.to_user(ns.into(), at); }
                    _ => {}
                }
            }
            let parts = open.end(now, total, at(delay), khz);
            let sum = u128::from(parts.user) + u128::from(parts.halted) + u128::from(parts.preempted);
            prop_assert!(sum <= total.into());
            prop_assert_eq!(sum + u128::from(parts.kernel()), total.into());
            let [total, rest @ ..] = parts.ns(khz);
            let sum = rest.iter().map(|&ns| u128::from(ns)).sum::<u128>();
            prop_assert!(total == u64::MAX || sum == total.into());
        }

        #[test]
        fn a_window_is_divided(length: u64, halted: u64, delay_halted: u64, delay: u64) {
            let parts = divide(length, halted, delay_halted, delay);
            prop_assert_eq!(parts.iter().map(|&p| u128::from(p)).sum::<u128>(), length.into());
        }
    }
}
