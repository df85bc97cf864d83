//! Columns. Widths follow the content; the last column gives way so that no line is wider than the page.

use super::WIDTH;

/// Blanks between columns.
const GAP: usize = 2;

/// Which side a column keeps to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Side {
    Left,
    Right,
}

/// A table under construction.
#[derive(Debug)]
pub(crate) struct Table<const N: usize> {
    head: [(&'static str, Side); N],
    rows: Vec<[String; N]>,
}

impl<const N: usize> Table<N> {
    pub(crate) fn new(head: [(&'static str, Side); N]) -> Self {
        Self { head, rows: Vec::new() }
    }

    pub(crate) fn row(&mut self, cells: [String; N]) {
        self.rows.push(cells);
    }

    /// The text, each line ended; `when_empty` alone when there is no row.
    pub(crate) fn text(&self, when_empty: &str) -> String {
        if self.rows.is_empty() {
            return format!("{when_empty}\n");
        }
        let width = |column: usize| {
            let cells = self.rows.iter().map(|row| row[column].chars().count());
            cells.chain([self.head[column].0.len()]).max().unwrap_or(0)
        };
        let widths: [usize; N] = std::array::from_fn(width);
        let head: [String; N] = std::array::from_fn(|column| self.head[column].0.to_owned());
        [&head].into_iter().chain(&self.rows).map(|row| self.line(row, &widths)).collect()
    }

    fn line(&self, cells: &[String; N], widths: &[usize; N]) -> String {
        let mut line = String::new();
        for (column, (cell, width)) in cells.iter().zip(widths).enumerate() {
            match self.head[column].1 {
                Side::Left => line.push_str(&format!("{cell:<width$}")),
                Side::Right => line.push_str(&format!("{cell:>width$}")),
            }
            line.extend(std::iter::repeat_n(' ', GAP));
        }
        format!("{}\n", clip(line.trim_end(), WIDTH))
    }
}

/// The text, cut with an ellipsis when it is wider than `width`.
pub(crate) fn clip(text: &str, width: usize) -> String {
    if text.chars().count() <= width {
        return text.to_owned();
    }
    text.chars().take(width.saturating_sub(1)).chain(['…']).collect()
}

/// Lines of `name   value`, indented, names aligned.
pub(crate) fn facts(facts: &[(&str, String)]) -> String {
    let width = facts.iter().map(|(name, _)| name.len()).max().unwrap_or(0);
    facts.iter().map(|(name, value)| format!("{}\n", clip(&format!("  {name:<width$}  {value}"), WIDTH))).collect()
}
