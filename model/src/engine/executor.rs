//! The thread that makes answers: orders are taken in between two steps of the scheduler, and whatever a step says goes
//! on its way. A base model that is replaced answers to the end what it began. Refuses to know messages that arrive and
//! how answers are computed.

use super::state::State;
use super::works::Works;
use crate::schedule::{Answer, Event, Scheduler};
use empathd_proto::engine::{EngineFailure, FromEngineBody};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::mpsc::{Receiver, RecvTimeoutError, TryRecvError};

/// What is to be done between two steps.
pub(super) enum Order {
    /// An answer to be made.
    Answer(Box<Answer>),
    /// No more answers come for the base model there is; those under way go on.
    Leave,
    /// A base model to answer with from now on.
    Serve(Box<Scheduler>),
    /// Overwrite the keys and values of all ended answers, for the work of this tag.
    Forget(u64),
    /// Overwrite those that an adapter generation left.
    ForgetGeneration(u64),
}

/// Schedulers on their thread.
struct Floor<'a> {
    current: Option<Scheduler>,
    /// Of base models that were replaced, as long as they have answers.
    leaving: Vec<Scheduler>,
    works: &'a Works,
    state: &'a State,
}

/// Makes answers until no order can come any more, then ends and overwrites everything.
pub(super) fn run(orders: &Receiver<Order>, works: &Works, state: &State) {
    let mut floor = Floor { current: state.take_scheduler(), leaving: Vec::new(), works, state };
    while let Ok(first) = floor.wait(orders) {
        first.into_iter().chain(orders.try_iter()).for_each(|order| floor.take(order));
        state.set_answering(!floor.is_idle());
        floor.step();
        state.set_answering(!floor.is_idle());
    }
    orders.try_iter().for_each(|order| floor.take(order));
    floor.clear();
    state.set_answering(false);
}

impl Floor<'_> {
    fn all(&mut self) -> impl Iterator<Item = &mut Scheduler> {
        self.leaving.iter_mut().chain(&mut self.current)
    }

    fn is_idle(&mut self) -> bool {
        self.all().all(|scheduler| scheduler.is_idle())
    }

    /// The next order: waits for one when there is nothing else to do, until something kept is too old.
    fn wait(&mut self, orders: &Receiver<Order>) -> Result<Option<Order>, RecvTimeoutError> {
        if !self.is_idle() {
            return match orders.try_recv() {
                Ok(order) => Ok(Some(order)),
                Err(TryRecvError::Empty) => Ok(None),
                Err(TryRecvError::Disconnected) => Err(RecvTimeoutError::Disconnected),
            };
        }
        let Some(expiry) = self.current.as_ref().and_then(Scheduler::next_expiry) else {
            return orders.recv().map(Some).map_err(|_| RecvTimeoutError::Disconnected);
        };
        match orders.recv_timeout(expiry.saturating_sub(self.state.desk.now())) {
            Ok(order) => Ok(Some(order)),
            Err(RecvTimeoutError::Timeout) => Ok(None),
            Err(disconnected) => Err(disconnected),
        }
    }

    fn take(&mut self, order: Order) {
        match (order, &mut self.current) {
            (Order::Answer(answer), Some(scheduler)) => scheduler.enqueue(*answer),
            (Order::Answer(answer), None) => self.works.fail(answer.tag(), EngineFailure::NoBase),
            (Order::Leave, _) => self.leave(),
            (Order::Serve(scheduler), _) => {
                self.leave();
                self.current = Some(*scheduler);
            }
            (Order::Forget(tag), _) => {
                let wiped_bytes = self.all().map(Scheduler::forget_prefixes).sum();
                // Whoever is gone needs no answer.
                let _ = self.works.say(tag, FromEngineBody::PrefixesForgotten { wiped_bytes });
            }
            (Order::ForgetGeneration(number), _) => self.all().for_each(|all| all.forget_generation(number)),
        }
    }

    /// The present base model gets no more answers.
    fn leave(&mut self) {
        self.leaving.extend(self.current.take());
        self.drop_idle();
    }

    fn drop_idle(&mut self) {
        self.leaving.retain_mut(|scheduler| {
            let stays = !scheduler.is_idle();
            if !stays {
                scheduler.clear();
            }
            stays
        });
        self.state.set_leaving(self.leaving.len());
    }

    fn step(&mut self) {
        let works = self.works;
        for scheduler in self.all() {
            // Whoever is gone needs no answer; the end of the connection ends what is under way.
            let mut say = |tag, event| _ = works.say(tag, body(event));
            let step = || scheduler.step(&mut say);
            if catch_unwind(AssertUnwindSafe(step)).is_err() {
                works.fail_answers();
                scheduler.clear();
            }
        }
        self.drop_idle();
    }

    /// Nothing of this connection stays but the weights.
    fn clear(&mut self) {
        self.all().for_each(Scheduler::clear);
        self.drop_idle();
        self.state.keep_scheduler(self.current.take());
    }
}

fn body(event: Event) -> FromEngineBody {
    match event {
        Event::Token { index, text, logprobs } => FromEngineBody::Token { index, text, logprobs },
        Event::Finished(finished) => FromEngineBody::Finished(finished),
        Event::Failed(failure) => FromEngineBody::Failed(failure),
    }
}
