//! Which examples share a pass: the largest first, each where it leaves the least room (best-fit decreasing), inside a
//! window of drawn examples, so that passes are full and nothing is thrown away. A function of the order, the sizes and
//! the number of steps behind alone, so that a resumed job packs what it would have packed.

use super::order::Order;
use std::collections::VecDeque;
use std::ops::Range;

/// Steps' worth of tokens in a window.
const WINDOW_STEPS: usize = 4;
/// Most examples in a window.
const WINDOW_EXAMPLES_MAX: usize = 4096;

/// A drawn example.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Drawn {
    /// When it was drawn.
    at: u64,
    example: usize,
    tokens: usize,
    /// Whether it was left over by the window before.
    has_waited: bool,
}

/// Deals out passes, a step's worth at a time.
pub(super) struct Packer<'a> {
    order: Order,
    /// Tokens of each example.
    sizes: &'a [usize],
    pass_tokens: usize,
    passes_per_step: usize,
    drawn: u64,
    left_over: Vec<Drawn>,
    ready: VecDeque<Vec<Drawn>>,
}

impl<'a> Packer<'a> {
    /// Passes of at most `pass_tokens`; a longer example is a pass of its own. `order` must not be empty.
    pub(super) fn new(order: Order, sizes: &'a [usize], pass_tokens: usize, passes_per_step: usize) -> Self {
        let (left_over, ready) = (Vec::new(), VecDeque::new());
        Self { order, sizes, pass_tokens, passes_per_step, drawn: 0, left_over, ready }
    }

    /// The passes of the next step: for each the positions of its examples.
    pub(super) fn next_step(&mut self) -> Vec<Vec<usize>> {
        while self.ready.len() < self.passes_per_step {
            let before = self.ready.len();
            self.fill();
            if self.ready.len() == before {
                break;
            }
        }
        let passes = self.ready.drain(..self.passes_per_step.min(self.ready.len()));
        passes.map(|pass| pass.iter().map(|one| one.example).collect()).collect()
    }

    /// Goes past the steps that were taken before.
    pub(super) fn skip(&mut self, steps: u32) {
        (0..steps).for_each(|_| _ = self.next_step());
    }

    /// Draws a window and packs it. The emptiest pass waits for the next window, unless something in it has waited already.
    fn fill(&mut self) {
        let wanted = WINDOW_STEPS * self.passes_per_step * self.pass_tokens;
        let mut window = std::mem::take(&mut self.left_over);
        let mut tokens: usize = window.iter().map(|one| one.tokens).sum();
        while tokens < wanted && window.len() < WINDOW_EXAMPLES_MAX {
            let Some(example) = self.order.next() else { break };
            let one = Drawn { at: self.drawn, example, tokens: self.sizes[example], has_waited: false };
            self.drawn += 1;
            tokens += one.tokens;
            window.push(one);
        }
        let mut passes = best_fit(window, self.pass_tokens);
        let filled = |pass: &Vec<Drawn>| pass.iter().map(|one| one.tokens).sum::<usize>();
        let emptiest = (0..passes.len()).min_by_key(|i| filled(&passes[*i]));
        let may_wait = |i: &usize| passes.len() > 1 && passes[*i].iter().all(|one| !one.has_waited);
        if let Some(index) = emptiest.filter(may_wait) {
            let waits = passes.remove(index).into_iter();
            self.left_over = waits.map(|one| Drawn { has_waited: true, ..one }).collect();
        }
        self.ready.extend(passes);
    }
}

/// Packs examples; passes in the order of their earliest example, examples in the order in which they were drawn.
fn best_fit(mut window: Vec<Drawn>, pass_tokens: usize) -> Vec<Vec<Drawn>> {
    window.sort_by_key(|one| (std::cmp::Reverse(one.tokens), one.at));
    let mut passes: Vec<(usize, Vec<Drawn>)> = Vec::new();
    for one in window {
        let fits = passes.iter_mut().filter(|(room, _)| *room >= one.tokens).min_by_key(|(room, _)| *room);
        match fits {
            Some((room, pass)) => {
                *room -= one.tokens;
                pass.push(one);
            }
            None => passes.push((pass_tokens.saturating_sub(one.tokens), vec![one])),
        }
    }
    let mut passes: Vec<Vec<Drawn>> = passes.into_iter().map(|(_, pass)| pass).collect();
    passes.iter_mut().for_each(|pass| pass.sort_by_key(|one| one.at));
    passes.sort_by_key(|pass| pass.first().map(|one| one.at));
    passes
}

/// Splits conversations in their order into runs of at most `limit` tokens; a longer one is a run of its own.
pub(super) fn runs(sizes: &[usize], limit: usize) -> Vec<Range<usize>> {
    let (mut runs, mut start, mut held) = (Vec::new(), 0, 0);
    for (i, tokens) in sizes.iter().enumerate() {
        if i > start && held + tokens > limit {
            runs.push(start..i);
            (start, held) = (i, 0);
        }
        held += tokens;
    }
    if start < sizes.len() {
        runs.push(start..sizes.len());
    }
    runs
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::counter::{Counter, Site};
    use crate::train::order::Queue;
    use empathd_proto::record::Domain;

    const PASS: usize = 256;

    fn sizes(count: usize, seed: u64) -> Vec<usize> {
        let at = |i| 8 + (Counter::new(seed).bits(Site::new("size", 0), i as u64) % 200) as usize;
        (0..count).map(at).collect()
    }

    fn packer(sizes: &[usize], passes: usize) -> Packer<'_> {
        let domains: Vec<Queue> = (0..sizes.len()).map(|i| Queue::Learn(Domain::ALL[i % 6])).collect();
        Packer::new(Order::new(&domains, sizes, 0.0, 7), sizes, PASS, passes)
    }

    #[test]
    fn passes_are_full_and_nothing_is_thrown_away() {
        let sizes = sizes(500, 1);
        let mut packer = packer(&sizes, 3);
        let steps: Vec<Vec<Vec<usize>>> = (0..40).map(|_| packer.next_step()).collect();
        let passes: Vec<&Vec<usize>> = steps.iter().flatten().collect();
        let tokens = |pass: &[usize]| pass.iter().map(|i| sizes[*i]).sum::<usize>();
        assert!(steps.iter().all(|step| step.len() == 3) && passes.iter().all(|pass| tokens(pass) <= PASS));
        let filled = passes.iter().map(|pass| tokens(pass)).sum::<usize>() as f64 / (passes.len() * PASS) as f64;
        assert!(filled > 0.96, "{filled}");
        let mut given: Vec<usize> = passes.into_iter().flatten().copied().collect();
        given.extend(packer.ready.iter().flatten().chain(&packer.left_over).map(|one| one.example));
        let mut drawn: Vec<usize> = self::packer(&sizes, 3).order.take(packer.drawn as usize).collect();
        given.sort_unstable();
        drawn.sort_unstable();
        assert_eq!(given, drawn);
        assert!(packer.left_over.iter().all(|one| one.at + 200 > packer.drawn), "nothing waits for long");
    }

    #[test]
    fn steps_behind_decide_what_comes_next() {
        let sizes = sizes(60, 2);
        let mut straight = packer(&sizes, 2);
        straight.skip(7);
        for skipped in [7, 8, 11] {
            let mut resumed = packer(&sizes, 2);
            resumed.skip(skipped);
            if skipped > 7 {
                straight.skip(skipped - 7);
            }
            assert_eq!(resumed.next_step(), straight.next_step());
            straight = packer(&sizes, 2);
            straight.skip(7);
        }
    }

    #[test]
    fn one_example_and_one_that_is_too_long_are_packed_too() {
        let step = |sizes: &[usize]| packer(sizes, 2).next_step();
        assert_eq!(step(&[100]), [[0, 0], [0, 0]]);
        assert_eq!(step(&[300]), [[0], [0]]);
    }

    #[test]
    fn the_largest_come_first_and_go_where_they_leave_least_room() {
        let drawn = |(at, tokens)| Drawn { at, example: at as usize, tokens, has_waited: false };
        let window: Vec<Drawn> = [(0, 2), (1, 6), (2, 5), (3, 4), (4, 3)].map(drawn).to_vec();
        let packed: Vec<Vec<u64>> =
            best_fit(window, 10).into_iter().map(|pass| pass.iter().map(|one| one.at).collect()).collect();
        assert_eq!(packed, [vec![0, 2, 4], vec![1, 3]]);
    }

    #[test]
    fn runs_keep_the_order_and_the_limit() {
        assert_eq!(runs(&[3, 3, 9, 1, 1, 1], 6), [0..2, 2..3, 3..6]);
        assert!(runs(&[], 6).is_empty());
    }
}
