// SPDX-License-Identifier: GPL-2.0
//! Many interrupts by the VM's file `storm`: begun, watched to the end, and stopped when we are asked to end.

use super::{alone, refused, What};
use crate::{
    json::{self, OfVm},
    signals::Signals,
    table::{Row, Table},
    tree::Vm,
};
use anyhow::{bail, Context, Result};
use schemars::JsonSchema;
use serde::Serialize;
use std::{
    io::{self, IsTerminal, Write},
    thread,
    time::Duration,
};

const FILE: &str = "storm";
/// How often is looked how far it is.
const PAUSE: Duration = Duration::from_millis(50);

/// How many, and how many a second.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Plan {
    pub count: u32,
    pub rate: u32,
}

/// How far it is; the fields' names are those of `--json`.
#[derive(Clone, Debug, PartialEq, Serialize, JsonSchema)]
pub struct Counts {
    /// `running`, `done`, `stopped`, `not_allowed`, `ended`.
    state: String,
    /// What is injected: `gsi:10`.
    target: String,
    asked: u64,
    sent: u64,
    delivered: u64,
    /// Null of what is not coalesced.
    coalesced: Option<u64>,
    failed: u64,
    late: u64,
    /// How many a second were asked for.
    rate: u64,
    /// How many a second were sent; null while that is not known.
    reached: Option<u64>,
}

impl Counts {
    fn new(row: &Row<'_>) -> Result<Self> {
        Ok(Self {
            state: row.get("state")?.to_owned(),
            target: row.get("target")?.to_owned(),
            asked: row.number("asked")?,
            sent: row.number("sent")?,
            delivered: row.number("delivered")?,
            coalesced: row.some_number("coalesced")?,
            failed: row.number("failed")?,
            late: row.number("late")?,
            rate: row.number("rate")?,
            reached: row.some_number("reached")?,
        })
    }

    /// What the file says of the last storm.
    fn read(vm: &Vm) -> Result<Self> {
        Self::parse(&vm.read(FILE)?).context(FILE)
    }

    fn parse(text: &str) -> Result<Self> {
        let table = Table::new(text)?;
        let row = table.rows().next().context("no storm was begun")??;
        Self::new(&row)
    }

    /// Whether it is the one that was asked for.
    fn is(&self, target: &str, plan: Plan) -> bool {
        self.target == target
            && self.asked == u64::from(plan.count)
            && self.rate == u64::from(plan.rate)
    }

    fn tell(&self) -> String {
        let Self {
            sent,
            asked,
            delivered,
            failed,
            late,
            ..
        } = self;
        let mut text = format!("{sent} of {asked} sent: {delivered} delivered");
        if let Some(coalesced) = self.coalesced {
            text += &format!(", {coalesced} coalesced");
        }
        text += &format!(", {failed} failed, {late} late");
        if let Some(reached) = self.reached {
            text += &format!("; {reached} a second of {}", self.rate);
        }
        text
    }
}

/// As the table calls it.
fn target(what: &What) -> String {
    what.to_string().replace(' ', ":")
}

/// Begin one, and see it through.
pub fn run(vm: &Vm, what: &What, plan: Plan, no_wait: bool, as_json: bool) -> Result<()> {
    let Plan { count, rate } = plan;
    let target = target(what);
    // Before it begins: from then on there is something to stop.
    let signals = Signals::catch()?;
    let begun = {
        let _alone = alone(vm)?;
        vm.command(FILE, &format!("{what} count {count} rate {rate}"))?
            .map_err(|error| refused::told(vm, FILE, what, &error))?;
        Counts::read(vm)
    };
    let begun = begun.with_context(|| format!("{what}: a storm was begun, but"));
    let mut last = begun.inspect_err(|_| stop_unseen(vm, no_wait))?;
    let mut stopped = None;
    while last.state == "running" && last.is(&target, plan) && !no_wait {
        if let Some(signal) = signals.caught() {
            // It may have ended, and another one begun, in this very moment.
            stopped = Some(signal);
            let stop = vm.command(FILE, "stop")?;
            stop.map_err(|error| refused::told(vm, FILE, what, &error))?;
        } else {
            progress(&last);
            thread::sleep(PAUSE);
        }
        let now = Counts::read(vm);
        let now = now
            .with_context(|| format!("{what}: when it was seen last, {}; since then", last.tell()));
        last = now.inspect_err(|_| stop_unseen(vm, no_wait))?;
    }
    clear();
    if !last.is(&target, plan) {
        bail!("{what}: somebody else has begun another storm since; of this one nothing more is known");
    }
    let told = tell(vm, what, &last, as_json);
    // This first: who reads may have gone, which is no failure but of what was done.
    ended(what, &last, stopped)?;
    told
}

fn tell(vm: &Vm, what: &What, last: &Counts, as_json: bool) -> Result<()> {
    let mut out = io::stdout().lock();
    if as_json {
        json::pretty(&mut out, &OfVm::new(vm, last))?;
    } else {
        writeln!(out, "{what}: {}: {}", last.state, last.tell())?;
    }
    Ok(out.flush()?)
}

/// Stop one of which nothing can be seen any more: nobody would when we are gone. If that fails, there is nothing else to
/// be done, and why it cannot be seen is told already.
fn stop_unseen(vm: &Vm, no_wait: bool) {
    if !no_wait {
        clear();
        let _ = vm.command(FILE, "stop");
    }
}

/// Whether that was what was asked for.
fn ended(what: &What, last: &Counts, stopped: Option<&str>) -> Result<()> {
    let Counts {
        delivered, asked, ..
    } = last;
    match (last.state.as_str(), stopped) {
        ("done" | "running", _) => Ok(()),
        ("stopped", Some(signal)) => {
            bail!("{what}: stopped by {signal}: {delivered} of {asked} were delivered")
        }
        ("stopped", None) => {
            bail!("{what}: somebody has stopped it: {delivered} of {asked} were delivered")
        }
        ("not_allowed", _) => bail!(
            "{what}: knobs/inject has become 0: {delivered} of {asked} were delivered; echo 1 > {}",
            crate::tree::knob("inject").display()
        ),
        _ => bail!("{what}: the VM has ended: {delivered} of {asked} were delivered"),
    }
}

fn progress(counts: &Counts) {
    if io::stderr().is_terminal() {
        let _ = write!(io::stderr(), "\r\x1b[K{}", counts.tell());
    }
}

fn clear() {
    if io::stderr().is_terminal() {
        let _ = write!(io::stderr(), "\r\x1b[K");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "state target asked sent delivered coalesced failed late rate reached\n\
         stopped gsi:10 1000 512 500 12 0 3 500 499\n";

    #[test]
    fn counts() {
        let counts = Counts::parse(TEXT).unwrap();
        let told =
            "512 of 1000 sent: 500 delivered, 12 coalesced, 0 failed, 3 late; 499 a second of 500";
        assert_eq!(counts.tell(), told);
        let plan = |count, rate| Plan { count, rate };
        assert!(counts.is("gsi:10", plan(1000, 500)));
        assert!(!counts.is("gsi:1", plan(1000, 500)));
        assert!(!counts.is("gsi:10", plan(1001, 500)));
        assert!(!counts.is("gsi:10", plan(1000, 501)));
        let msi = TEXT.replace(" 12 0 3 500 499", " - 0 3 500 -");
        let told = Counts::parse(&msi).unwrap().tell();
        assert_eq!(told, "512 of 1000 sent: 500 delivered, 0 failed, 3 late");
        let columns = TEXT.lines().next().unwrap();
        assert!(Counts::parse(columns).is_err());
    }

    #[test]
    fn targets() {
        let storm = || super::super::Storm {
            storm: None,
            rate: None,
            no_wait: false,
        };
        let msi = What::Msi {
            address: 0xfee0_0000,
            data: 0x41,
            storm: storm(),
        };
        assert_eq!(target(&msi), "msi:0xfee00000:0x41");
    }

    #[test]
    fn ends() {
        let what = What::Nmi { vcpu: 0 };
        let said = |state: &str, signal| {
            let counts = Counts::parse(&TEXT.replace("stopped", state)).unwrap();
            ended(&what, &counts, signal).map_err(|error| error.to_string())
        };
        assert_eq!(said("done", None), Ok(()));
        assert_eq!(said("done", Some("SIGINT")), Ok(()));
        let all = [
            said("stopped", Some("SIGINT")),
            said("stopped", None),
            said("not_allowed", None),
            said("ended", None),
        ];
        for (said, part) in all
            .into_iter()
            .zip(["SIGINT", "somebody", "echo 1 > ", "has ended"])
        {
            let said = said.unwrap_err();
            assert!(
                said.contains(part) && said.contains("500 of 1000"),
                "{said}"
            );
        }
    }
}
