//! The scheduler over a model without mathematics, and over a tiny real one.

mod answers;
mod fake;
mod order;
mod real;
mod room;

use super::*;
use crate::template::ChatFormat;
use crate::tiny;
use empathd_proto::chat::FinishReason;
use empathd_proto::engine::{ServingSpec, ServingStatus};
use empathd_proto::generate::{CacheScope, CallerKey, SamplingSpec, ServiceClass};
use fake::{Fake, Probe};
use std::collections::BTreeMap;
use std::sync::Arc;

/// What became of an answer.
#[derive(Debug, Default, Clone, PartialEq)]
struct Seen {
    text: String,
    /// Of each token, where they were asked for.
    logprobs: Vec<f32>,
    tokens: u32,
    end: Option<Event>,
}

impl Seen {
    fn finished(&self) -> &Finished {
        match &self.end {
            Some(Event::Finished(finished)) => finished,
            other => panic!("{other:?}"),
        }
    }

    fn failure(&self) -> &EngineFailure {
        match &self.end {
            Some(Event::Failed(failure)) => failure,
            other => panic!("{other:?}"),
        }
    }
}

/// A scheduler and what it said.
struct Stage<C> {
    scheduler: Scheduler<C>,
    seen: BTreeMap<u64, Seen>,
}

fn format() -> Arc<ChatFormat> {
    Arc::new(ChatFormat::new(tiny::tokenizer().expect("reads"), None).expect("reads"))
}

fn plain() -> ServingSpec {
    ServingSpec { drafting: false, prefix_cache: false, ..ServingSpec::default() }
}

/// A stage over the fake model with room for so many tokens.
fn stage(spec: &ServingSpec, kv_tokens_max: usize) -> (Stage<Fake>, Arc<Probe>) {
    let format = format();
    let fake = Fake::new(format.tokenizer().len(), kv_tokens_max);
    let probe = Arc::clone(&fake.probe);
    let desk = Arc::new(Desk::new(probe.clock()));
    (Stage { scheduler: Scheduler::new(fake, format, spec, desk), seen: BTreeMap::new() }, probe)
}

impl<C: Computes> Stage<C> {
    fn submit(&mut self, request: Request) {
        let tag = request.tag;
        self.scheduler.submit(request).expect("taken in");
        self.seen.insert(tag, Seen::default());
    }

    fn step(&mut self) -> bool {
        let seen = &mut self.seen;
        self.scheduler.step(&mut |tag, event| {
            let seen = seen.get_mut(&tag).expect("a known tag");
            assert!(seen.end.is_none(), "something was said after the last event");
            match event {
                Event::Token { index, text, logprobs } => {
                    assert_eq!(index, seen.tokens);
                    seen.tokens += 1;
                    seen.text += &text;
                    seen.logprobs.extend(logprobs.map(|logprobs| logprobs.taken.logprob));
                }
                end => seen.end = Some(end),
            }
        })
    }

    fn steps(&mut self, steps: u64) {
        for _ in 0..steps {
            self.step();
        }
    }

    fn run(&mut self) {
        let mut steps = 0;
        while self.step() {
            steps += 1;
            assert!(steps < 10_000, "it does not end");
        }
    }

    fn answer(&mut self, request: Request) -> Seen {
        let tag = request.tag;
        self.submit(request);
        self.run();
        self.seen[&tag].clone()
    }

    fn status(&self) -> ServingStatus {
        self.scheduler.status()
    }

    fn tokens(&self, tag: u64) -> u32 {
        self.seen[&tag].tokens
    }
}

/// A prompt of `len` tokens, another one for each `kind`; none is a control token or poison.
fn prompt(kind: u32, len: usize) -> Vec<u32> {
    (0u32..).map(|place| 8 + (place * (2 * kind + 3) + kind) % 200).take(len).collect()
}

fn request(tag: u64, prompt: Vec<u32>, max_tokens: u32) -> Request {
    Request {
        tag,
        prompt,
        adapter: None,
        class: ServiceClass::Interactive,
        caller: CallerKey(1),
        scope: CacheScope::default(),
        arrived: std::time::Duration::ZERO,
        first_token_within: None,
        max_tokens,
        skip_tokens: 0,
        sampling: SamplingSpec::greedy(),
        stop: vec![],
        grammar: None,
        continuation: Continuation::Sampled,
        ignore_end: false,
        cancel: Cancel::default(),
    }
}

fn scope(number: u8) -> CacheScope {
    CacheScope([number; 16])
}

fn is_length(seen: &Seen) -> bool {
    seen.finished().reason == FinishReason::Length
}
