// SPDX-License-Identifier: GPL-2.0
//! KVM as the judge: the same sequence of interrupts, through KVM's own interfaces and through kvmate,
//! gives the same counts in the guest, and they are those that were sent.

use anyhow::{ensure, Context, Result};
use kvmate_tests::{
    ensure_eq,
    guest::irq::{self, shared::NMI, Chips, Counts, Guest, Running, Trigger},
    ktap,
    module::Kvmate,
    storm,
    way::{self, Target, Way, BOTH},
};
use nix::errno::Errno;
use std::{process::ExitCode, sync::atomic::Ordering::SeqCst, thread};
use vmm_sys_util::eventfd::{EventFd, EFD_NONBLOCK};

fn main() -> ExitCode {
    ktap::main(&[
        ("edges_through_the_ioapic", edges_through_the_ioapic),
        ("edges_through_the_pic", edges_through_the_pic),
        ("lines_up_and_down", lines_up_and_down),
        ("lines_are_one_beside_the_vmm", lines_are_one_beside_the_vmm),
        ("msis_to_each_vcpu", msis_to_each_vcpu),
        ("nmis", nmis),
        ("eventfds_of_edges", eventfds_of_edges),
        ("eventfds_of_msis", eventfds_of_msis),
        ("eventfds_from_many_threads", eventfds_from_many_threads),
        ("held_interrupts_coalesce", held_interrupts_coalesce),
        ("level_with_resample", level_with_resample),
        ("level_shared_with_the_vmm", level_shared_with_the_vmm),
        ("split_irqchip", split_irqchip),
        ("the_vmms_own_irqfd", the_vmms_own_irqfd),
    ])
}

const VECTOR: u8 = 0x51;
/// The first GSI that [`Guest::route`] gives an MSI.
const MSI: u32 = 24;

fn counts(of: &[(usize, u8, u64)]) -> Counts {
    of.iter()
        .map(|(cpu, vector, n)| ((*cpu, *vector), *n))
        .collect()
}

/// A guest in which each way is to have the same outcome.
struct Case {
    chips: Chips,
    vcpus: usize,
    set_up: fn(&Guest) -> Result<()>,
}

impl Case {
    fn new(vcpus: usize, set_up: fn(&Guest) -> Result<()>) -> Self {
        Self {
            chips: Chips::Kernel,
            vcpus,
            set_up,
        }
    }

    /// Do the same each way, in a guest of its own.
    fn judge(
        &self,
        expected: &[(usize, u8, u64)],
        sequence: impl Fn(Way, &Running) -> Result<()>,
    ) -> Result<()> {
        let kvmate = load()?;
        for way in BOTH {
            let mut guest = Guest::new(self.chips, self.vcpus)?;
            (self.set_up)(&guest)?;
            let found = guest.run(|running| {
                sequence(way, running)?;
                running.settled()
            });
            ensure_eq!(
                found.with_context(|| format!("{way:?}"))?,
                counts(expected),
                "interrupts by {way:?}"
            );
        }
        kvmate.unload()
    }
}

/// kvmate, with injection allowed.
fn load() -> Result<Kvmate> {
    let kvmate = Kvmate::load("")?;
    kvmate.write("knobs/inject", "1")?;
    Ok(kvmate)
}

/// Give so many, each when the one before has been taken: none may coalesce. Half of them to a guest
/// that halts, half to one that computes.
fn one_by_one(
    running: &Running,
    (cpu, vector): (usize, u8),
    count: u64,
    mut give: impl FnMut() -> Result<()>,
) -> Result<()> {
    let before = running.count(cpu, vector);
    for number in 1..=count {
        if number == count / 2 {
            running.spin()?;
        }
        let taken = running.count(cpu, vector) - before;
        ensure_eq!(taken, number - 1, "interrupts so far");
        give()?;
        running.until(cpu, vector, before + number)?;
    }
    running.halt();
    Ok(())
}

fn many() -> u64 {
    storm::rounds(600).into()
}

fn edges_through_the_ioapic() -> Result<()> {
    let case = Case::new(1, |guest| {
        guest.ioapic(10, Trigger::Edge, 0, VECTOR);
        guest.ioapic(20, Trigger::Edge, 0, VECTOR + 1);
        Ok(())
    });
    case.judge(
        &[(0, VECTOR, many()), (0, VECTOR + 1, many())],
        |way, running| {
            for (gsi, vector) in [(10, VECTOR), (20, VECTOR + 1)] {
                one_by_one(running, (0, vector), many(), || way.edge(running, gsi))?;
            }
            Ok(())
        },
    )
}

fn edges_through_the_pic() -> Result<()> {
    let case = Case::new(1, |guest| {
        guest.pic(5, Trigger::Edge);
        guest.pic(10, Trigger::Edge);
        Ok(())
    });
    case.judge(&[(0, 0x25, many()), (0, 0x2a, many())], |way, running| {
        for (gsi, vector) in [(5, 0x25), (10, 0x2a)] {
            one_by_one(running, (0, vector), many(), || way.edge(running, gsi))?;
        }
        Ok(())
    })
}

/// A line that is edge-triggered gives one interrupt a rise, one that is level-triggered gives them
/// until it falls.
fn lines_up_and_down() -> Result<()> {
    let case = Case::new(1, |guest| {
        guest.ioapic(10, Trigger::Edge, 0, VECTOR);
        guest.ioapic(11, Trigger::Level, 0, VECTOR + 1);
        Ok(())
    });
    case.judge(&[(0, VECTOR, 20), (0, VECTOR + 1, 20)], |way, running| {
        one_by_one(running, (0, VECTOR), 20, || {
            way.line(running, 10, true)?;
            way.line(running, 10, true)?;
            way.line(running, 10, false)
        })?;
        for number in 1..=20 {
            // Up and down again before the guest can see it: one.
            running.held(|| {
                way.line(running, 11, true)?;
                way.line(running, 11, false)
            })?;
            running.until(0, VECTOR + 1, number)?;
        }
        Ok(())
    })?;
    let kvmate = load()?;
    for way in BOTH {
        let mut guest = Guest::new(Chips::Kernel, 1)?;
        guest.ioapic(11, Trigger::Level, 0, VECTOR);
        let pic = guest.pic(9, Trigger::Level);
        guest.run(|running| {
            for (gsi, vector) in [(11, VECTOR), (9, pic)] {
                way.line(running, gsi, true)?;
                running.until(0, vector, 20)?;
                way.line(running, gsi, false)?;
                let taken = running.settled()?;
                ensure_eq!(
                    running.settled()?,
                    taken,
                    "after the line's fall by {way:?}"
                );
            }
            Ok(())
        })?;
    }
    kvmate.unload()
}

/// A line is up as long as the VMM or kvmate holds it up.
fn lines_are_one_beside_the_vmm() -> Result<()> {
    let kvmate = load()?;
    for (first, second) in [(Way::Kvm, Way::Kvmate), (Way::Kvmate, Way::Kvm)] {
        let mut guest = Guest::new(Chips::Kernel, 1)?;
        guest.ioapic(11, Trigger::Level, 0, VECTOR);
        guest.run(|running| {
            let goes_on = |what: &str| {
                let next = running.count(0, VECTOR) + 20;
                running.until(0, VECTOR, next).context(what.to_owned())
            };
            first.line(running, 11, true)?;
            goes_on("one holds it up")?;
            second.line(running, 11, true)?;
            goes_on("both hold it up")?;
            first.line(running, 11, false)?;
            goes_on("the other holds it up")?;
            second.line(running, 11, false)?;
            let taken = running.settled()?;
            ensure_eq!(running.settled()?, taken, "nobody holds it up");
            Ok(())
        })?;
    }
    kvmate.unload()
}

fn msis_to_each_vcpu() -> Result<()> {
    let case = Case::new(2, |guest| guest.route(&[irq::msi(0, 0x99)]));
    case.judge(
        &[(0, VECTOR, many()), (1, VECTOR, many())],
        |way, running| {
            for cpu in 0..2 {
                one_by_one(running, (cpu, VECTOR), many(), || {
                    way.msi(running, irq::msi(cpu, VECTOR))
                })?;
            }
            Ok(())
        },
    )
}

fn nmis() -> Result<()> {
    let case = Case::new(2, |guest| guest.route(&[irq::msi(0, 0x99)]));
    // By the name, by an MSI, and to a guest that takes no interrupts.
    case.judge(&[(0, NMI, 100), (1, NMI, 301)], |way, running| {
        one_by_one(running, (1, NMI), 200, || way.nmi(running, 1))?;
        one_by_one(running, (1, NMI), 100, || way.msi(running, irq::nmi(1)))?;
        one_by_one(running, (0, NMI), 100, || way.nmi(running, 0))?;
        running.held(|| {
            way.nmi(running, 1)?;
            running.until(1, NMI, 301)
        })
    })
}

fn eventfds_of_edges() -> Result<()> {
    let case = Case::new(1, |guest| {
        guest.ioapic(10, Trigger::Edge, 0, VECTOR);
        guest.pic(5, Trigger::Edge);
        Ok(())
    });
    case.judge(&[(0, VECTOR, many()), (0, 0x25, many())], |way, running| {
        for (gsi, vector) in [(10, VECTOR), (5, 0x25)] {
            let irqfd = way.irqfd(running, Target::Gsi(gsi))?;
            one_by_one(running, (0, vector), many(), || irqfd.signal())?;
        }
        Ok(())
    })
}

fn eventfds_of_msis() -> Result<()> {
    let case = Case::new(2, |guest| {
        guest.route(&[irq::msi(0, VECTOR), irq::msi(1, VECTOR)])
    });
    let expected = [(0, VECTOR, 2 * many()), (1, VECTOR, 2 * many())];
    case.judge(&expected, |way, running| {
        for cpu in 0..2 {
            let gsi = MSI + cpu as u32;
            for target in [Target::Gsi(gsi), Target::Msi(irq::msi(cpu, VECTOR), gsi)] {
                let irqfd = way.irqfd(running, target)?;
                one_by_one(running, (cpu, VECTOR), many(), || irqfd.signal())?;
            }
        }
        Ok(())
    })
}

/// Each thread its own eventfd and vector, all at once.
fn eventfds_from_many_threads() -> Result<()> {
    let case = Case::new(2, |guest| {
        for (pin, vector) in (10..).zip(0x60..0x63) {
            guest.ioapic(pin, Trigger::Edge, usize::from(vector % 2), vector);
        }
        let msis: Vec<_> = (0x70..0x73)
            .map(|v| irq::msi(usize::from(v % 2), v))
            .collect();
        guest.route(&msis)
    });
    let vectors = (0x60..0x63).chain(0x70..0x73);
    let all = vectors.map(|v| (usize::from(v % 2), v, many() / 3));
    case.judge(&all.collect::<Vec<_>>(), |way, running| {
        thread::scope(|scope| -> Result<()> {
            let mut threads = Vec::new();
            for (gsi, vector) in (10..).zip(0x60..0x63).chain((MSI..).zip(0x70..0x73)) {
                threads.push(scope.spawn(move || -> Result<()> {
                    let irqfd = way.irqfd(running, Target::Gsi(gsi))?;
                    for number in 1..=many() / 3 {
                        irqfd.signal()?;
                        running.until(usize::from(vector % 2), vector, number)?;
                    }
                    Ok(())
                }));
            }
            let ended = threads.into_iter().map(|t| t.join().expect("a thread"));
            ended.collect()
        })
    })
}

/// What a guest that takes nothing is given is one, however it comes.
fn held_interrupts_coalesce() -> Result<()> {
    let case = Case::new(1, |guest| {
        guest.ioapic(10, Trigger::Edge, 0, VECTOR);
        guest.pic(5, Trigger::Edge);
        guest.route(&[irq::msi(0, VECTOR + 1)])
    });
    let expected = [(0, VECTOR, 10), (0, VECTOR + 1, 10), (0, 0x25, 10)];
    case.judge(&expected, |way, running| {
        let edges = way.irqfd(running, Target::Gsi(10))?;
        let msis = way.irqfd(running, Target::Gsi(MSI))?;
        for number in 1..=10 {
            running.held(|| {
                for _ in 0..5 {
                    edges.signal()?;
                    msis.signal()?;
                    way.edge(running, 10)?;
                    way.edge(running, 5)?;
                    way.msi(running, irq::msi(0, VECTOR + 1))?;
                }
                // All of it is in the chips before the guest goes on.
                storm::until("the eventfds are empty", || {
                    Ok(taken(edges.eventfd())? && taken(msis.eventfd())?)
                })?;
                // Pins are a worker's, who tells nobody when it is done.
                thread::sleep(std::time::Duration::from_millis(100));
                Ok(())
            })?;
            for (_, vector, _) in expected {
                running.until(0, vector, number)?;
            }
        }
        Ok(())
    })
}

/// Whether what was written to an eventfd has been taken out.
fn taken(eventfd: &EventFd) -> Result<bool> {
    use nix::poll::{poll, PollFd, PollFlags, PollTimeout};
    use std::os::fd::{AsRawFd, BorrowedFd};
    // SAFETY: Open as long as the eventfd is borrowed.
    let fd = unsafe { BorrowedFd::borrow_raw(eventfd.as_raw_fd()) };
    let mut fds = [PollFd::new(fd, PollFlags::POLLIN)];
    Ok(poll(&mut fds, PollTimeout::ZERO)? == 0)
}

/// A device that wants `count` interrupts: raises its line, and raises it again at each EOI as long as
/// it wants more.
fn device(way: Way, running: &Running, gsi: u32, vector: u8, count: u64) -> Result<()> {
    let served = EventFd::new(EFD_NONBLOCK)?;
    let irqfd = way.irqfd(running, Target::Level(gsi, &served))?;
    let wanted = &running.machine().devices[usize::from(vector)];
    let before = running.count(0, vector);
    wanted.store(count, SeqCst);
    irqfd.signal()?;
    for number in 1..=count {
        storm::until("the guest's EOI", || Ok(served.read().is_ok()))
            .with_context(|| format!("{number} of {count}, {:x?}", running.counts()))?;
        // The line is down: nothing comes until it is raised again.
        ensure_eq!(
            running.count(0, vector),
            before + number,
            "interrupts at EOI {number}"
        );
        ensure_eq!(wanted.load(SeqCst), count - number, "what the device wants");
        if number % 7 == 0 {
            let taken = running.settled()?;
            ensure_eq!(taken[&(0, vector)], before + number, "with the line down");
        }
        if number < count {
            irqfd.signal()?;
        }
    }
    let taken = running.settled()?;
    ensure_eq!(taken[&(0, vector)], before + count, "when it wants no more");
    ensure!(served.read().is_err(), "one EOI more was told of");
    Ok(())
}

fn level_with_resample() -> Result<()> {
    let case = Case::new(1, |guest| {
        guest.ioapic(11, Trigger::Level, 0, VECTOR);
        guest.pic(9, Trigger::Level);
        guest.pic(4, Trigger::Level);
        Ok(())
    });
    let expected = [(0, VECTOR, 200), (0, 0x29, 100), (0, 0x24, 100)];
    case.judge(&expected, |way, running| {
        device(way, running, 11, VECTOR, 100)?;
        device(way, running, 9, 0x29, 100)?;
        device(way, running, 4, 0x24, 100)?;
        running.spin()?;
        device(way, running, 11, VECTOR, 100)
    })
}

/// An EOI lowers what the binding holds up, and not what the VMM does.
fn level_shared_with_the_vmm() -> Result<()> {
    let kvmate = load()?;
    for way in BOTH {
        let mut guest = Guest::new(Chips::Kernel, 1)?;
        guest.ioapic(11, Trigger::Level, 0, VECTOR);
        guest.run(|running| {
            let served = EventFd::new(EFD_NONBLOCK)?;
            let irqfd = way.irqfd(running, Target::Level(11, &served))?;
            running.vm.fd.set_irq_line(11, true)?;
            irqfd.signal()?;
            storm::until("the guest's EOI", || Ok(served.read().is_ok()))?;
            let next = running.count(0, VECTOR) + 20;
            running
                .until(0, VECTOR, next)
                .context("the VMM holds it up")?;
            running.vm.fd.set_irq_line(11, false)?;
            let taken = running.settled()?;
            ensure_eq!(running.settled()?, taken, "nobody holds it up, {way:?}");
            Ok(())
        })?;
    }
    kvmate.unload()
}

fn split_irqchip() -> Result<()> {
    let case = Case {
        chips: Chips::Split,
        vcpus: 1,
        set_up: |guest| guest.route(&[irq::msi(0, VECTOR)]),
    };
    case.judge(&[(0, VECTOR, 2 * many()), (0, NMI, 20)], |way, running| {
        let irqfd = way.irqfd(running, Target::Gsi(MSI))?;
        one_by_one(running, (0, VECTOR), many(), || irqfd.signal())?;
        one_by_one(running, (0, VECTOR), many(), || {
            way.msi(running, irq::msi(0, VECTOR))
        })?;
        one_by_one(running, (0, NMI), 20, || way.nmi(running, 0))?;
        let (signal, served) = (EventFd::new(0)?, EventFd::new(0)?);
        let refused = match way {
            Way::Kvm => {
                let fd = &running.vm.fd;
                let bound = fd.register_irqfd_with_resample(&signal, &served, 11);
                (bound.map_err(|e| Errno::from_raw(e.errno())), Errno::EINVAL)
            }
            Way::Kvmate => {
                let target = Target::Level(11, &served);
                let bound = way::bind(&way::request(&running.vm.fd, &signal, target));
                (bound.map(drop), Errno::ENXIO)
            }
        };
        ensure_eq!(refused.0, Err(refused.1), "resample by {way:?}");
        Ok(())
    })
}

/// `irqfd GSI`: what a device model would have done, through the VMM's own irqfd.
fn the_vmms_own_irqfd() -> Result<()> {
    let case = Case::new(1, |guest| {
        guest.ioapic(10, Trigger::Edge, 0, VECTOR);
        guest.route(&[irq::msi(0, VECTOR + 1), irq::msi(0, VECTOR + 2)])
    });
    case.judge(
        &[(0, VECTOR, many()), (0, VECTOR + 1, many())],
        |way, running| {
            let (edges, msis) = (EventFd::new(0)?, EventFd::new(0)?);
            running.vm.fd.register_irqfd(&edges, 10)?;
            running.vm.fd.register_irqfd(&msis, MSI)?;
            for (irqfd, gsi, vector) in [(&edges, 10, VECTOR), (&msis, MSI, VECTOR + 1)] {
                one_by_one(running, (0, vector), many(), || match way {
                    Way::Kvm => Ok(irqfd.write(1)?),
                    Way::Kvmate => way::inject(running.name, &format!("irqfd {gsi}")),
                })?;
            }
            Ok(())
        },
    )
}
