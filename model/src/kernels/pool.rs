//! Own worker threads for the short parallel sections of a pass: fork and join within about a microsecond while a pass is
//! under way, asleep when nothing computes. Refuses to know what is computed.
//!
//! The calling thread works too and never waits for a worker that has not begun: a worker that sleeps or was put aside by
//! the system misses its share, and the others do it.

use std::any::Any;
use std::cell::UnsafeCell;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle, Thread};

/// Looks at the gate before a worker goes to sleep; about a hundred microseconds, so that the server's threads get the
/// processor soon after the last answer.
const SPINS: u32 = 4_000;
/// Looks at the gate before the caller lets others run while it waits for a worker's last task.
const PATIENCE: u32 = 2_000;
/// In the gate: workers inside the job.
const INSIDE: u64 = 0xffff;
/// In the gate: workers may enter.
const OPEN: u64 = 1 << 16;
/// In the gate: one job further.
const JOB: u64 = 1 << 17;

/// What a job does with a task: its number, and the number of the thread that has it.
type Work<'a> = dyn Fn(usize, usize) + Sync + 'a;

/// Threads that work on the tasks of one caller.
pub struct Pool {
    shared: Arc<Shared>,
    workers: Vec<JoinHandle<()>>,
}

struct Shared {
    /// Number of the job, whether it is open, and how many workers are inside.
    gate: AtomicU64,
    /// The job; written by the caller while the gate is closed and nobody inside.
    job: UnsafeCell<Option<Job>>,
    /// The next task that nobody has taken.
    next: AtomicUsize,
    /// Workers that sleep or are about to.
    asleep: AtomicUsize,
    sleeping: Vec<AtomicBool>,
    end: AtomicBool,
    panic: Mutex<Option<Box<dyn Any + Send>>>,
}

#[derive(Clone, Copy)]
struct Job {
    work: *const Work<'static>,
    tasks: usize,
}

// SAFETY: `job` is written by the caller alone, while the gate is closed and nobody is inside, and read by workers that
// entered through the open gate; opening and entering order the two. The pointer in it is used only inside.
unsafe impl Sync for Shared {}
// SAFETY: as above; the pointer never leaves a job that is under way.
unsafe impl Send for Shared {}

impl Pool {
    /// A pool in which `threads` threads compute, the calling one among them.
    ///
    /// # Panics
    /// The system gives no thread.
    #[must_use]
    pub fn new(threads: usize) -> Self {
        let count = threads.saturating_sub(1).min(1024);
        let shared = Arc::new(Shared {
            gate: AtomicU64::new(0),
            job: UnsafeCell::new(None),
            next: AtomicUsize::new(0),
            asleep: AtomicUsize::new(0),
            sleeping: (0..count).map(|_| AtomicBool::new(false)).collect(),
            end: AtomicBool::new(false),
            panic: Mutex::new(None),
        });
        let worker = |index: usize| {
            let shared = Arc::clone(&shared);
            let thread = thread::Builder::new().name(format!("compute-{}", index + 1));
            thread.spawn(move || shared.serve(index)).expect("the system gives threads at start")
        };
        let workers = (0..count).map(worker).collect();
        Self { shared, workers }
    }

    /// Threads that compute.
    #[must_use]
    pub fn threads(&self) -> usize {
        self.workers.len() + 1
    }

    /// Calls `work(task, thread)` once for each task of `0..tasks`, on whatever thread, and returns when all are done. No
    /// two calls with the same thread number overlap.
    ///
    /// # Panics
    /// With the panic of a task, after all threads have left the job.
    pub fn run(&mut self, tasks: usize, work: &(dyn Fn(usize, usize) + Sync)) {
        if tasks <= 1 || self.workers.is_empty() {
            (0..tasks).for_each(|task| work(task, 0));
            return;
        }
        let shared = &*self.shared;
        let work: *const Work<'_> = work;
        // SAFETY: only the lifetime is changed; `Closing` makes sure that nobody is inside when this function ends.
        let work: *const Work<'static> = unsafe { std::mem::transmute(work) };
        // SAFETY: the gate is closed and nobody is inside: `&mut self` excludes another job.
        unsafe { *shared.job.get() = Some(Job { work, tasks }) };
        shared.next.store(0, Ordering::Relaxed);
        let gate = shared.gate.load(Ordering::Relaxed);
        shared.gate.store((gate & !INSIDE).wrapping_add(JOB) | OPEN, Ordering::SeqCst);
        let closing = Closing(shared);
        if shared.asleep.load(Ordering::SeqCst) > 0 {
            self.wake();
        }
        shared.take_tasks(Job { work, tasks }, 0);
        drop(closing);
        let panic = shared.panic.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(panic) = panic {
            resume_unwind(panic);
        }
    }

    /// Gives each piece of `len` items to a task.
    pub fn run_pieces<T: Send>(&mut self, items: &mut [T], len: usize, work: &(dyn Fn(usize, &mut [T]) + Sync)) {
        let (total, len) = (items.len(), len.max(1));
        let start = Pointer(items.as_mut_ptr());
        self.run(total.div_ceil(len), &|task, _| {
            let count = len.min(total - task * len);
            // SAFETY: pieces of different tasks do not overlap, each task is run once, and all end within the borrow.
            work(task, unsafe { std::slice::from_raw_parts_mut(start.at(task * len), count) });
        });
    }

    fn wake(&self) {
        for (worker, sleeping) in self.workers.iter().zip(&self.shared.sleeping) {
            if sleeping.load(Ordering::SeqCst) {
                worker.thread().unpark();
            }
        }
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.shared.end.store(true, Ordering::SeqCst);
        self.workers.iter().map(JoinHandle::thread).for_each(Thread::unpark);
        for worker in self.workers.drain(..) {
            // A worker catches every panic of its tasks.
            drop(worker.join());
        }
    }
}

/// Closes the gate and waits for who is inside, also when the caller's own share panics.
struct Closing<'a>(&'a Shared);

impl Drop for Closing<'_> {
    fn drop(&mut self) {
        self.0.gate.fetch_and(!OPEN, Ordering::SeqCst);
        let mut looks = 0u32;
        while self.0.gate.load(Ordering::Acquire) & INSIDE != 0 {
            looks = looks.saturating_add(1);
            if looks > PATIENCE { thread::yield_now() } else { std::hint::spin_loop() }
        }
    }
}

impl Shared {
    fn take_tasks(&self, job: Job, thread: usize) {
        // SAFETY: the caller keeps the closure alive while anybody is inside the job.
        let work = unsafe { &*job.work };
        loop {
            let task = self.next.fetch_add(1, Ordering::Relaxed);
            if task >= job.tasks {
                return;
            }
            work(task, thread);
        }
    }

    /// The life of a worker.
    fn serve(&self, index: usize) {
        let mut done = 0;
        while let Some(gate) = self.await_job(done, index) {
            done = gate & !INSIDE;
            if !self.enter(done) {
                continue;
            }
            // SAFETY: inside: the caller wrote the job before it opened the gate and does not touch it until we left.
            if let Some(job) = unsafe { *self.job.get() } {
                let outcome = catch_unwind(AssertUnwindSafe(|| self.take_tasks(job, index + 1)));
                if let Err(panic) = outcome {
                    *self.panic.lock().unwrap_or_else(PoisonError::into_inner) = Some(panic);
                    // Nobody needs to begin another task.
                    self.next.store(usize::MAX / 2, Ordering::Relaxed);
                }
            }
            self.gate.fetch_sub(1, Ordering::Release);
        }
    }

    /// Steps inside the job `gate`, unless it is closed by now.
    fn enter(&self, gate: u64) -> bool {
        let same = |now: u64| (now & !INSIDE == gate).then(|| now + 1);
        self.gate.fetch_update(Ordering::AcqRel, Ordering::Relaxed, same).is_ok()
    }

    /// The gate once it is open for another job than `done`; nothing at the end.
    fn await_job(&self, done: u64, index: usize) -> Option<u64> {
        let is_new = |gate: u64| gate & OPEN != 0 && gate & !INSIDE != done;
        loop {
            for _ in 0..SPINS {
                let gate = self.gate.load(Ordering::Acquire);
                if is_new(gate) {
                    return Some(gate);
                }
                std::hint::spin_loop();
            }
            if self.end.load(Ordering::SeqCst) {
                return None;
            }
            self.sleeping[index].store(true, Ordering::SeqCst);
            self.asleep.fetch_add(1, Ordering::SeqCst);
            // A caller who opened the gate before it saw us asleep is seen here; one who opens it later wakes us.
            if !is_new(self.gate.load(Ordering::SeqCst)) && !self.end.load(Ordering::SeqCst) {
                thread::park();
            }
            self.sleeping[index].store(false, Ordering::SeqCst);
            self.asleep.fetch_sub(1, Ordering::SeqCst);
        }
    }
}

/// A pointer into a buffer whose parts several threads use, each its own.
pub(super) struct Pointer<T>(pub(super) *mut T);

impl<T> Clone for Pointer<T> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<T> Copy for Pointer<T> {}

// SAFETY: whoever takes it to another thread answers for disjoint parts; see the places of use.
unsafe impl<T: Send> Send for Pointer<T> {}
// SAFETY: as above.
unsafe impl<T: Send> Sync for Pointer<T> {}

impl<T> Pointer<T> {
    /// # Safety
    /// `offset` is within the buffer.
    pub(super) unsafe fn at(self, offset: usize) -> *mut T {
        // SAFETY: by the caller.
        unsafe { self.0.add(offset) }
    }
}

/// One value for each thread of a pool.
pub struct PerThread<T>(Vec<UnsafeCell<T>>);

// SAFETY: a value is reached only through `get`, whose caller answers for one thread at a time.
unsafe impl<T: Send> Sync for PerThread<T> {}

impl<T> PerThread<T> {
    /// A value for each of `threads`.
    #[must_use]
    pub fn new(threads: usize, make: impl Fn() -> T) -> Self {
        Self((0..threads).map(|_| UnsafeCell::new(make())).collect())
    }

    /// How many values.
    pub(super) const fn count(&self) -> usize {
        self.0.len()
    }

    /// Does something with every value.
    pub fn each(&mut self, mut f: impl FnMut(&mut T)) {
        self.0.iter_mut().for_each(|value| f(value.get_mut()));
    }

    /// The value of a thread.
    ///
    /// # Safety
    /// `thread` is the number that the present task was given by the pool this was made for, and the value of an earlier
    /// call is no longer used.
    #[expect(clippy::mut_from_ref, reason = "each thread has its own value")]
    pub(super) unsafe fn get(&self, thread: usize) -> &mut T {
        // SAFETY: by the caller.
        unsafe { &mut *self.0[thread].get() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_task_is_done_once_whoever_sleeps() {
        let mut pool = Pool::new(3);
        let counts: Vec<AtomicUsize> = (0..100).map(|_| AtomicUsize::new(0)).collect();
        for round in 0..2000 {
            if round % 500 == 0 {
                // Long enough for the workers to fall asleep.
                thread::sleep(std::time::Duration::from_millis(3));
            }
            pool.run(counts.len(), &|task, _| {
                counts[task].fetch_add(1, Ordering::Relaxed);
            });
        }
        assert!(counts.iter().all(|count| count.load(Ordering::Relaxed) == 2000));
        let mut items = vec![0u32; 1003];
        pool.run_pieces(&mut items, 17, &|task, piece| piece.fill(u32::try_from(task).unwrap()));
        assert!(items.iter().enumerate().all(|(i, item)| *item as usize == i / 17));
    }

    #[test]
    fn a_panic_comes_out_and_the_pool_goes_on() {
        let mut pool = Pool::new(2);
        for bad in [0, 7, 63] {
            let found = catch_unwind(AssertUnwindSafe(|| {
                pool.run(64, &|task, _| assert_ne!(task, bad, "a task fails"));
            }));
            assert!(found.is_err());
            let done = AtomicUsize::new(0);
            pool.run(64, &|_, _| {
                done.fetch_add(1, Ordering::Relaxed);
            });
            assert_eq!(done.into_inner(), 64);
        }
    }
}
