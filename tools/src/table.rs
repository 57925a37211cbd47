// SPDX-License-Identifier: GPL-2.0
//! The text of the module's tables, taken apart: maybe lines with `#`, a line of columns' names, then a line
//! a row.

use anyhow::{ensure, Context, Result};

/// A table: its text, and where its columns are.
pub struct Table<'a> {
    columns: Vec<&'a str>,
    lines: std::str::Lines<'a>,
}

/// A row of it.
pub struct Row<'t> {
    columns: &'t [&'t str],
    cells: Vec<&'t str>,
}

impl<'a> Table<'a> {
    /// Of a text.
    pub fn new(text: &'a str) -> Result<Self> {
        let mut lines = text.lines();
        // Some say something of themselves before.
        let columns = lines.find(|line| !line.starts_with('#'));
        let columns = columns.context("it has no line of columns")?;
        Ok(Self {
            columns: columns.split(' ').collect(),
            lines,
        })
    }

    /// Its rows.
    pub fn rows(&self) -> impl Iterator<Item = Result<Row<'_>>> + use<'_, 'a> {
        self.lines.clone().map(|line| {
            let cells: Vec<_> = line.split(' ').collect();
            let wanted = self.columns.len();
            ensure!(
                cells.len() == wanted,
                "{wanted} columns, but the line {line:?}"
            );
            Ok(Row {
                columns: &self.columns,
                cells,
            })
        })
    }

    /// The columns behind that one.
    pub fn columns_behind(&self, column: &str) -> &[&'a str] {
        let at = self.columns.iter().position(|name| *name == column);
        at.map_or(&[], |at| &self.columns[at + 1..])
    }
}

impl<'t> Row<'t> {
    /// A cell.
    pub fn get(&self, column: &str) -> Result<&'t str> {
        let at = self.columns.iter().position(|name| *name == column);
        at.map(|at| self.cells[at]).with_context(|| {
            format!("there is no column {column}: the loaded module is of another version; install the one that came with this tool")
        })
    }

    /// A cell, if it is not `-`.
    pub fn some(&self, column: &str) -> Result<Option<&'t str>> {
        Ok(Some(self.get(column)?).filter(|cell| *cell != "-"))
    }

    /// A number in a cell.
    pub fn number(&self, column: &str) -> Result<u64> {
        let cell = self.get(column)?;
        number(cell).with_context(|| format!("{column} is {cell:?}"))
    }

    /// A number in a cell, if it is not `-`.
    pub fn some_number(&self, column: &str) -> Result<Option<u64>> {
        self.some(column)?.map(|_| self.number(column)).transpose()
    }

    /// Names with commas in a cell; `-` for none.
    pub fn names(&self, column: &str) -> Result<Vec<String>> {
        let names = self.some(column)?.map(|cell| cell.split(','));
        Ok(names.into_iter().flatten().map(str::to_owned).collect())
    }
}

/// A number, decimal or hexadecimal.
pub fn number(text: &str) -> Option<u64> {
    match text.strip_prefix("0x") {
        Some(digits) => u64::from_str_radix(digits, 16).ok(),
        None => text.parse().ok(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_and_cells() -> Result<()> {
        let table = Table::new("gpa size flags why\n0x40000000 4096 accessed,dirty -\n1 2 - x\n")?;
        let rows = table.rows().collect::<Result<Vec<_>>>()?;
        assert_eq!(rows.len(), 2);
        assert_eq!(rows[0].number("gpa")?, 1 << 30);
        assert_eq!(rows[0].number("size")?, 4096);
        assert_eq!(rows[0].names("flags")?, ["accessed", "dirty"]);
        assert_eq!(rows[0].some("why")?, None);
        assert_eq!(rows[0].some_number("why")?, None);
        assert_eq!(rows[1].some("why")?, Some("x"));
        assert!(rows[1].names("flags")?.is_empty());
        assert_eq!(table.columns_behind("size"), ["flags", "why"]);
        assert!(table.columns_behind("why").is_empty());
        Ok(())
    }

    #[test]
    fn what_is_wrong_is_said() {
        let said = |text: &str, column: &str| -> String {
            let told = || -> Result<u64> {
                let table = Table::new(text)?;
                let row = table.rows().next().context("no row")??;
                row.number(column)
            };
            format!("{:#}", told().unwrap_err())
        };
        assert!(said("", "gpa").contains("no line of columns"));
        assert!(said("gpa size\n1\n", "gpa").contains("2 columns"));
        assert!(said("gpa size\n1 2 3\n", "gpa").contains("2 columns"));
        assert!(said("gpa size\n1 2\n", "why").contains("no column why"));
        assert!(said("gpa size\nx 2\n", "gpa").contains("gpa is \"x\""));
        assert!(said("gpa\n0xfffffffffffffffff\n", "gpa").contains("gpa is"));
    }
}
