//! How scores run over time: the Theil–Sen slope with a Mann–Kendall test, on the real distances between sessions. Never on
//! fewer than three points; gaps of months count as months. Time runs forward: a falling score has a negative slope,
//! whatever order the points come in.

/// A score at a time.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Point {
    /// Days since any fixed day.
    pub day: f64,
    /// The score.
    pub score: f64,
}

/// A course.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Trend {
    /// Median of the slopes of all pairs, points of the score per week.
    pub slope_per_week: f64,
    /// Mann–Kendall statistic: pairs that rise minus pairs that fall.
    pub s: i64,
    /// Two-sided p-value of the statistic by the normal approximation with continuity correction and ties corrected.
    pub p: f64,
}

/// Fewest points a trend is stated for.
pub const POINTS_MIN: usize = 3;
/// Most points taken, the newest of them: pairs grow with the square.
pub const POINTS_MAX: usize = 2_000;

/// The trend of the points; `None` on fewer than three, on points without time between them, and on numbers that are not
/// finite.
#[must_use]
pub fn theil_sen(points: &[Point]) -> Option<Trend> {
    let mut points = points.to_vec();
    if points.len() < POINTS_MIN || points.iter().any(|point| !point.day.is_finite() || !point.score.is_finite()) {
        return None;
    }
    points.sort_by(|a, b| a.day.total_cmp(&b.day));
    let points = &points[points.len().saturating_sub(POINTS_MAX)..];
    let mut slopes = Vec::new();
    let mut s = 0i64;
    for (i, early) in points.iter().enumerate() {
        for late in points[i + 1..].iter().filter(|late| late.day > early.day) {
            slopes.push((late.score - early.score) / (late.day - early.day) * 7.0);
            s += i64::from(late.score > early.score) - i64::from(late.score < early.score);
        }
    }
    if slopes.is_empty() {
        return None;
    }
    Some(Trend { slope_per_week: median(&mut slopes), s, p: p_value(s, points) })
}

fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    if values.len() % 2 == 1 { values[middle] } else { f64::midpoint(values[middle - 1], values[middle]) }
}

/// Variance of S with ties: `[n(n−1)(2n+5) − Σ t(t−1)(2t+5)] / 18` (Kendall 1975).
fn p_value(s: i64, points: &[Point]) -> f64 {
    let term = |n: f64| n * (n - 1.0) * (2.0 * n + 5.0);
    let mut scores: Vec<f64> = points.iter().map(|point| point.score).collect();
    scores.sort_by(f64::total_cmp);
    let ties: f64 = scores.chunk_by(|a, b| a == b).map(|run| term(run.len() as f64)).sum();
    let variance = (term(points.len() as f64) - ties) / 18.0;
    if variance <= 0.0 || s == 0 {
        return 1.0;
    }
    let z = ((s.abs() - 1) as f64) / variance.sqrt();
    2.0 * (1.0 - normal_cdf(z))
}

/// Standard normal distribution, Abramowitz & Stegun 26.2.17; absolute error below 7.5e-8 for `z` of at least zero.
fn normal_cdf(z: f64) -> f64 {
    let t = 1.0 / (1.0 + 0.231_641_9 * z);
    let poly =
        t * (0.319_381_530 + t * (-0.356_563_782 + t * (1.781_477_937 + t * (-1.821_255_978 + t * 1.330_274_429))));
    1.0 - (-z * z / 2.0).exp() / (2.0 * std::f64::consts::PI).sqrt() * poly
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn points(values: &[(f64, f64)]) -> Vec<Point> {
        values.iter().map(|&(day, score)| Point { day, score }).collect()
    }

    #[test]
    fn a_worsening_course_has_a_positive_slope_in_any_order() {
        let forward = points(&[(0.0, 5.0), (7.0, 7.0), (14.0, 10.0), (70.0, 20.0), (77.0, 21.0)]);
        let mut backward = forward.clone();
        backward.reverse();
        let trend = theil_sen(&forward).expect("enough points");
        assert!(trend.slope_per_week > 0.9 && trend.slope_per_week < 2.6, "{trend:?}");
        assert_eq!(trend.s, 10);
        assert!(trend.p < 0.05);
        assert_eq!(theil_sen(&backward), Some(trend));
    }

    #[test]
    fn one_wild_point_does_not_turn_the_slope() {
        let trend =
            theil_sen(&points(&[(0.0, 20.0), (7.0, 18.0), (14.0, 16.0), (21.0, 27.0), (28.0, 12.0), (35.0, 10.0)]));
        assert!(trend.expect("enough points").slope_per_week < -1.0);
    }

    #[test]
    fn too_little_is_not_a_trend() {
        assert_eq!(theil_sen(&points(&[(0.0, 1.0), (1.0, 2.0)])), None);
        assert_eq!(theil_sen(&points(&[(0.0, 1.0), (0.0, 2.0), (0.0, 3.0)])), None);
        assert_eq!(theil_sen(&points(&[(0.0, 1.0), (1.0, f64::NAN), (2.0, 3.0)])), None);
    }

    proptest! {
        #[test]
        fn mirrored_scores_mirror_the_slope(values in proptest::collection::vec((0.0f64..400.0, 0.0f64..27.0), 3..40)) {
            let up = theil_sen(&points(&values));
            let mirrored: Vec<_> = values.iter().map(|&(day, score)| (day, -score)).collect();
            let down = theil_sen(&points(&mirrored));
            match (up, down) {
                (Some(up), Some(down)) => {
                    prop_assert!((up.slope_per_week + down.slope_per_week).abs() < 1e-9);
                    prop_assert_eq!(up.s, -down.s);
                }
                (up, down) => prop_assert_eq!(up.is_none(), down.is_none()),
            }
        }
    }
}
