// SPDX-License-Identifier: GPL-2.0
//! The state of the screen: what was read last and before, what is chosen, how it is sorted. Readings and keys
//! go in; [`super::draw`] shows it. Pure: it reads nothing.
//!
//! What is chosen is kept by name, so that it stays chosen while lines come, go and change places.

use super::{
    rates::{self, Order, Row},
    read::{Exits, Reading, Seen, Told, Wanted},
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
    Up,
    Down,
    NextPanel,
    PreviousPanel,
    Sort,
    Pause,
    Help,
    Quit,
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
        let read = |told: &Told| matches!(&told.histograms, Some((of, _)) if *of == self.vcpu);
        self.told().is_some_and(|told| !read(told))
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

    /// Take what was read because something else was chosen: of that only, as all else was read a moment ago.
    pub fn take_chosen(&mut self, reading: Reading) {
        let Some(vm) = self.vm.clone() else { return };
        let read = reading
            .ok()
            .and_then(|vms| vms.into_iter().find(|seen| seen.name == vm));
        let read = read.and_then(|seen| seen.told.ok());
        let (one, histograms) = read.map_or((None, None), |told| (told.one, told.histograms));
        let mut vms = self.vms.iter_mut();
        if let Some(Ok(told)) = vms.find(|seen| seen.name == vm).map(|seen| &mut seen.told) {
            (told.one, told.histograms) = (one, histograms);
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
        let problem = self.problem.as_ref().or(of_vm).or(self.ended.as_ref());
        problem.map(String::as_str)
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
        let place = told.vcpus.iter().position(|vcpu| vcpu.number == number);
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
            Some(number) => {
                let one = told.one.as_ref();
                one.filter(|(of, _)| *of == number).map(|(_, exits)| exits)
            }
        }
    }

    /// How long exits for that reason took. None: it was not read, or they have no time.
    pub fn histogram(&self, reason: &str) -> Option<&Histogram> {
        let (of, all) = self.told()?.histograms.as_ref()?;
        let mut all = all.iter().filter(|_| *of == self.vcpu);
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
            Key::Quit => return Then::Quit,
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
            Key::Up => self.choose(|place| place.saturating_sub(1)),
            Key::Down => self.choose(|place| place + 1),
        }
        Then::GoOn
    }

    /// Choose another line of the panel.
    fn choose(&mut self, other: impl Fn(usize) -> usize) {
        match self.panel {
            Panel::Vms => {
                let place = self.vm_place().map_or(0, other);
                if let Some(seen) = self.vms.get(place) {
                    if self.vm.as_ref() != Some(&seen.name) {
                        self.vm = Some(seen.name.clone());
                        self.vcpu = None;
                    }
                }
            }
            Panel::Vcpus => {
                let place = self.vcpu_place().map_or(0, other);
                self.vcpu = match (place, self.told()) {
                    (0, _) | (_, None) => None,
                    (_, Some(told)) => match told.vcpus.get(place - 1) {
                        Some(vcpu) => Some(vcpu.number),
                        None => return,
                    },
                };
            }
            Panel::Reasons => {
                let Some(rows) = self.rows() else { return };
                let chosen = rows.get(other(self.reason_place(&rows)));
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
        model.press(Key::Down);
        assert_eq!(chosen(&model), "2-2");
        model.take(vms(&["2-2", "3-3", "4-4"]));
        assert_eq!((chosen(&model), model.said()), ("2-2", None));
        model.take(vms(&["3-3", "4-4"]));
        assert_eq!(chosen(&model), "3-3", "what stands in its place");
        assert_eq!(model.said(), Some("VM 2-2 has ended"));
        model.press(Key::Down);
        assert_eq!((chosen(&model), model.said()), ("4-4", None));
        model.press(Key::Down);
        assert_eq!(chosen(&model), "4-4", "the last");
        model.take(vms(&["3-3"]));
        assert_eq!(chosen(&model), "3-3");
        model.take(vms(&[]));
        assert_eq!(
            (chosen(&model), model.said()),
            ("-", Some("VM 3-3 has ended"))
        );
        for key in [
            Key::Up,
            Key::Down,
            Key::NextPanel,
            Key::Down,
            Key::NextPanel,
            Key::Up,
        ] {
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
        model.press(Key::Down);
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
        assert!(model.rows().is_none());
    }

    #[test]
    fn vcpus() {
        let mut model = Model::new(None);
        model.panel = Panel::Vcpus;
        model.take(Ok(vec![fixture::vm("1-1", 1, 2)]));
        assert_eq!((model.vcpu(), model.vcpu_place()), (None, Some(0)));
        model.press(Key::Up);
        assert!(!model.unread() && model.histogram("io").is_some());
        model.press(Key::Down);
        assert!(model.unread());
        assert_eq!(model.wanted(), Some(("1-1", Some(0))));
        assert!(model.rows().is_none() && model.histogram("io").is_none());
        model.take_chosen(Ok(vec![fixture::vm_with("1-1", 1, 2, 0)]));
        assert_eq!(model.rows().unwrap().len(), 2);
        assert!(!model.unread() && model.histogram("io").is_some());
        assert_eq!(model.rows().unwrap()[0].rate, None);
        model.take(Ok(vec![fixture::vm_with("1-1", 2, 2, 0)]));
        assert!(model.rows().unwrap()[0].rate.is_some());
        model.press(Key::Down);
        assert!(model.rows().is_none() && model.unread(), "of another vCPU");
        model.press(Key::Down);
        assert_eq!(model.vcpu(), Some(1), "the last");
        model.take(Ok(vec![fixture::vm("1-1", 1, 1)]));
        assert_eq!(model.vcpu(), None, "it is not there any more");
        model.press(Key::Pause);
        model.press(Key::Down);
        assert!(model.paused && model.rows().is_none());
        model.take_chosen(Err("gone".into()));
        assert!(model.rows().is_none());
    }

    #[test]
    fn reasons_stay_chosen_by_name() {
        let mut model = Model::new(None);
        model.take(Ok(vec![fixture::vm("1-1", 1, 1)]));
        model.order = Order::Name;
        assert_eq!(reason(&model), "hlt", "the first by itself");
        model.press(Key::Down);
        assert_eq!(reason(&model), "io");
        model.order = Order::P99;
        assert_eq!(
            (reason(&model), model.reason_place(&model.rows().unwrap())),
            ("io".into(), 0)
        );
        model.press(Key::Down);
        model.press(Key::Down);
        assert_eq!(reason(&model), "hlt", "the last");
    }

    #[test]
    fn keys() {
        let mut model = Model::new(None);
        assert_eq!(model.press(Key::Help), Then::GoOn);
        assert!(model.help);
        model.press(Key::Pause);
        assert!(!model.help && !model.paused, "any key ends the help");
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
