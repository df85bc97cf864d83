//! In which order examples are drawn: domains take turns by weight, each walks through its own examples in an order made
//! anew for every round. A function of the seed and the number of draws alone.

use crate::counter::{Counter, Site};
use empathd_proto::record::Domain;
use std::collections::BTreeMap;

/// Domains with much data are drawn more often, but less than in proportion (temperature sampling).
const TEMPERATURE: f64 = 0.7;

/// An endless order of examples.
pub(super) struct Order {
    counter: Counter,
    queues: Vec<Queue>,
}

struct Queue {
    domain: Domain,
    /// Positions of the domain's examples.
    members: Vec<usize>,
    /// The round's order of `members`.
    order: Vec<usize>,
    taken: u64,
    weight: f64,
    credit: f64,
}

impl Order {
    /// The order over examples of these domains.
    pub(super) fn new(domains: &[Domain], seed: u64) -> Self {
        let mut members: BTreeMap<Domain, Vec<usize>> = BTreeMap::new();
        for (position, domain) in domains.iter().enumerate() {
            members.entry(*domain).or_default().push(position);
        }
        let queue = |(domain, members): (Domain, Vec<usize>)| {
            let weight = (members.len() as f64).powf(TEMPERATURE);
            Queue { domain, members, order: Vec::new(), taken: 0, weight, credit: 0.0 }
        };
        Self { counter: Counter::new(seed), queues: members.into_iter().map(queue).collect() }
    }
}

impl Iterator for Order {
    type Item = usize;

    /// The next example; none when there are none. Each draw gives every domain its weight in credit and takes the whole
    /// round's from the richest (smooth weighted round robin); a domain that was never drawn goes before all others.
    fn next(&mut self) -> Option<usize> {
        let total: f64 = self.queues.iter().map(|q| q.weight).sum();
        let before = |a: &Queue, b: &Queue| match (a.taken == 0, b.taken == 0) {
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

impl Queue {
    fn next(&mut self, counter: Counter) -> usize {
        let len = self.members.len() as u64;
        let at = usize::try_from(self.taken % len).unwrap_or(0);
        if at == 0 {
            let site = Site::new(self.domain.as_str(), self.taken / len);
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
        Order::new(domains, seed).take(count).collect()
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
}
