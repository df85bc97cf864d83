//! Curves as small pictures of characters. They refuse to know what a curve is of.

/// Heights of a column, lowest first.
const LEVELS: [char; 8] = ['▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];

/// One value for each of at most `width` columns: the mean of the values that fall into it. Values that are no numbers are
/// left out.
fn columns(values: &[f64], width: usize) -> Vec<f64> {
    let values: Vec<f64> = values.iter().copied().filter(|value| value.is_finite()).collect();
    let count = values.len().min(width);
    let of = |column: usize| {
        let part = &values[column * values.len() / count..(column + 1) * values.len() / count];
        part.iter().sum::<f64>() / part.len() as f64
    };
    (0..count).map(of).collect()
}

fn bounds(values: &[f64]) -> (f64, f64) {
    values.iter().fold((f64::MAX, f64::MIN), |(low, high), value| (low.min(*value), high.max(*value)))
}

/// Where a value lies between the bounds, in `0..steps`.
fn level(value: f64, (low, high): (f64, f64), steps: usize) -> usize {
    let share = if high > low { (value - low) / (high - low) } else { 0.5 };
    ((share * steps as f64) as usize).min(steps - 1)
}

/// A curve in one line.
pub(crate) fn line(values: &[f64], width: usize) -> String {
    let columns = columns(values, width);
    let bounds = bounds(&columns);
    columns.iter().map(|value| LEVELS[level(*value, bounds, LEVELS.len())]).collect()
}

/// A curve in `height` lines with its highest and lowest value; empty without a value.
pub(crate) fn picture(values: &[f64], width: usize, height: usize) -> String {
    let columns = columns(values, width);
    if columns.is_empty() {
        return String::new();
    }
    let (low, high) = bounds(&columns);
    let rows = height * LEVELS.len();
    let heights: Vec<usize> = columns.iter().map(|value| level(*value, (low, high), rows)).collect();
    let mut text = String::new();
    for row in (0..height).rev() {
        let label = match row {
            row if row + 1 == height => format!("{high:8.3}"),
            0 => format!("{low:8.3}"),
            _ => " ".repeat(8),
        };
        let cell = |height: &usize| match height.checked_sub(row * LEVELS.len()) {
            None => ' ',
            Some(over) => LEVELS[over.min(LEVELS.len() - 1)],
        };
        let cells: String = heights.iter().map(cell).collect();
        text.push_str(&format!("  {label} │{}\n", cells.trim_end()));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn curves_show_their_course() {
        assert_eq!(line(&[3.0, 2.0, 1.0, f64::NAN], 10), "█▅▁");
        assert_eq!(line(&[1.0; 4], 2), "▅▅");
        assert_eq!(line(&[], 5), "");
        let falling: Vec<f64> = (0..100).map(|n| 3.0 - f64::from(n) / 100.0).collect();
        let rows = ["     2.955 │█▆▃▁", "           │████▆▃", "     2.055 │███████▆▃▁"];
        assert_eq!(picture(&falling, 10, 3).lines().collect::<Vec<_>>(), rows);
    }
}
