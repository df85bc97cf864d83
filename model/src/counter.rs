//! Randomness without a stream: every number is a function of a seed, a site and an index, so that neither the order of
//! work nor a restart can change it. Not for secrets.

/// Where in the program a number is drawn; two sites never share numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Site(u64);

impl Site {
    /// A site named by a word and a position such as a layer.
    #[must_use]
    pub fn new(word: &str, position: u64) -> Self {
        let named = word.bytes().fold(0xcbf2_9ce4_8422_2325, |hash, byte| mix(hash ^ u64::from(byte)));
        Self(mix(named ^ mix(position)))
    }
}

/// Numbers of one seed.
#[derive(Debug, Clone, Copy)]
pub struct Counter {
    seed: u64,
}

impl Counter {
    /// The numbers of this seed.
    #[must_use]
    pub const fn new(seed: u64) -> Self {
        Self { seed }
    }

    /// Sixty-four even bits.
    #[must_use]
    pub const fn bits(&self, site: Site, index: u64) -> u64 {
        mix(mix(mix(self.seed) ^ site.0) ^ index)
    }

    /// Uniform in [0, 1).
    #[must_use]
    pub fn uniform(&self, site: Site, index: u64) -> f64 {
        #[expect(clippy::cast_precision_loss, reason = "53 bits fit an f64 exactly")]
        let mantissa = (self.bits(site, index) >> 11) as f64;
        mantissa / (1u64 << 53) as f64
    }

    /// Standard normal (Box and Muller 1958).
    #[must_use]
    pub fn normal(&self, site: Site, index: u64) -> f64 {
        let radius = (-2.0 * (1.0 - self.uniform(site, 2 * index)).ln()).sqrt();
        radius * (std::f64::consts::TAU * self.uniform(site, 2 * index + 1)).cos()
    }

    /// A permutation of `0..len` (Fisher and Yates).
    #[must_use]
    pub fn shuffle(&self, site: Site, len: usize) -> Vec<usize> {
        let mut order: Vec<usize> = (0..len).collect();
        for last in (1..len).rev() {
            let pick = self.bits(site, last as u64) % (last as u64 + 1);
            order.swap(last, usize::try_from(pick).unwrap_or(last));
        }
        order
    }
}

/// The finaliser of SplitMix64 (Steele, Lea and Flood 2014) over one step of its sequence.
const fn mix(value: u64) -> u64 {
    let mut bits = value.wrapping_add(0x9e37_79b9_7f4a_7c15);
    bits = (bits ^ (bits >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    bits ^ (bits >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_have_the_moments_they_should() {
        let (counter, site) = (Counter::new(7), Site::new("test", 3));
        let count = 20_000u64;
        let mean = (0..count).map(|i| counter.uniform(site, i)).sum::<f64>() / count as f64;
        let normals: Vec<f64> = (0..count).map(|i| counter.normal(site, i)).collect();
        let square = normals.iter().map(|x| x * x).sum::<f64>() / count as f64;
        assert!((mean - 0.5).abs() < 0.01, "{mean}");
        assert!((normals.iter().sum::<f64>() / count as f64).abs() < 0.03);
        assert!((square - 1.0).abs() < 0.05, "{square}");
    }

    #[test]
    fn sites_and_seeds_differ_and_repeat() {
        let draw = |seed, word, position| Counter::new(seed).bits(Site::new(word, position), 5);
        assert_eq!(draw(1, "a", 0), draw(1, "a", 0));
        let all = [draw(1, "a", 0), draw(2, "a", 0), draw(1, "b", 0), draw(1, "a", 1)];
        assert!((1..4).all(|i| !all[..i].contains(&all[i])));
    }

    #[test]
    fn a_shuffle_is_a_permutation() {
        let mut order = Counter::new(1).shuffle(Site::new("test", 0), 100);
        assert_ne!(order, (0..100).collect::<Vec<_>>());
        order.sort_unstable();
        assert_eq!(order, (0..100).collect::<Vec<_>>());
    }
}
