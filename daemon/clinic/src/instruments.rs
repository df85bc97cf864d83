//! Self-report instruments that may be reproduced freely: PHQ-9 (Kroenke, Spitzer & Williams 2001) and GAD-7 (Spitzer et
//! al. 2006). Items are answered 0 to 3. This module scores; the wording of items is not its business.

/// A scored instrument.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Score {
    /// Sum of the items.
    pub total: u8,
    /// Severity band of the total.
    pub band: Band,
    /// Whether an item must be seen by a person whatever the total is.
    pub item_alert: bool,
}

/// Severity bands; GAD-7 has no `ModeratelySevere`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Band {
    /// 0–4.
    Minimal,
    /// 5–9.
    Mild,
    /// 10–14.
    Moderate,
    /// PHQ-9 15–19.
    ModeratelySevere,
    /// PHQ-9 20–27, GAD-7 15–21.
    Severe,
}

/// Why answers cannot be scored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ScoreError {
    /// An answer is not 0, 1, 2 or 3.
    #[error("item {item} has the answer {answer}; answers are 0 to 3")]
    Answer {
        /// Item number from 1.
        item: usize,
        /// What was given.
        answer: u8,
    },
}

/// Scores PHQ-9. Item 9 at 1 or more raises the alert, also when the total is low: the one-year risk of an attempt rises
/// from 0.4 % to 4 % over its answers (Simon 2013). A zero is not a sign of safety.
///
/// # Errors
/// [`ScoreError`].
pub fn phq9(answers: &[u8; 9]) -> Result<Score, ScoreError> {
    let total = sum(answers)?;
    let band = match total {
        0..=4 => Band::Minimal,
        5..=9 => Band::Mild,
        10..=14 => Band::Moderate,
        15..=19 => Band::ModeratelySevere,
        _ => Band::Severe,
    };
    Ok(Score { total, band, item_alert: answers[8] >= 1 })
}

/// Scores GAD-7.
///
/// # Errors
/// [`ScoreError`].
pub fn gad7(answers: &[u8; 7]) -> Result<Score, ScoreError> {
    let total = sum(answers)?;
    let band = match total {
        0..=4 => Band::Minimal,
        5..=9 => Band::Mild,
        10..=14 => Band::Moderate,
        _ => Band::Severe,
    };
    Ok(Score { total, band, item_alert: false })
}

fn sum(answers: &[u8]) -> Result<u8, ScoreError> {
    match answers.iter().position(|answer| *answer > 3) {
        Some(index) => Err(ScoreError::Answer { item: index + 1, answer: answers[index] }),
        None => Ok(answers.iter().sum()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bands_change_at_their_cut_offs() {
        let phq = |total: u8| {
            let mut answers = [0u8; 9];
            for i in 0..total {
                answers[usize::from(i % 9)] += 1;
            }
            phq9(&answers).expect("valid")
        };
        let bands: Vec<Band> = [4, 5, 9, 10, 14, 15, 19, 20, 27].into_iter().map(|total| phq(total).band).collect();
        use Band::{Mild, Minimal, Moderate, ModeratelySevere, Severe};
        assert_eq!(
            bands,
            [Minimal, Mild, Mild, Moderate, Moderate, ModeratelySevere, ModeratelySevere, Severe, Severe]
        );
        assert_eq!(gad7(&[3, 3, 3, 3, 3, 0, 0]).expect("valid").band, Severe);
        assert_eq!(gad7(&[2, 2, 2, 2, 2, 2, 2]).expect("valid").band, Moderate);
    }

    #[test]
    fn item_nine_alerts_whatever_the_total() {
        assert!(phq9(&[0, 0, 0, 0, 0, 0, 0, 0, 1]).expect("valid").item_alert);
        assert!(!phq9(&[3, 3, 3, 3, 3, 3, 3, 3, 0]).expect("valid").item_alert);
        assert_eq!(gad7(&[0, 0, 4, 0, 0, 0, 0]), Err(ScoreError::Answer { item: 3, answer: 4 }));
    }
}
