//! Threads that stand by between short operations.
//!
//! A pass of a model over one token is some two hundred operations of a few microseconds to a fraction of a millisecond.
//! A pool puts a thread that finds nothing to do to sleep within some twenty microseconds, and waking it takes longer
//! than many of these operations. In a team the pool's other threads stay awake from the first operation to the last:
//! what there is to do they learn from a number in memory.

use std::any::Any;
use std::cell::{Cell, UnsafeCell};
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::ptr;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use std::sync::{Mutex, PoisonError};

/// Looks at memory before the processor is offered to others: some tens of microseconds.
const LOOKS: u32 = 2000;

thread_local! {
    /// The team that this thread may give work to.
    static LEADS: Cell<*const Team> = const { Cell::new(ptr::null()) };
    /// Whether it leads a team or stands by in one.
    static IS_TAKEN: Cell<bool> = const { Cell::new(false) };
}

type Work<'a> = dyn Fn(usize) + Sync + 'a;

/// What the threads of a team have in common.
struct Team {
    is_over: AtomicBool,
    /// Odd while there is work to be taken.
    epoch: AtomicUsize,
    /// How many other threads are at it.
    inside: AtomicUsize,
    /// The next piece.
    next: AtomicUsize,
    pieces: AtomicUsize,
    /// Written by the leader while nobody is inside, read by those who are.
    work: UnsafeCell<*const Work<'static>>,
    panic: Mutex<Option<Box<dyn Any + Send>>>,
}

// SAFETY: the one field that is not `Sync` is guarded by `epoch` and `inside`, see there.
unsafe impl Sync for Team {}

/// Runs `work`, between whose operations the other threads of the pool stand by. Within another team's, and on a thread that
/// belongs to no pool, it is just run: such a thread's own calls of the pool would wait for threads that stand by for others.
pub fn with_team<R>(work: impl FnOnce() -> R) -> R {
    let helpers = rayon::current_num_threads() - 1;
    if helpers == 0 || IS_TAKEN.get() || rayon::current_thread_index().is_none() {
        return work();
    }
    let nothing: &Work<'static> = &|_| {};
    let team = Team {
        is_over: AtomicBool::new(false),
        epoch: AtomicUsize::new(0),
        inside: AtomicUsize::new(0),
        next: AtomicUsize::new(0),
        pieces: AtomicUsize::new(0),
        work: UnsafeCell::new(nothing),
        panic: Mutex::new(None),
    };
    rayon::in_place_scope(|scope| {
        (0..helpers).for_each(|_| scope.spawn(|_| team.stand_by()));
        let _lead = Lead::of(&team);
        work()
    })
}

/// Calls `work` for each piece, by the team that this thread leads. Returns whether it leads one.
pub(crate) fn run(pieces: usize, work: &Work<'_>) -> bool {
    let team = LEADS.replace(ptr::null());
    if team.is_null() {
        return false;
    }
    // A piece that has pieces of its own goes to the pool.
    let _again = Again(team);
    // SAFETY: the pointer is there as long as `with_team` runs, which is further down the stack.
    unsafe { &*team }.run(pieces, work);
    true
}

impl Team {
    fn run(&self, pieces: usize, work: &Work<'_>) {
        // SAFETY: nobody is inside. The lifetime is forgotten here; `Region` waits for all who see the work.
        unsafe { *self.work.get() = std::mem::transmute::<*const Work<'_>, *const Work<'static>>(work) };
        self.pieces.store(pieces, SeqCst);
        self.next.store(0, SeqCst);
        self.epoch.fetch_add(1, SeqCst);
        let region = Region(self);
        while let Some(piece) = self.take() {
            work(piece);
        }
        drop(region);
        let panic = self.panic.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(panic) = panic {
            resume_unwind(panic);
        }
    }

    fn take(&self) -> Option<usize> {
        let piece = self.next.fetch_add(1, SeqCst);
        (piece < self.pieces.load(SeqCst)).then_some(piece)
    }

    /// Helps until the team is over.
    fn stand_by(&self) {
        // The leader itself comes here when it waits for something else, as do those of other teams.
        if IS_TAKEN.replace(true) {
            return;
        }
        let (mut seen, mut looks) = (0, 0);
        while !self.is_over.load(SeqCst) {
            let epoch = self.epoch.load(SeqCst);
            if epoch.is_multiple_of(2) || epoch == seen {
                wait(&mut looks);
                continue;
            }
            (seen, looks) = (epoch, 0);
            self.inside.fetch_add(1, SeqCst);
            // Whoever is counted before the epoch changes is waited for.
            if self.epoch.load(SeqCst) == epoch {
                self.help();
            }
            self.inside.fetch_sub(1, SeqCst);
        }
        IS_TAKEN.set(false);
    }

    fn help(&self) {
        // SAFETY: the epoch was odd after this thread was counted as inside: the work stays until it is not.
        let work = unsafe { &**self.work.get() };
        let all = || {
            while let Some(piece) = self.take() {
                work(piece);
            }
        };
        if let Err(panic) = catch_unwind(AssertUnwindSafe(all)) {
            *self.panic.lock().unwrap_or_else(PoisonError::into_inner) = Some(panic);
        }
    }
}

fn wait(looks: &mut u32) {
    if *looks < LOOKS {
        *looks += 1;
        std::hint::spin_loop();
    } else {
        std::thread::yield_now();
    }
}

/// Makes this thread a team's leader, until it is dropped.
struct Lead<'a>(&'a Team);

impl<'a> Lead<'a> {
    fn of(team: &'a Team) -> Self {
        IS_TAKEN.set(true);
        LEADS.set(team);
        Self(team)
    }
}

impl Drop for Lead<'_> {
    fn drop(&mut self) {
        LEADS.set(ptr::null());
        IS_TAKEN.set(false);
        self.0.is_over.store(true, SeqCst);
    }
}

/// Work that can be taken, until it is dropped: then nobody is at it any more.
struct Region<'a>(&'a Team);

impl Drop for Region<'_> {
    fn drop(&mut self) {
        self.0.epoch.fetch_add(1, SeqCst);
        let mut looks = 0;
        while self.0.inside.load(SeqCst) != 0 {
            wait(&mut looks);
        }
    }
}

/// Lets this thread give work to its team again.
struct Again(*const Team);

impl Drop for Again {
    fn drop(&mut self) {
        LEADS.set(self.0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::parallel::{for_pieces, with_threads};

    fn sum_of_squares(pieces: usize) -> usize {
        let sum = AtomicUsize::new(0);
        for_pieces(pieces, |i| {
            sum.fetch_add(i * i, SeqCst);
        });
        sum.into_inner()
    }

    #[test]
    fn every_piece_is_done_once_before_an_operation_ends() {
        for threads in [1, 2, 3, 5] {
            with_threads(threads, || {
                with_team(|| {
                    for pieces in (0..40).chain([1000]) {
                        assert_eq!(sum_of_squares(pieces), (0..pieces).map(|i| i * i).sum());
                    }
                });
            });
        }
    }

    #[test]
    fn pieces_have_pieces_of_their_own_and_teams_lie_within_teams_and_beside_each_other() {
        let expected: usize = (0..20).map(|i| (0..i).map(|j| j * j).sum::<usize>()).sum();
        let nested = || {
            let sum = AtomicUsize::new(0);
            for_pieces(20, |i| {
                sum.fetch_add(with_team(|| sum_of_squares(i)), SeqCst);
            });
            sum.into_inner()
        };
        with_threads(3, || {
            assert_eq!(with_team(|| with_team(nested)), expected);
            // Every thread of the pool leads one, and meets the others' work while it waits.
            for_pieces(50, |_| assert_eq!(with_team(nested), expected));
        });
    }

    #[test]
    fn a_piece_that_panics_ends_the_operation_and_the_team_goes_on() {
        with_threads(2, || {
            with_team(|| {
                for bad in 0..8 {
                    let all = || for_pieces(8, |i| assert!(i != bad, "piece {i}"));
                    assert!(catch_unwind(AssertUnwindSafe(all)).is_err());
                    assert_eq!(sum_of_squares(9), 204);
                }
            });
        });
    }

    #[test]
    fn on_threads_of_no_pool_the_pool_is_used_as_ever() {
        let all: Vec<_> = (0..4)
            .map(|_| std::thread::spawn(|| (0..50).map(|_| with_team(|| sum_of_squares(100))).sum::<usize>()))
            .collect();
        assert!(all.into_iter().all(|thread| thread.join().unwrap() == 50 * 328_350));
    }
}
