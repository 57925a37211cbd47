// SPDX-License-Identifier: GPL-2.0
//! The state of the screen: what was read last and before, what is chosen, how it is sorted. Readings and keys
//! go in; [`super::draw`] shows it. Pure: it reads nothing.
//!
//! What is chosen is kept by name, so that it stays chosen while lines come, go and change places.

use super::{
    rates::{self, Order, Row},
    read::{Chosen, Exits, Reading, Seen, Told, Wanted},
};
use crate::records::Histogram;

/// The three lists.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Panel {
    Vms,
    Vcpus,
    Reasons,
}

/// What a key means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Key {
    /// Another line, so many below; [`isize::MIN`] the first, [`isize::MAX`] the last.
    Line(isize),
    NextPanel,
    PreviousPanel,
    Sort,
    Pause,
    Help,
    /// Out of the help, else of all.
    Leave,
    Quit,
    /// Nothing, but it ends the help.
    Other,
}

/// What is to be done for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Then {
    GoOn,
    Quit,
}

/// The state.
pub struct Model {
    pub panel: Panel,
    pub order: Order,
    pub paused: bool,
    pub help: bool,
    vms: Vec<Seen>,
    before: Vec<Seen>,
    problem: Option<String>,
    ended: Option<String>,
    /// Why nothing is recorded.
    off: Option<String>,
    vm: Option<String>,
    vcpu: Option<u64>,
    reason: Option<String>,
}

impl Model {
    /// With that VM chosen, or the first.
    pub fn new(vm: Option<String>) -> Self {
        Self {
            panel: Panel::Reasons,
            order: Order::Time,
            paused: false,
            help: false,
            vms: Vec::new(),
            before: Vec::new(),
            problem: None,
            ended: None,
            off: None,
            vm,
            vcpu: None,
            reason: None,
        }
    }

    /// Of what more is to be read than of all VMs.
    pub fn wanted(&self) -> Wanted<'_> {
        Some((self.vm.as_deref()?, self.vcpu))
    }

    /// Whether something of what is chosen was not read yet.
    pub fn unread(&self) -> bool {
        self.told().is_some_and(|told| self.more(told).is_none())
    }

    /// What was read of what is chosen only.
    fn more<'a>(&self, told: &'a Told) -> Option<&'a Chosen> {
        let more = told.chosen.as_ref();
        more.filter(|more| more.vcpu == self.vcpu)
    }

    /// Nothing is recorded, and that is why; none: it is, or cannot be told.
    pub fn is_off(&mut self, why: Option<String>) {
        self.off = why;
    }

    /// Take what was read at the time for it.
    pub fn take(&mut self, reading: Reading) {
        let place = self.vm_place();
        match reading {
            Ok(vms) => {
                self.before = std::mem::replace(&mut self.vms, vms);
                self.problem = None;
                self.follow(place);
            }
            Err(problem) => {
                self.before.clear();
                self.vms.clear();
                self.problem = Some(problem);
            }
        }
    }

    /// Take what was read because something else was chosen: all else was read a moment ago.
    pub fn take_chosen(&mut self, reading: Result<Chosen, String>) {
        let Some(at) = self.vm_place() else { return };
        let told = &mut self.vms[at].told;
        match (told.as_mut(), reading) {
            (Ok(told), Ok(more)) => told.chosen = Some(more),
            (_, Err(problem)) => *told = Err(problem),
            (Err(_), Ok(_)) => {}
        }
    }

    /// Stay with what was chosen, or go to what stands in its place now.
    fn follow(&mut self, place: Option<usize>) {
        if self.vm_place().is_none() {
            if let (Some(name), Some(_)) = (&self.vm, place) {
                self.ended = Some(format!("VM {name} has ended"));
            }
            let last = self.vms.len().checked_sub(1);
            let now = last.map(|last| place.unwrap_or(0).min(last));
            self.vm = now.map(|at| self.vms[at].name.clone());
            self.vcpu = None;
        }
        if self.vcpu_place().is_none() {
            self.vcpu = None;
        }
    }

    /// Whether nothing could be read.
    pub fn failed(&self) -> bool {
        self.problem.is_some()
    }

    /// What is to be told below.
    pub fn said(&self) -> Option<&str> {
        let of_vm = self.chosen().and_then(|seen| seen.told.as_ref().err());
        let all = [
            self.problem.as_ref(),
            of_vm,
            self.ended.as_ref(),
            self.off.as_ref(),
        ];
        all.into_iter().flatten().next().map(String::as_str)
    }

    /// The VMs, each with its exits a second.
    pub fn vms(&self) -> impl Iterator<Item = (&Seen, Option<f64>)> {
        self.vms.iter().map(|seen| {
            let now = seen.told.as_ref().ok();
            let before = told(&self.before, &seen.name).map(|told| &told.exits);
            (seen, now.and_then(|told| rates::rate(&told.exits, before)))
        })
    }

    /// Where the chosen VM stands.
    pub fn vm_place(&self) -> Option<usize> {
        let name = self.vm.as_ref()?;
        self.vms.iter().position(|seen| seen.name == *name)
    }

    /// The chosen VM.
    pub fn chosen(&self) -> Option<&Seen> {
        self.vms.get(self.vm_place()?)
    }

    /// What its files say.
    pub fn told(&self) -> Option<&Told> {
        self.chosen()?.told.as_ref().ok()
    }

    /// The chosen vCPU; none: all together.
    pub fn vcpu(&self) -> Option<u64> {
        self.vcpu
    }

    /// Where it stands in the list, whose first line is all of them.
    pub fn vcpu_place(&self) -> Option<usize> {
        let Some(number) = self.vcpu else {
            return Some(0);
        };
        // While the VM's files cannot be read it stays what it is.
        let Some(told) = self.told() else {
            return Some(0);
        };
        let place = told.vcpus.iter().position(|vcpu| vcpu.vcpu == number);
        place.map(|place| place + 1)
    }

    /// The lines of reasons. None: they were not read.
    pub fn rows(&self) -> Option<Vec<Row<'_>>> {
        let before = told(&self.before, self.vm.as_deref()?);
        let now = self.exits(self.told()?)?;
        Some(rates::rows(
            now,
            before.and_then(|told| self.exits(told)),
            self.order,
        ))
    }

    /// Of the chosen vCPU, or of all.
    fn exits<'a>(&self, told: &'a Told) -> Option<&'a Exits> {
        match self.vcpu {
            None => Some(&told.exits),
            Some(_) => self.more(told)?.exits.as_ref(),
        }
    }

    /// How long exits for that reason took. None: it was not read, or they have no time.
    pub fn histogram(&self, reason: &str) -> Option<&Histogram> {
        let mut all = self.more(self.told()?)?.histograms.iter();
        all.find(|histogram| histogram.reason == reason)
    }

    /// Where the chosen reason stands in them; the first one until one is chosen, and where it is not there.
    pub fn reason_place(&self, rows: &[Row]) -> usize {
        let chosen = rows
            .iter()
            .position(|row| Some(&row.exit.reason) == self.reason.as_ref());
        chosen.unwrap_or(0)
    }

    /// A key was pressed.
    pub fn press(&mut self, key: Key) -> Then {
        self.ended = None;
        if self.help && key != Key::Quit {
            self.help = false;
            return Then::GoOn;
        }
        match key {
            Key::Leave | Key::Quit => return Then::Quit,
            Key::Other => {}
            Key::Help => self.help = true,
            Key::Pause => self.paused = !self.paused,
            Key::Sort => self.order = self.order.next(),
            Key::NextPanel => {
                self.panel = match self.panel {
                    Panel::Vms => Panel::Vcpus,
                    Panel::Vcpus => Panel::Reasons,
                    Panel::Reasons => Panel::Vms,
                }
            }
            Key::PreviousPanel => {
                self.panel = match self.panel {
                    Panel::Vms => Panel::Reasons,
                    Panel::Vcpus => Panel::Vms,
                    Panel::Reasons => Panel::Vcpus,
                }
            }
            Key::Line(by) => self.choose(by),
        }
        Then::GoOn
    }

    /// Choose another line of the panel.
    fn choose(&mut self, by: isize) {
        let other = |place: usize, count: usize| {
            let last = count.saturating_sub(1) as isize;
            (place as isize).saturating_add(by).clamp(0, last) as usize
        };
        match self.panel {
            Panel::Vms => {
                let count = self.vms.len();
                let place = self.vm_place().map_or(0, |place| other(place, count));
                if let Some(seen) = self.vms.get(place) {
                    if self.vm.as_ref() != Some(&seen.name) {
                        self.vm = Some(seen.name.clone());
                        self.vcpu = None;
                    }
                }
            }
            Panel::Vcpus => {
                let vcpus = self.told().map_or(&[][..], |told| &told.vcpus);
                let place = other(self.vcpu_place().unwrap_or(0), vcpus.len() + 1);
                let chosen = place.checked_sub(1).and_then(|at| vcpus.get(at));
                self.vcpu = chosen.map(|vcpu| vcpu.vcpu);
            }
            Panel::Reasons => {
                let Some(rows) = self.rows() else { return };
                let chosen = rows.get(other(self.reason_place(&rows), rows.len()));
                if let Some(reason) = chosen.map(|row| row.exit.reason.clone()) {
                    self.reason = Some(reason);
                }
            }
        }
    }
}

fn told<'a>(vms: &'a [Seen], name: &str) -> Option<&'a Told> {
    let seen = vms.iter().find(|seen| seen.name == name)?;
    seen.told.as_ref().ok()
}

#[cfg(test)]
mod tests {
    use super::{super::fixture, *};

    const UP: Key = Key::Line(-1);
    const DOWN: Key = Key::Line(1);

    fn chosen(model: &Model) -> &str {
        model.chosen().map_or("-", |seen| &seen.name)
    }

    fn reason(model: &Model) -> String {
        let rows = model.rows().unwrap();
        rows[model.reason_place(&rows)].exit.reason.clone()
    }

    #[test]
    fn a_choice_survives_what_goes() {
        let mut model = Model::new(None);
        model.take(Ok(vec![]));
        assert_eq!((chosen(&model), model.said()), ("-", None));
        let vms = |names: &[&str]| Ok(names.iter().map(|name| fixture::vm(name, 1, 2)).collect());
        model.take(vms(&["1-1", "2-2", "3-3"]));
        assert_eq!(chosen(&model), "1-1", "the first by itself");
        model.panel = Panel::Vms;
        model.press(DOWN);
        assert_eq!(chosen(&model), "2-2");
        model.take(vms(&["2-2", "3-3", "4-4"]));
        assert_eq!((chosen(&model), model.said()), ("2-2", None));
        model.take(vms(&["3-3", "4-4"]));
        assert_eq!(chosen(&model), "3-3", "what stands in its place");
        assert_eq!(model.said(), Some("VM 2-2 has ended"));
        model.press(DOWN);
        assert_eq!((chosen(&model), model.said()), ("4-4", None));
        model.press(DOWN);
        assert_eq!(chosen(&model), "4-4", "the last");
        model.take(vms(&["3-3"]));
        assert_eq!(chosen(&model), "3-3");
        model.take(vms(&[]));
        assert_eq!(
            (chosen(&model), model.said()),
            ("-", Some("VM 3-3 has ended"))
        );
        for key in [UP, DOWN, Key::NextPanel, DOWN, Key::NextPanel, UP] {
            model.press(key);
        }
        model.take(vms(&["5-5"]));
        assert_eq!((chosen(&model), model.said()), ("5-5", None));
    }

    #[test]
    fn the_module_goes_and_comes() {
        let mut model = Model::new(Some("2-2".into()));
        let vms = || Ok(vec![fixture::vm("1-1", 1, 2), fixture::vm("2-2", 1, 2)]);
        model.take(vms());
        assert_eq!(chosen(&model), "2-2", "as asked for");
        model.take(Err("the module is gone".into()));
        assert_eq!(
            (chosen(&model), model.said()),
            ("-", Some("the module is gone"))
        );
        assert!(model.rows().is_none());
        model.press(DOWN);
        assert!(model.said().is_some(), "it is gone still");
        model.take(vms());
        assert_eq!((chosen(&model), model.said()), ("2-2", None));
        let rate = model.rows().unwrap()[0].rate;
        assert_eq!(rate, None, "its counts may be of another module");
        // Files that cannot be read are told of, and the VM stays.
        let mut broken = fixture::vm("2-2", 1, 2);
        broken.told = Err("stopped".into());
        model.take(Ok(vec![broken]));
        assert_eq!((chosen(&model), model.said()), ("2-2", Some("stopped")));
        model.is_off(Some("off".into()));
        assert_eq!(model.said(), Some("stopped"));
        model.take(vms());
        assert_eq!(model.said(), Some("off"));
        let mut broken = fixture::vm("2-2", 1, 2);
        broken.told = Err("stopped".into());
        model.is_off(None);
        model.take(Ok(vec![broken]));
        assert!(model.rows().is_none());
    }

    #[test]
    fn vcpus() {
        let mut model = Model::new(None);
        model.panel = Panel::Vcpus;
        model.take(Ok(vec![fixture::vm_chosen("1-1", 1, 2, None)]));
        assert_eq!((model.vcpu(), model.vcpu_place()), (None, Some(0)));
        model.press(UP);
        assert!(!model.unread() && model.histogram("io").is_some());
        model.press(DOWN);
        assert!(model.unread());
        assert_eq!(model.wanted(), Some(("1-1", Some(0))));
        assert!(model.rows().is_none() && model.histogram("io").is_none());
        let more = fixture::chosen(&fixture::vm("1-1", 1, 2), Some(0));
        model.take_chosen(Ok(more));
        assert_eq!(model.rows().unwrap().len(), 2);
        assert!(!model.unread() && model.histogram("io").is_some());
        assert_eq!(model.rows().unwrap()[0].rate, None);
        model.take(Ok(vec![fixture::vm_chosen("1-1", 2, 2, Some(0))]));
        assert!(model.rows().unwrap()[0].rate.is_some());
        model.press(DOWN);
        assert!(model.rows().is_none() && model.unread(), "of another vCPU");
        model.press(DOWN);
        assert_eq!(model.vcpu(), Some(1), "the last");
        for (by, vcpu) in [
            (isize::MIN, None),
            (isize::MAX, Some(1)),
            (-1, Some(0)),
            (10, Some(1)),
        ] {
            model.press(Key::Line(by));
            assert_eq!(model.vcpu(), vcpu, "{by}");
        }
        model.take(Ok(vec![fixture::vm("1-1", 1, 1)]));
        assert_eq!(model.vcpu(), None, "it is not there any more");
        model.press(Key::Pause);
        model.press(DOWN);
        assert!(model.paused && model.rows().is_none());
        assert!(model.unread());
        model.take_chosen(Err("gone".into()));
        assert!(
            model.rows().is_none() && !model.unread(),
            "not again and again"
        );
        assert_eq!(model.said(), Some("gone"));
    }

    #[test]
    fn another_vm_is_read_at_once() {
        let mut model = Model::new(None);
        assert!(!model.unread(), "none is there");
        let other = || fixture::vm("2-2", 1, 1);
        model.take(Ok(vec![fixture::vm("1-1", 1, 1), other()]));
        assert!(model.unread(), "it was chosen by itself");
        model.take_chosen(Ok(fixture::chosen(&other(), None)));
        assert!(!model.unread());
        model.panel = Panel::Vms;
        model.press(DOWN);
        assert!(model.unread() && model.histogram("io").is_none());
        assert_eq!(model.wanted(), Some(("2-2", None)));
        model.take_chosen(Ok(fixture::chosen(&other(), None)));
        assert_eq!(model.histogram("io").map(|io| io.timed), Some(999));
        assert!(model.histogram("unrecorded").is_none() && !model.unread());
    }

    #[test]
    fn reasons_stay_chosen_by_name() {
        let mut model = Model::new(None);
        model.take(Ok(vec![fixture::vm("1-1", 1, 1)]));
        model.order = Order::Name;
        assert_eq!(reason(&model), "hlt", "the first by itself");
        model.press(DOWN);
        assert_eq!(reason(&model), "io");
        model.order = Order::P99;
        assert_eq!(
            (reason(&model), model.reason_place(&model.rows().unwrap())),
            ("io".into(), 0)
        );
        model.press(DOWN);
        model.press(DOWN);
        assert_eq!(reason(&model), "hlt", "the last");
        model.press(Key::Line(isize::MIN));
        assert_eq!(reason(&model), "io");
        model.press(Key::Line(10));
        assert_eq!(reason(&model), "hlt");
    }

    #[test]
    fn keys() {
        let mut model = Model::new(None);
        assert_eq!(model.press(Key::Help), Then::GoOn);
        assert!(model.help);
        for key in [Key::Pause, Key::Leave, Key::Help, Key::Other] {
            model.help = true;
            assert_eq!(model.press(key), Then::GoOn);
            assert!(!model.help && !model.paused, "any key ends the help");
        }
        assert_eq!(model.press(Key::Other), Then::GoOn);
        assert_eq!(model.press(Key::Leave), Then::Quit);
        model.press(Key::Pause);
        assert!(model.paused);
        model.press(Key::Sort);
        assert_eq!(model.order, Order::Rate);
        let mut panels = Vec::new();
        for key in [
            Key::NextPanel,
            Key::NextPanel,
            Key::NextPanel,
            Key::PreviousPanel,
        ] {
            model.press(key);
            panels.push(model.panel);
        }
        assert_eq!(
            panels,
            [Panel::Vms, Panel::Vcpus, Panel::Reasons, Panel::Vcpus]
        );
        model.press(Key::Help);
        assert_eq!(model.press(Key::Quit), Then::Quit, "also out of the help");
    }
}
