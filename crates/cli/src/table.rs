//! Tables of text, aligned by what a terminal shows.

use crate::output::{Colour, paint};

/// Rows of cells under headings. The first column is aligned left, the others right.
#[derive(Debug, Default)]
pub struct Table {
    rows: Vec<Vec<String>>,
}

impl Table {
    /// A table with these headings.
    pub fn new(headings: &[&str]) -> Self {
        Self { rows: vec![headings.iter().map(|h| h.to_string()).collect()] }
    }

    /// Adds a row.
    pub fn row(&mut self, cells: Vec<String>) {
        self.rows.push(cells);
    }

    /// The table as lines.
    pub fn lines(&self) -> Vec<String> {
        let columns = self.rows.iter().map(Vec::len).max().unwrap_or(0);
        let width_of = |column: usize| self.rows.iter().filter_map(|row| row.get(column)).map(|c| width(c)).max();
        let widths: Vec<usize> = (0..columns).map(|column| width_of(column).unwrap_or(0)).collect();
        let line = |(index, row): (usize, &Vec<String>)| {
            let cells = row.iter().zip(&widths).enumerate().map(|(column, (cell, wide))| {
                let gap = " ".repeat(wide - width(cell));
                if column == 0 { format!("{cell}{gap}") } else { format!("{gap}{cell}") }
            });
            let text = cells.collect::<Vec<_>>().join("  ").trim_end().to_owned();
            if index == 0 { paint(Colour::Bold, &text) } else { text }
        };
        self.rows.iter().enumerate().map(line).collect()
    }
}

/// Columns that a text takes on a terminal: East Asian characters take two.
fn width(text: &str) -> usize {
    text.chars().map(|c| if is_wide(c) { 2 } else { 1 }).sum()
}

/// The blocks of wide characters that names and texts of ours can contain.
fn is_wide(c: char) -> bool {
    matches!(u32::from(c), 0x1100..=0x115f | 0x2e80..=0xa4cf | 0xac00..=0xd7a3 | 0xf900..=0xfaff | 0xfe30..=0xfe6f | 0xff00..=0xff60 | 0x1f300..=0x1faff | 0x20000..=0x3fffd)
}

/// `1234567` as `1,234,567`.
pub fn grouped(number: usize) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// A count with a unit prefix: `12.3 M`.
pub fn short(number: f64, unit: &str) -> String {
    scaled(number, 1000.0, &["", "k", "M", "G", "T", "P"], unit)
}

/// Bytes: `12.3 MiB`.
pub fn bytes(number: usize) -> String {
    scaled(number as f64, 1024.0, &["", "Ki", "Mi", "Gi", "Ti", "Pi"], "B")
}

fn scaled(mut number: f64, step: f64, prefixes: &[&str], unit: &str) -> String {
    let mut index = 0;
    while number >= step && index + 1 < prefixes.len() {
        number /= step;
        index += 1;
    }
    let text = if index == 0 { format!("{number:.0}") } else { format!("{number:.1}") };
    format!("{text} {}{unit}", prefixes[index]).trim_end().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_aligned_also_under_wide_characters() {
        let mut table = Table::new(&["name", "count"]);
        table.row(vec!["花园".into(), "7".into()]);
        table.row(vec!["x".into(), "12345".into()]);
        assert_eq!(table.lines(), ["name  count", "花园      7", "x     12345"]);
    }

    #[test]
    fn numbers_are_readable() {
        assert_eq!((grouped(7), grouped(1000), grouped(1234567)), ("7".into(), "1,000".into(), "1,234,567".into()));
        assert_eq!((short(950.0, ""), short(12_345.0, "tokens")), ("950".into(), "12.3 ktokens".into()));
        assert_eq!((bytes(100), bytes(3 << 20)), ("100 B".into(), "3.0 MiB".into()));
    }
}
