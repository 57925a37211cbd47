// SPDX-License-Identifier: GPL-2.0
//! Rows as people read them: aligned columns, a field of the row's JSON each.

use crate::units;
use anyhow::Result;
use serde::Serialize;
use serde_json::{Map, Value};
use std::io::{self, Write};

/// Fields that are addresses, numbers of MSRs and vectors.
const HEXADECIMAL: [&str; 7] = [
    "exception",
    "gpa",
    "interrupt",
    "last_written",
    "msr",
    "rip",
    "vector",
];
/// Fields that are numbers of bytes.
const BYTES: [&str; 1] = ["memory"];
/// Fields that name something by a number.
const NAMES: [&str; 5] = ["fd", "gsi", "pid", "tid", "vcpu"];

/// Rows with columns of the same names.
#[derive(Default)]
pub struct Rows(Vec<Map<String, Value>>);

impl Rows {
    /// Add a row, with columns before its own.
    pub fn add(&mut self, before: &[(&str, &str)], row: &impl Serialize) -> Result<()> {
        let before = before
            .iter()
            .map(|&(name, text)| (name.into(), text.into()));
        let mut columns: Map<String, Value> = before.collect();
        if let Value::Object(fields) = serde_json::to_value(row)? {
            columns.extend(fields);
        }
        self.0.push(columns);
        Ok(())
    }

    /// Leave out a column.
    pub fn without(&mut self, name: &str) {
        self.0
            .iter_mut()
            .for_each(|row| drop(row.shift_remove(name)));
    }

    /// Leave out columns in which nothing stands.
    pub fn without_empty(&mut self) {
        let names: Vec<String> = self
            .0
            .first()
            .into_iter()
            .flat_map(Map::keys)
            .cloned()
            .collect();
        for name in names {
            if self
                .0
                .iter()
                .all(|row| row.get(&name).is_none_or(Value::is_null))
            {
                self.without(&name);
            }
        }
    }

    /// Write them, numbers to the right; nothing if there are none.
    pub fn write(&self, out: &mut impl Write) -> io::Result<()> {
        let Some(first) = self.0.first() else {
            return Ok(());
        };
        let columns: Vec<_> = first.keys().map(|name| self.column(name)).collect();
        for line in 0..=self.0.len() {
            let mut text = String::new();
            for column in &columns {
                let (cell, width) = (&column.cells[line], column.width);
                text += &match column.right {
                    true => format!("{cell:>width$}  "),
                    false => format!("{cell:<width$}  "),
                };
            }
            writeln!(out, "{}", text.trim_end())?;
        }
        Ok(())
    }

    fn column(&self, name: &str) -> Column {
        let values = || {
            self.0
                .iter()
                .map(|row| row.get(name).unwrap_or(&Value::Null))
        };
        let mut cells = vec![title(name)];
        cells.extend(values().map(|value| cell(name, value)));
        Column {
            width: cells
                .iter()
                .map(|cell| cell.chars().count())
                .max()
                .unwrap_or(0),
            right: values().any(Value::is_number),
            cells,
        }
    }
}

/// A column: its title, then its cells.
struct Column {
    cells: Vec<String>,
    width: usize,
    right: bool,
}

/// A column's title. Times have their unit with them.
fn title(name: &str) -> String {
    let name = name.strip_suffix("_ns").unwrap_or(name);
    name.replace("_per_second", "/s")
}

fn cell(name: &str, value: &Value) -> String {
    match value {
        Value::Null => "-".to_owned(),
        Value::String(text) if text.is_empty() => "-".to_owned(),
        Value::String(text) => printable(text),
        Value::Array(list) if list.is_empty() => "-".to_owned(),
        Value::Array(list) => {
            let cells: Vec<_> = list.iter().map(|value| cell(name, value)).collect();
            cells.join(",")
        }
        Value::Number(number) => match (number.as_u64(), number.as_f64()) {
            (Some(n), _) if HEXADECIMAL.contains(&name) => format!("{n:#x}"),
            (Some(n), _) if BYTES.contains(&name) => units::size(n),
            (Some(n), _) if NAMES.contains(&name) => n.to_string(),
            (Some(n), _) if name.ends_with("_ns") => units::duration(n),
            (Some(n), _) => units::count(n),
            (None, Some(n)) => units::rate(n),
            (None, None) => number.to_string(),
        },
        other => other.to_string(),
    }
}

/// A text that leaves a terminal as it is: a process may call itself anything.
pub fn printable(text: &str) -> String {
    let shown = |letter: char| if letter.is_control() { '?' } else { letter };
    text.chars().map(shown).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Serialize)]
    struct Row {
        reason: &'static str,
        count: u64,
        total_ns: Option<u64>,
        rip: Option<u64>,
        memory: u64,
        rate: f64,
        names: Vec<&'static str>,
    }

    const ROW: Row = Row {
        reason: "io",
        count: 1_234_567,
        total_ns: Some(21_800_000),
        rip: Some(0x1000),
        memory: 1 << 30,
        rate: 1.25,
        names: vec![],
    };

    fn written(rows: &Rows) -> String {
        let mut out = Vec::new();
        rows.write(&mut out).unwrap();
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn aligned() -> Result<()> {
        let mut rows = Rows::default();
        assert_eq!(written(&rows), "");
        rows.add(&[("vm", "101-4")], &ROW)?;
        let second = Row {
            reason: "interrupt",
            count: 5,
            total_ns: None,
            rip: None,
            memory: 4096,
            rate: 1234.0,
            names: vec!["a", "b"],
        };
        rows.add(&[("vm", "7-1")], &second)?;
        let expected = "\
vm     reason         count   total     rip  memory   rate  names
101-4  io         1,234,567  21.8ms  0x1000      1G    1.2  -
7-1    interrupt          5       -       -      4K  1,234  a,b
";
        assert_eq!(written(&rows), expected);
        rows.without("rate");
        rows.without_empty();
        assert!(written(&rows)
            .starts_with("vm     reason         count   total     rip  memory  names\n"));
        Ok(())
    }

    #[test]
    fn what_is_empty_goes() -> Result<()> {
        let mut rows = Rows::default();
        rows.add(
            &[],
            &Row {
                total_ns: None,
                ..ROW
            },
        )?;
        rows.without_empty();
        let text = written(&rows);
        assert!(text.starts_with("reason      count     rip"), "{text}");
        Ok(())
    }

    #[test]
    fn no_control_characters() {
        assert_eq!(printable("a\x1b[31mb\nc ä"), "a?[31mb?c ä");
    }
}
