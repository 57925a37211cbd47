// SPDX-License-Identifier: GPL-2.0
//! The model, drawn: VMs beside their vCPUs, the reasons below, then the times of the chosen one.
//!
//! What is chosen is marked by `>` and the panel that keys go to by brackets, so that nothing depends on colours.

use super::{
    bars,
    list::{count, per_second, List},
    model::{Model, Panel},
};
use crate::{columns::printable, units};
use ratatui::{
    layout::{Alignment, Constraint, Layout, Rect},
    style::Modifier,
    text::Line,
    widgets::{Block, Clear, Paragraph, Wrap},
    Frame,
};

/// Less is too small.
pub const WIDTH: u16 = 80;
pub const HEIGHT: u16 = 24;

const KEYS: &str = " Tab panel  Up/Down choose  s sort  p pause  ? help  q quit";
const HELP: &str = "\
Tab, Right      next panel: VMs, vCPUs, reasons
Shift-Tab, Left previous panel
Up, Down, k, j  choose a VM, a vCPU, a reason
PgUp, PgDn      ten lines; Home, End: all
s               sort reasons: time, rate, count, p99, name
p, Space        pause, go on
?, h            this help
q, Esc, Ctrl-C  quit

TIME% is the part of all exits' time since the reading before.
P50, P99 and the bars are of all exits since the VM was seen
or its tables were reset; a bar is of times up to twice as
long, or of several such. Nothing is written to the module.";
/// Inside its border.
const HELP_WIDTH: u16 = 62;

/// Draw all.
pub fn draw(frame: &mut Frame, model: &Model) {
    let area = frame.area();
    if area.width < WIDTH || area.height < HEIGHT {
        return too_small(frame, area);
    }
    let said = model.said().map(|said| format!(" {}", printable(said)));
    // Words are not cut, so that some of each line may stay empty.
    let below = said.as_ref().map_or(1, |said| {
        said.chars()
            .count()
            .div_ceil(usize::from(WIDTH) - 12)
            .min(4)
    }) as u16;
    let [title, lists, reasons, times, last] = Layout::vertical([
        Constraint::Length(1),
        Constraint::Length((area.height / 4).max(6)),
        Constraint::Min(0),
        Constraint::Length(6),
        Constraint::Length(below),
    ])
    .areas(area);
    let [left, right] =
        Layout::horizontal([Constraint::Length(38), Constraint::Min(0)]).areas(lists);
    let paused = if model.paused { "  PAUSED" } else { "" };
    let order = model.order.name();
    frame.render_widget(
        Line::styled(
            format!(" kvmate top  sorted by {order}{paused}"),
            Modifier::BOLD,
        ),
        title,
    );
    vms(frame, left, model);
    vcpus(frame, right, model);
    draw_reasons(frame, reasons, times, model);
    frame.render_widget(paragraph(said.unwrap_or_else(|| KEYS.into())), last);
    if model.help {
        help(frame, area);
    }
}

fn paragraph(text: String) -> Paragraph<'static> {
    Paragraph::new(text).wrap(Wrap { trim: false })
}

fn too_small(frame: &mut Frame, area: Rect) {
    let text = format!(
        "kvmate top needs {WIDTH}x{HEIGHT}, this is {}x{}: enlarge it, or q to quit",
        area.width, area.height
    );
    frame.render_widget(paragraph(text), area);
}

fn help(frame: &mut Frame, area: Rect) {
    let (width, height) = (HELP_WIDTH + 2, HELP.lines().count() as u16 + 2);
    let at = Rect::new(
        (area.width - width) / 2,
        (area.height - height) / 2,
        width,
        height,
    );
    frame.render_widget(Clear, at);
    frame.render_widget(
        Paragraph::new(HELP).block(Block::bordered().title("Help: a key ends it")),
        at,
    );
}

use Alignment::{Left, Right};
use Constraint::{Fill, Length};

fn vms(frame: &mut Frame, area: Rect, model: &Model) {
    let lines: Vec<_> = model
        .vms()
        .map(|(seen, rate)| {
            let process = seen.process.as_ref().map_or("-", |process| &process.name);
            vec![seen.name.clone(), process.into(), per_second(rate)]
        })
        .collect();
    if lines.is_empty() && !model.failed() {
        frame.render_widget(
            paragraph(" no VM is there: start one, it is seen by itself".into()),
            area,
        );
        return;
    }
    let list = List {
        panel: Panel::Vms,
        title: format!("VMS {}", lines.len()),
        columns: &[
            ("", Fill(1), Left),
            ("PROCESS", Length(15), Left),
            ("EXITS/S", Length(8), Right),
        ],
        lines,
        chosen: model.vm_place(),
    };
    list.draw(frame, inner(area), model);
}

fn vcpus(frame: &mut Frame, area: Rect, model: &Model) {
    let Some(told) = model.told() else { return };
    let all = vec!["all".into(), String::new(), String::new(), String::new()];
    let known = |text: &Option<String>| text.clone().unwrap_or_else(|| "-".into());
    let each = told.vcpus.iter().map(|vcpu| {
        let task = match (vcpu.tid, &vcpu.task) {
            (Some(tid), Some(name)) => format!("{tid}:{name}"),
            _ => "-".into(),
        };
        let (state, exit) = (known(&vcpu.state), known(&vcpu.last_exit));
        vec![vcpu.vcpu.to_string(), state, exit, task]
    });
    let list = List {
        panel: Panel::Vcpus,
        title: format!("VCPUS {}", told.vcpus.len()),
        columns: &[
            ("", Length(11), Left),
            ("STATE", Length(6), Left),
            ("LAST EXIT", Length(13), Left),
            ("TASK", Fill(1), Left),
        ],
        lines: std::iter::once(all).chain(each).collect(),
        chosen: model.vcpu_place(),
    };
    list.draw(frame, area, model);
}

/// One column is left free at the right.
fn inner(area: Rect) -> Rect {
    Rect {
        width: area.width - 1,
        ..area
    }
}

/// A time; none is not known.
fn time(ns: Option<u64>) -> String {
    ns.map_or("-".into(), units::duration)
}

fn draw_reasons(frame: &mut Frame, area: Rect, times: Rect, model: &Model) {
    let of = model
        .vcpu()
        .map_or("all vCPUs".into(), |number| format!("vCPU {number}"));
    let Some(rows) = model.rows() else {
        if model.told().is_some() {
            let text = format!(" {of}: {}", not_read(model));
            frame.render_widget(paragraph(text), area);
        }
        return;
    };
    let place = model.reason_place(&rows);
    let lines = rows.iter().map(|row| {
        let exit = row.exit;
        vec![
            exit.reason.clone(),
            count(exit.count),
            per_second(row.rate),
            row.share
                .map_or("-".into(), |share| format!("{:.1}", share * 100.0)),
            time(exit.p50_ns),
            time(exit.p99_ns),
            time(exit.max_ns),
        ]
    });
    let list = List {
        panel: Panel::Reasons,
        title: format!("REASONS of {of}"),
        columns: &[
            ("", Fill(1), Left),
            ("COUNT", Length(12), Right),
            ("RATE/S", Length(8), Right),
            ("TIME%", Length(5), Right),
            ("P50", Length(6), Right),
            ("P99", Length(6), Right),
            ("MAX", Length(6), Right),
        ],
        lines: lines.collect(),
        chosen: (!rows.is_empty()).then_some(place),
    };
    list.draw(frame, area, model);
    if let Some(row) = rows.get(place) {
        draw_times(frame, times, &row.exit.reason, model);
    }
}

/// Why something of what is chosen is not there.
fn not_read(model: &Model) -> &'static str {
    if model.paused {
        "not read while paused; p goes on"
    } else {
        "not read yet"
    }
}

/// How long a reason's exits took: a bar a power of two, or for several of them.
fn draw_times(frame: &mut Frame, area: Rect, reason: &str, model: &Model) {
    let histogram = model.histogram(reason);
    let bars = histogram.map_or(Vec::new(), |histogram| bars::of(histogram, area.width));
    let why = match histogram {
        None if model.unread() => not_read(model),
        None => "no time is known",
        Some(_) if bars.is_empty() => "no time is known yet: it is taken at the next entry",
        Some(_) => "exits in each bar, from the time below it on",
    };
    let reason = printable(reason);
    let [title, chart] = Layout::vertical([Constraint::Length(1), Constraint::Min(0)]).areas(area);
    let text = format!(" how long {reason} took: {why}");
    frame.render_widget(Line::styled(text, Modifier::BOLD), title);
    let chart = Rect {
        x: chart.x + 1,
        width: chart.width.saturating_sub(1),
        ..chart
    };
    frame.render_widget(bars::chart(&bars), chart);
}

#[cfg(test)]
mod tests {
    use super::{
        super::{fixture, model::Key},
        *,
    };
    use ratatui::{backend::TestBackend, Terminal};

    fn screen(model: &Model, width: u16, height: u16) -> Vec<String> {
        let mut terminal = Terminal::new(TestBackend::new(width, height)).unwrap();
        terminal.draw(|frame| draw(frame, model)).unwrap();
        let buffer = terminal.backend().buffer();
        let cells: Vec<_> = buffer.content().iter().map(|cell| cell.symbol()).collect();
        let lines = cells.chunks(width.into());
        lines
            .map(|line| line.concat().trim_end().to_owned())
            .collect()
    }

    /// Two VMs, read twice.
    fn model() -> Model {
        let mut model = Model::new(None);
        for at in [1, 2] {
            model.take(Ok(vec![
                fixture::vm_chosen("101-4", at, 2, None),
                fixture::vm("7-3", at, 1),
            ]));
        }
        model
    }

    #[test]
    fn a_whole_screen() {
        let expected = include_str!("screen_80x24.txt");
        let found = screen(&model(), 80, 24).join("\n");
        assert_eq!(found, expected.trim_end_matches('\n'), "\n{found}");
    }

    #[test]
    fn a_screen_that_is_too_small() {
        let found = screen(&model(), 40, 10);
        assert_eq!(
            found[..2],
            [
                "kvmate top needs 80x24, this is 40x10:",
                "enlarge it, or q to quit"
            ]
        );
        assert!(found[2..].iter().all(String::is_empty), "{found:?}");
        for (width, height) in [(1, 1), (79, 24), (80, 23), (0, 0)] {
            screen(&model(), width.max(1), height.max(1));
        }
    }

    #[test]
    fn keys_show() {
        let mut model = model();
        let has =
            |model: &Model, part: &str| screen(model, 80, 24).iter().any(|l| l.contains(part));
        model.press(Key::Help);
        assert!(has(&model, "Help: a key ends it"));
        for line in HELP.lines() {
            assert!(has(&model, line), "{line:?} is cut");
        }
        model.press(Key::Other);
        assert!(!has(&model, "a key ends it"));
        for key in [
            Key::Pause,
            Key::NextPanel,
            Key::Line(1),
            Key::NextPanel,
            Key::Line(1),
        ] {
            model.press(key);
        }
        assert!(has(&model, "PAUSED") && has(&model, "[VCPUS 1]") && has(&model, "> 7-3"));
        assert!(has(&model, "vCPU 0: not read while paused"));
        model.press(Key::Line(-1));
        assert!(has(&model, "how long io took: not read while paused"));
        model.press(Key::Pause);
        assert!(has(&model, "how long io took: not read yet"));
    }

    #[test]
    fn problems_show_whole() {
        let mut model = model();
        let told = "the module kvmate is not loaded: ".to_owned() + &"insmod it ".repeat(8);
        model.take(Err(told.clone()));
        let found = screen(&model, 80, 24);
        assert!(
            found[22..].join(" ").contains("insmod it insmod it"),
            "{found:?}"
        );
        let words = found[22..].join(" ").split_whitespace().count();
        assert_eq!(words, told.split_whitespace().count(), "{found:?}");
        model.take(Ok(vec![]));
        assert!(screen(&model, 80, 24)[1].contains("no VM is there"));
    }

    #[test]
    fn what_is_long_is_cut_and_seen() {
        let mut model = Model::new(None);
        let mut vms: Vec<_> = (0..30)
            .map(|n| fixture::vm(&format!("{n}-4"), 1, 300))
            .collect();
        let last = &mut vms[29];
        if let (Some(process), Ok(told)) = (&mut last.process, &mut last.told) {
            process.name = "\x1b[31mred\x07 and long as can be".into();
            told.exits.lines[0].count = u64::MAX;
        }
        model.take(Ok(vms));
        model.panel = Panel::Vms;
        for _ in 0..29 {
            model.press(Key::Line(1));
        }
        let found = screen(&model, 80, 24);
        assert!(found.iter().any(|l| l.contains("> 29-4")), "{found:?}");
        assert!(
            found.iter().all(|l| !l.contains(char::is_control)),
            "{found:?}"
        );
        assert!(found.iter().any(|l| l.contains("1.84e19")), "{found:?}");
        screen(&model, 300, 100);
    }
}
