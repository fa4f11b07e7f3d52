//! Tables: Markdown that is aligned, so that it reads the same in a terminal.

use std::fmt::{self, Write as _};

use super::bootstrap::Estimate;

#[derive(Debug, Default)]
pub struct Table {
    rows: Vec<Vec<String>>,
}

impl Table {
    pub fn new<const N: usize>(columns: [&str; N]) -> Self {
        Self { rows: vec![columns.map(str::to_owned).to_vec()] }
    }

    pub fn row(&mut self, cells: Vec<String>) {
        debug_assert_eq!(cells.len(), self.rows[0].len());
        self.rows.push(cells);
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let columns = self.rows.first().map_or(0, Vec::len);
        let width =
            |column: usize| self.rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
        let widths: Vec<usize> = (0..columns).map(width).collect();
        for (index, row) in self.rows.iter().enumerate() {
            for (cell, width) in row.iter().zip(&widths) {
                write!(f, "| {cell:<width$} ")?;
            }
            writeln!(f, "|")?;
            if index == 0 {
                for width in &widths {
                    write!(f, "|-{:-<width$}-", "")?;
                }
                writeln!(f, "|")?;
            }
        }
        Ok(())
    }
}

/// A figure with its interval, to `decimals` places: `1.23 (1.10–1.31)`.
pub fn with_interval(estimate: Estimate, decimals: usize) -> String {
    let Estimate { value, low, high } = estimate;
    let mut text = format!("{value:.decimals$}");
    if high > low {
        let _ = write!(text, " ({low:.decimals$}–{high:.decimals$})");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_as_wide_as_their_widest_cell() {
        let mut table = Table::new(["a", "TTFT"]);
        table.row(vec!["long".to_owned(), "1–2".to_owned()]);
        assert_eq!(table.to_string(), "| a    | TTFT |\n|------|------|\n| long | 1–2  |\n");
    }

    #[test]
    fn an_interval_is_shown_where_there_is_one() {
        let estimate = Estimate { value: 1.234, low: 1.2, high: 1.3 };
        assert_eq!(with_interval(estimate, 2), "1.23 (1.20–1.30)");
        assert_eq!(with_interval(Estimate { low: 1.234, high: 1.234, ..estimate }, 1), "1.2");
    }
}
