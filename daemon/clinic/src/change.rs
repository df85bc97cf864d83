//! When a change between two scores is real: the reliable change index of Jacobson & Truax (1991) and the four classes that
//! follow from it.

/// What must be known of an instrument in a population.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Norms {
    /// Standard deviation before treatment.
    pub sd: f64,
    /// Test–retest reliability, 0 to 1.
    pub reliability: f64,
    /// Scores at or above this are of the clinical range.
    pub cutoff: f64,
}

/// What happened between two scores of an instrument on which lower is better.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Change {
    /// Reliably better, and out of the clinical range.
    Recovered,
    /// Reliably better.
    Improved,
    /// Within what the instrument varies by itself.
    Unchanged,
    /// Reliably worse.
    Deteriorated,
}

/// Two-sided 5 % bound of the standard normal distribution.
const Z_95: f64 = 1.96;

/// The reliable change index `(after − before) / (SD·√2·√(1 − r))`; `None` when the norms make no sense.
#[must_use]
pub fn index(before: f64, after: f64, norms: &Norms) -> Option<f64> {
    let sd_difference = norms.sd * (2.0 * (1.0 - norms.reliability)).sqrt();
    let index = (after - before) / sd_difference;
    (norms.sd > 0.0 && (0.0..1.0).contains(&norms.reliability) && index.is_finite()).then_some(index)
}

/// The class of a change; `None` when the norms make no sense.
#[must_use]
pub fn classify(before: f64, after: f64, norms: &Norms) -> Option<Change> {
    let index = index(before, after, norms)?;
    Some(if index > Z_95 {
        Change::Deteriorated
    } else if index >= -Z_95 {
        Change::Unchanged
    } else if before >= norms.cutoff && after < norms.cutoff {
        Change::Recovered
    } else {
        Change::Improved
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Close to PHQ-9: a change of six points is reliable, five is not.
    const PHQ9_LIKE: Norms = Norms { sd: 6.0, reliability: 0.88, cutoff: 10.0 };

    #[test]
    fn classes_follow_the_index_and_the_cut_off() {
        let class = |before, after| classify(before, after, &PHQ9_LIKE);
        assert_eq!(class(18.0, 8.0), Some(Change::Recovered));
        assert_eq!(class(20.0, 12.0), Some(Change::Improved));
        assert_eq!(class(15.0, 10.0), Some(Change::Unchanged));
        assert_eq!(class(9.0, 3.0), Some(Change::Improved));
        assert_eq!(class(8.0, 15.0), Some(Change::Deteriorated));
        let by_hand = (8.0 - 18.0) / (6.0 * 2f64.sqrt() * (1.0f64 - 0.88).sqrt());
        assert!((index(18.0, 8.0, &PHQ9_LIKE).expect("norms") - by_hand).abs() < 1e-12);
    }

    #[test]
    fn senseless_norms_give_nothing() {
        assert_eq!(classify(1.0, 2.0, &Norms { sd: 0.0, reliability: 0.9, cutoff: 1.0 }), None);
        assert_eq!(classify(1.0, 2.0, &Norms { sd: 1.0, reliability: 1.0, cutoff: 1.0 }), None);
    }
}
