//! Rows of a table with a header (RFC 4180, other delimiters allowed). It finds where a row ends before anything is copied, so
//! that an unclosed quote cannot swallow the file. It knows no profile.

use crate::limits::{COLUMNS_MAX, ENTRY_BYTES_MAX, RESUMES_MAX};
use crate::read::fields::{Cell, Fields};
use crate::rule::{Rejection, Rule};
use csv::ByteRecord;

/// Delimiters that are tried, in this order.
pub(crate) const DELIMITERS: [u8; 4] = [b',', b'\t', b';', b'|'];

/// The named columns of a table.
pub(crate) struct Header {
    names: Vec<String>,
    delimiter: u8,
    /// Bytes that it takes up.
    length: usize,
}

impl Header {
    /// The header at the start of a text, when this delimiter gives one with at least two columns.
    pub(crate) fn of(bytes: &[u8], delimiter: u8) -> Option<Self> {
        let RowEnd { row, length, .. } = row_end(bytes, delimiter)?;
        let cells = split(row, delimiter)?;
        let name = |cell: &[u8]| std::str::from_utf8(cell).map(|text| text.trim().to_owned()).ok();
        let names: Vec<String> = cells.iter().map(name).collect::<Option<_>>()?;
        (2..=COLUMNS_MAX).contains(&names.len()).then_some(Self { names, delimiter, length })
    }

    /// The names of the columns.
    pub(crate) fn names(&self) -> impl ExactSizeIterator<Item = &str> {
        self.names.iter().map(String::as_str)
    }

    fn column(&self, name: &str) -> Option<usize> {
        self.names.iter().position(|column| column.eq_ignore_ascii_case(name))
    }
}

impl Fields for Header {
    fn cell(&self, path: &str) -> Option<Cell<'_>> {
        self.column(path).map(|_| Cell::Text(""))
    }
}

/// One row with its header.
pub(crate) struct Row<'a> {
    header: &'a Header,
    cells: Vec<String>,
}

impl Row<'_> {
    /// The texts of the row.
    pub(crate) fn cells(&self) -> &[String] {
        &self.cells
    }
}

impl Fields for Row<'_> {
    fn cell(&self, path: &str) -> Option<Cell<'_>> {
        self.cells.get(self.header.column(path)?).map(|text| Cell::Text(text))
    }
}

/// The rows below a header.
pub(crate) struct Rows<'a> {
    header: &'a Header,
    rest: &'a [u8],
    ordinal: u64,
    resumes: usize,
}

impl<'a> Rows<'a> {
    /// The rows of a text that starts with this header.
    pub(crate) fn below(header: &'a Header, bytes: &'a [u8]) -> Self {
        Self { header, rest: &bytes[header.length..], ordinal: 0, resumes: 0 }
    }

    fn parse(&self, row: &[u8]) -> Result<Row<'a>, Rejection> {
        let wanted = self.header.names.len();
        let cells = split(row, self.header.delimiter).unwrap_or_default();
        if cells.len() != wanted {
            return Err(self.broken(cells.len()));
        }
        let text = |cell: &[u8]| match std::str::from_utf8(cell) {
            Ok(text) => Ok(text.to_owned()),
            Err(error) => Err(Rejection::beyond(Rule::InvalidUtf8, error.valid_up_to(), cell.len(), self.ordinal)),
        };
        Ok(Row { header: self.header, cells: cells.iter().map(text).collect::<Result<_, _>>()? })
    }

    /// Goes on at the next line after a row that does not end. Once that happened too often, a whole bound is passed over
    /// each time, so that a hostile table is still read in one go.
    fn resume(&mut self) -> Rejection {
        self.resumes += 1;
        let from = if self.resumes > RESUMES_MAX { self.rest.len().min(ENTRY_BYTES_MAX) } else { 0 };
        let line = self.rest[from..].iter().position(|byte| *byte == b'\n').map_or(self.rest.len(), |at| from + at + 1);
        self.rest = &self.rest[line..];
        if line > ENTRY_BYTES_MAX {
            return Rejection::beyond(Rule::OversizedEntry, line, ENTRY_BYTES_MAX, self.ordinal);
        }
        self.broken(0)
    }

    fn take(&mut self) -> Option<Result<Row<'a>, Rejection>> {
        let Some(RowEnd { row, length, is_sound }) = row_end(self.rest, self.header.delimiter) else {
            return Some(Err(self.resume()));
        };
        if row.trim_ascii().is_empty() {
            self.rest = &self.rest[length..];
            return None;
        }
        let parsed = if is_sound { self.parse(row) } else { Err(self.broken(0)) };
        let is_broken = parsed.as_ref().is_err_and(|rejection| rejection.rule == Rule::BrokenRow);
        if is_broken && row.contains(&b'\n') && self.resumes < RESUMES_MAX {
            self.resume();
        } else {
            self.rest = &self.rest[length..];
        }
        Some(parsed)
    }

    fn broken(&self, cells: usize) -> Rejection {
        Rejection::beyond(Rule::BrokenRow, cells, self.header.names.len(), self.ordinal)
    }
}

impl<'a> Iterator for Rows<'a> {
    type Item = (u64, Result<Row<'a>, Rejection>);

    fn next(&mut self) -> Option<Self::Item> {
        while !self.rest.is_empty() {
            if let Some(parsed) = self.take() {
                self.ordinal += 1;
                return Some((self.ordinal - 1, parsed));
            }
        }
        None
    }
}

/// Where a row ends.
struct RowEnd<'a> {
    /// The row without its line end.
    row: &'a [u8],
    /// Bytes it takes up with its line end.
    length: usize,
    /// Whether every closing quote ends its cell. One that does not is a quote that was never closed, met much later.
    is_sound: bool,
}

/// The row at the start of a text. `None` when it does not end within the bound. A quote opens a quoted cell only where a
/// cell begins.
fn row_end(bytes: &[u8], delimiter: u8) -> Option<RowEnd<'_>> {
    let (mut quoted, mut cell_begins, mut just_closed, mut is_sound) = (false, true, false, true);
    for (at, byte) in bytes.iter().enumerate().take(ENTRY_BYTES_MAX) {
        match byte {
            b'"' if quoted => (quoted, just_closed) = (false, true),
            b'"' if cell_begins || just_closed => (quoted, just_closed) = (true, false),
            b'\n' if !quoted => return Some(RowEnd { row: &bytes[..at], length: at + 1, is_sound }),
            b'\r' => {}
            other => {
                is_sound &= !just_closed || *other == delimiter;
                just_closed = false;
            }
        }
        cell_begins = *byte == delimiter && !quoted;
    }
    let is_whole = !quoted && bytes.len() <= ENTRY_BYTES_MAX;
    is_whole.then_some(RowEnd { row: bytes, length: bytes.len(), is_sound })
}

fn split(row: &[u8], delimiter: u8) -> Option<ByteRecord> {
    let capacity = row.len().clamp(64, 64 << 10);
    let mut builder = csv::ReaderBuilder::new();
    builder.has_headers(false).flexible(true).delimiter(delimiter).buffer_capacity(capacity);
    let mut record = ByteRecord::new();
    builder.from_reader(row).read_byte_record(&mut record).ok()?.then_some(record)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rows(text: &str) -> Vec<Result<Vec<String>, Rule>> {
        let header = Header::of(text.as_bytes(), b',').unwrap();
        let shown = |(_, row): (u64, Result<Row<'_>, Rejection>)| row.map(|row| row.cells).map_err(|e| e.rule);
        Rows::below(&header, text.as_bytes()).map(shown).collect()
    }

    fn row(cells: &[&str]) -> Result<Vec<String>, Rule> {
        Ok(cells.iter().map(|cell| (*cell).to_owned()).collect())
    }

    #[test]
    fn quotes_commas_and_line_breaks_stay_inside_a_cell() {
        let text = "a,b\r\n\"x, \"\"y\"\"\nz\",5\" pipe\r\n\r\n1,2";
        assert_eq!(rows(text), [row(&["x, \"y\"\nz", "5\" pipe"]), row(&["1", "2"])]);
    }

    #[test]
    fn a_broken_row_costs_itself() {
        assert_eq!(rows("a,b\n1,2,3\n4,5\n"), [Err(Rule::BrokenRow), row(&["4", "5"])]);
        assert_eq!(rows("a,b\n\"open,2\n4,5\n"), [Err(Rule::BrokenRow), row(&["4", "5"])]);
        assert_eq!(rows("a,b\n\"open,2\n4,5\n\"x\",y\n"), [Err(Rule::BrokenRow), row(&["4", "5"]), row(&["x", "y"])]);
    }

    #[test]
    fn an_endless_row_is_refused_and_the_next_one_read() {
        let text = format!("a,b\n{},1\n2,3\n", "x".repeat(ENTRY_BYTES_MAX));
        assert_eq!(rows(&text), [Err(Rule::OversizedEntry), row(&["2", "3"])]);
    }
}
