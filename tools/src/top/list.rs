// SPDX-License-Identifier: GPL-2.0
//! A list on the screen, and the numbers in it.

use super::model::{Model, Panel};
use crate::columns::printable;
use ratatui::{
    layout::{Alignment, Constraint, Rect},
    style::{Modifier, Style},
    text::Line,
    widgets::{Row, Table, TableState},
    Frame,
};

/// A list: its columns' names and widths (numbers to the right), lines, and which one is chosen.
pub struct List<'a> {
    pub panel: Panel,
    pub title: String,
    pub columns: &'a [(&'a str, Constraint, Alignment)],
    pub lines: Vec<Vec<String>>,
    pub chosen: Option<usize>,
}

impl List<'_> {
    /// Draw it.
    pub fn draw(self, frame: &mut Frame, area: Rect, model: &Model) {
        let here = model.panel == self.panel;
        let cells = |texts: Vec<String>| {
            let aligned = texts.into_iter().zip(self.columns);
            Row::new(
                aligned.map(|(text, (_, _, side))| Line::from(printable(&text)).alignment(*side)),
            )
        };
        let title = if here {
            format!("[{}]", self.title)
        } else {
            format!(" {} ", self.title)
        };
        let names = self
            .columns
            .iter()
            .skip(1)
            .map(|(name, ..)| (*name).to_owned());
        let header = cells(std::iter::once(title).chain(names).collect());
        let style = if here {
            Modifier::REVERSED
        } else {
            Modifier::BOLD
        };
        let lines = self.lines.into_iter().enumerate().map(|(at, mut texts)| {
            let chosen = self.chosen == Some(at);
            texts[0].insert_str(0, if chosen { "> " } else { "  " });
            let style = if chosen {
                Modifier::BOLD.into()
            } else {
                Style::new()
            };
            cells(texts).style(style)
        });
        let widths = self.columns.iter().map(|(_, width, _)| *width);
        let table = Table::new(lines, widths).header(header.style(style));
        let mut state = TableState::new().with_selected(self.chosen);
        frame.render_stateful_widget(table, area, &mut state);
    }
}

/// A rate; none is not known.
pub fn per_second(rate: Option<f64>) -> String {
    match rate {
        None => "-".into(),
        Some(rate) if rate < 9.95 => format!("{rate:.1}"),
        Some(rate) => fits(rate, 8, format!("{rate:.0}")),
    }
}

/// How many.
pub fn count(count: u64) -> String {
    fits(count as f64, 12, count.to_string())
}

/// The text, or a shorter one of three digits if it does not fit.
fn fits(number: f64, width: usize, exact: String) -> String {
    if exact.len() <= width {
        return exact;
    }
    format!("{number:.2e}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_fit() {
        assert_eq!(per_second(None), "-");
        assert_eq!(per_second(Some(0.04)), "0.0");
        assert_eq!(per_second(Some(9.94)), "9.9");
        assert_eq!(per_second(Some(9.95)), "10");
        assert_eq!(per_second(Some(12_345_678.0)), "12345678");
        assert_eq!(per_second(Some(123_456_789.0)), "1.23e8");
        assert_eq!(count(999_999_999_999), "999999999999");
        assert_eq!(count(u64::MAX), "1.84e19");
    }

    #[test]
    fn nothing_for_the_terminal_to_obey() {
        assert_eq!(printable("\x1b[31mred\u{9b}\n"), "?[31mred??");
    }
}
