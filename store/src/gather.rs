//! Group commit of entries that stand alone (reads and denials): whoever comes while a commit is under way waits for the
//! next one, which carries all of them. Nobody waits for company: a lone entry is committed at once. Each caller gets
//! the answer of the commit that carried its entries, so that a failing disk fails all of them. How entries are written
//! is not known here.

use crate::audit::AuditDraft;
use crate::error::WriteError;
use std::io;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError};

/// Most entries that wait for the next commit; who comes later waits to be let in.
const MAX_WAITING_ENTRIES: usize = 4096;

/// What became of a commit.
type Outcome = Result<(), WriteError>;

/// Entries of one caller, and where its answer is put.
struct Waiting {
    drafts: Vec<AuditDraft>,
    answer: Arc<OnceLock<Outcome>>,
}

#[derive(Default)]
struct Queue {
    waiting: Vec<Waiting>,
    committing: bool,
}

impl Queue {
    fn has_room(&self, more: usize) -> bool {
        let entries: usize = self.waiting.iter().map(|one| one.drafts.len()).sum();
        entries == 0 || entries + more <= MAX_WAITING_ENTRIES
    }
}

/// The queue before the commit.
#[derive(Default)]
pub(crate) struct Gather {
    queue: Mutex<Queue>,
    turned: Condvar,
}

/// The callers of the commit under way. Dropped, it answers whoever has no answer yet and lets the next one begin, also
/// when the commit panicked.
struct Round<'g> {
    gather: &'g Gather,
    callers: Vec<Waiting>,
}

impl Drop for Round<'_> {
    fn drop(&mut self) {
        for caller in &self.callers {
            caller.answer.get_or_init(|| Err(WriteError::Io(io::ErrorKind::Interrupted.into())));
        }
        self.gather.lock().committing = false;
        self.gather.turned.notify_all();
    }
}

impl Gather {
    /// Has these entries committed, alone or with those of others, by `commit` or by that of another caller.
    pub(crate) fn submit(&self, drafts: &[AuditDraft], commit: impl FnOnce(&[AuditDraft]) -> Outcome) -> Outcome {
        let answer = Arc::new(OnceLock::new());
        let mut queue = self.lock();
        while !queue.has_room(drafts.len()) {
            queue = self.wait(queue);
        }
        queue.waiting.push(Waiting { drafts: drafts.to_vec(), answer: Arc::clone(&answer) });
        loop {
            if let Some(outcome) = answer.get() {
                return copy(outcome);
            }
            if !queue.committing {
                break;
            }
            queue = self.wait(queue);
        }
        queue.committing = true;
        let round = Round { gather: self, callers: std::mem::take(&mut queue.waiting) };
        drop(queue);
        let all: Vec<AuditDraft> = round.callers.iter().flat_map(|caller| caller.drafts.iter().copied()).collect();
        let outcome = commit(&all);
        for caller in &round.callers {
            caller.answer.get_or_init(|| copy(&outcome));
        }
        outcome
    }

    fn wait<'g>(&self, queue: MutexGuard<'g, Queue>) -> MutexGuard<'g, Queue> {
        self.turned.wait(queue).unwrap_or_else(PoisonError::into_inner)
    }

    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The same answer for another caller.
fn copy(outcome: &Outcome) -> Outcome {
    Err(match outcome {
        Ok(()) => return Ok(()),
        Err(WriteError::Sealed) => WriteError::Sealed,
        Err(WriteError::Integrity(what)) => WriteError::Integrity(what),
        Err(WriteError::NotFound(what)) => WriteError::NotFound(what),
        Err(WriteError::Transition(what)) => WriteError::Transition(what),
        Err(WriteError::Invalid(what)) => WriteError::Invalid(what),
        Err(WriteError::TooLarge { bytes, limit }) => WriteError::TooLarge { bytes: *bytes, limit: *limit },
        Err(WriteError::DiskFull) => WriteError::DiskFull,
        Err(WriteError::Io(error)) => WriteError::Io(error.kind().into()),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tests::support::draft;
    use empathd_proto::audit::ActionKind;
    use std::panic::{AssertUnwindSafe, catch_unwind};
    use std::sync::mpsc;
    use std::thread;

    /// Twenty callers, of whom the first is held in its commit until the others wait. Gives the sizes of the commits and
    /// how many callers were told that theirs was done.
    fn crowd(outcome: fn() -> Outcome) -> (Vec<usize>, usize) {
        let (gather, commits) = (Gather::default(), Mutex::new(Vec::new()));
        let (begun, has_begun) = mpsc::channel();
        let (release, released) = mpsc::channel::<()>();
        let entry = [draft(ActionKind::Chat)];
        let done = thread::scope(|scope| {
            let commits = &commits;
            let (gather, entry) = (&gather, &entry);
            let first = scope.spawn(move || {
                gather.submit(entry, |all| {
                    begun.send(()).expect("heard");
                    released.recv().expect("released");
                    commits.lock().expect("no panic").push(all.len());
                    outcome()
                })
            });
            has_begun.recv().expect("begun");
            let others: Vec<_> = (0..19)
                .map(|_| {
                    scope.spawn(move || {
                        gather.submit(entry, |all| {
                            commits.lock().expect("no panic").push(all.len());
                            outcome()
                        })
                    })
                })
                .collect();
            while gather.lock().waiting.len() < 19 {
                thread::yield_now();
            }
            release.send(()).expect("heard");
            let all = others.into_iter().chain([first]);
            all.map(|one| one.join().expect("no panic")).filter(Result::is_ok).count()
        });
        (commits.into_inner().expect("no panic"), done)
    }

    #[test]
    fn who_comes_during_a_commit_shares_the_next_one_and_its_answer() {
        assert_eq!(crowd(|| Ok(())), (vec![1, 19], 20));
        assert_eq!(crowd(|| Err(WriteError::DiskFull)), (vec![1, 19], 0));
    }

    #[test]
    fn a_commit_that_panics_leaves_the_queue_usable() {
        let gather = Gather::default();
        let entry = [draft(ActionKind::Chat)];
        let panicked = catch_unwind(AssertUnwindSafe(|| gather.submit(&entry, |_| panic!("a defect"))));
        assert!(panicked.is_err());
        assert!(gather.submit(&entry, |all| if all.len() == 1 { Ok(()) } else { Err(WriteError::DiskFull) }).is_ok());
    }
}
