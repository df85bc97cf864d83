//! In which order examples are drawn: domains take turns by weight, each walks through its own examples in an order made
//! anew for every round; replayed text has a share of its own. A function of the seed and the number of draws alone.

use crate::counter::{Counter, Site};
use empathd_proto::record::Domain;
use std::collections::BTreeMap;

/// Domains with much data are drawn more often, but less than in proportion (temperature sampling).
const TEMPERATURE: f64 = 0.7;

/// How often a domain with so many examples is drawn, up to a factor that all have.
pub(super) fn drawn(examples: usize) -> f64 {
    (examples as f64).powf(TEMPERATURE)
}

/// Among what an example takes its turn.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Queue {
    /// What is learnt of a domain.
    Learn(Domain),
    /// What is replayed.
    Replay,
}

/// An endless order of examples.
pub(super) struct Order {
    counter: Counter,
    queues: Vec<Turns>,
}

struct Turns {
    queue: Queue,
    /// Positions of the queue's examples.
    members: Vec<usize>,
    /// The round's order of `members`.
    order: Vec<usize>,
    taken: u64,
    weight: f64,
    credit: f64,
}

impl Order {
    /// The order over examples of these queues and sizes in tokens. Replay gets `replay_share` of the tokens, as far as
    /// both kinds are there.
    pub(super) fn new(queues: &[Queue], sizes: &[usize], replay_share: f64, seed: u64) -> Self {
        let mut members: BTreeMap<Queue, Vec<usize>> = BTreeMap::new();
        for (position, queue) in queues.iter().enumerate() {
            members.entry(*queue).or_default().push(position);
        }
        let turns = |(queue, members): (Queue, Vec<usize>)| {
            let weight = drawn(members.len());
            Turns { queue, members, order: Vec::new(), taken: 0, weight, credit: 0.0 }
        };
        let mut queues: Vec<Turns> = members.into_iter().map(turns).collect();
        let mean = |one: &Turns| one.members.iter().map(|i| sizes[*i]).sum::<usize>() as f64 / one.members.len() as f64;
        // Tokens that a whole round of turns brings.
        let learnt: f64 =
            queues.iter().filter(|one| one.queue != Queue::Replay).map(|one| one.weight * mean(one)).sum();
        if let Some(replay) = queues.iter_mut().find(|one| one.queue == Queue::Replay).filter(|_| learnt > 0.0) {
            replay.weight = learnt * replay_share / ((1.0 - replay_share) * mean(replay).max(1.0));
        }
        queues.retain(|one| one.weight > 0.0);
        Self { counter: Counter::new(seed), queues }
    }
}

impl Iterator for Order {
    type Item = usize;

    /// The next example; none when there are none. Each draw gives every domain its weight in credit and takes the whole
    /// round's from the richest (smooth weighted round robin); a domain that was never drawn goes before all others.
    fn next(&mut self) -> Option<usize> {
        let total: f64 = self.queues.iter().map(|q| q.weight).sum();
        let before = |a: &Turns, b: &Turns| match (a.taken == 0, b.taken == 0) {
            (fresh, other) if fresh != other => fresh,
            _ => a.credit > b.credit,
        };
        let richest = (0..self.queues.len())
            .reduce(|best, i| if before(&self.queues[i], &self.queues[best]) { i } else { best })?;
        for queue in &mut self.queues {
            queue.credit += queue.weight;
        }
        let queue = &mut self.queues[richest];
        queue.credit -= total;
        Some(queue.next(self.counter))
    }
}

impl Turns {
    fn next(&mut self, counter: Counter) -> usize {
        let len = self.members.len() as u64;
        let at = usize::try_from(self.taken % len).unwrap_or(0);
        if at == 0 {
            let word = match self.queue {
                Queue::Learn(domain) => domain.as_str(),
                Queue::Replay => "replay",
            };
            let site = Site::new(word, self.taken / len);
            self.order = counter.shuffle(site, self.members.len());
        }
        self.taken += 1;
        self.members[self.order[at]]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn draws(domains: &[Domain], seed: u64, count: usize) -> Vec<usize> {
        let queues: Vec<Queue> = domains.iter().map(|domain| Queue::Learn(*domain)).collect();
        Order::new(&queues, &vec![10; domains.len()], 0.0, seed).take(count).collect()
    }

    #[test]
    fn every_domain_comes_early_and_every_example_once_a_round() {
        let domains: Vec<Domain> = (0..60).map(|i| if i < 50 { Domain::Crisis } else { Domain::ALL[i % 6] }).collect();
        let drawn = draws(&domains, 1, 200);
        let early: std::collections::BTreeSet<Domain> = drawn[..6].iter().map(|i| domains[*i]).collect();
        assert_eq!(early.len(), 6, "{early:?}");
        let crisis: Vec<usize> = drawn.iter().copied().filter(|i| domains[*i] == Domain::Crisis).collect();
        let members = domains.iter().filter(|d| **d == Domain::Crisis).count();
        let first: std::collections::BTreeSet<usize> = crisis[..members].iter().copied().collect();
        assert_eq!(first.len(), members, "no repeat within a round");
        assert_ne!(crisis[..8], crisis[members..members + 8], "another order in the next round");
    }

    #[test]
    fn the_seed_decides() {
        let domains = [Domain::Bias; 20];
        assert_eq!(draws(&domains, 3, 50), draws(&domains, 3, 50));
        assert_ne!(draws(&domains, 3, 20), draws(&domains, 4, 20));
        assert!(draws(&[], 3, 5).is_empty());
    }

    #[test]
    fn replay_has_its_share_of_the_tokens() {
        let queues: Vec<Queue> =
            (0..90).map(|i| if i < 80 { Queue::Learn(Domain::ALL[i % 2]) } else { Queue::Replay }).collect();
        let sizes: Vec<usize> = (0..90).map(|i| if i < 80 { 30 + i } else { 200 }).collect();
        let tokens = |share: f64| {
            let drawn: Vec<usize> = Order::new(&queues, &sizes, share, 1).take(3000).collect();
            let sum =
                |replay: bool| drawn.iter().filter(|i| (**i >= 80) == replay).map(|i| sizes[*i]).sum::<usize>() as f64;
            sum(true) / (sum(true) + sum(false))
        };
        assert!((tokens(0.05) - 0.05).abs() < 0.005, "{}", tokens(0.05));
        assert_eq!(tokens(0.0), 0.0);
    }
}
