// SPDX-License-Identifier: GPL-2.0
//! Whether the running KVM's structures are those that we were compiled for.
//!
//! Vermagic does not notice a kvm.ko that was built again alone. So nothing is read from a structure
//! of KVM's before its layout is proven: by the running module's own BTF, or, where there is none, by
//! its build id being that of the tree we were built against. vmlinux's BTF alone proves nothing of a
//! module, for it may have a `struct kvm` of its own that the module does not use.

use crate::{
    pure::{
        btf::{Btf, Types, MARKS},
        build_id, layout,
    },
    wrap::{
        exit_source::{self, Svm},
        layout::Owner,
        sysfs,
    },
};
use kernel::{
    fmt, new_mutex,
    prelude::*,
    sync::{Arc, Mutex},
};

/// More than any kernel's BTF has.
const BTF_LIMIT: usize = 64 << 20;
/// More than any notes have.
const NOTES_LIMIT: usize = 1 << 16;

const VMLINUX_BTF: &CStr = c"/sys/kernel/btf/vmlinux";
const VMLINUX_NOTES: &CStr = c"/sys/kernel/notes";

/// What is known of one module's structures.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// The module is not loaded.
    Absent,
    /// They are those we were compiled for.
    Proven(By),
    /// They are not, or who knows.
    Unproven(Owner, Why),
}

/// What proved it.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum By {
    /// Offsets and sizes in the running module's types.
    Btf,
    /// It is the very file of the tree that we were built against.
    BuildId,
}

/// Why it is not proven.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Why {
    /// BTF says that something is elsewhere.
    Differs(layout::Difference<'static>),
    /// No BTF, and the running module is not the one of the tree built against.
    OtherBuildId,
    /// No BTF, and the tree built against had no such file.
    NoBuildId,
    /// No sysfs where we look.
    NoSysfs,
    /// What sysfs has could not be read.
    Unreadable(Error),
}

/// What is known now.
#[pin_data]
pub(crate) struct Layouts {
    /// Held while it is found out, so that what was found last is kept.
    #[pin]
    checking: Mutex<()>,
    /// Never held over reading a file: who shows this holds a `seq_file`'s lock, and files of sysfs
    /// have such locks too.
    #[pin]
    verdicts: Mutex<[(Owner, Verdict); 2]>,
}

impl Layouts {
    /// Nothing is known yet.
    pub(crate) fn new() -> Result<Arc<Self>> {
        Arc::pin_init(
            pin_init!(Self {
                checking <- new_mutex!(()),
                verdicts <- new_mutex!(
                    [Owner::Kvm, Owner::KvmAmd].map(|owner| (owner, Verdict::Absent))
                ),
            }),
            GFP_KERNEL,
        )
    }

    /// kvm has gone.
    pub(super) fn forget(&self) {
        let _checking = self.checking.lock();
        for (_, verdict) in self.verdicts.lock().iter_mut() {
            *verdict = Verdict::Absent;
        }
    }

    /// Find out: to be called where kvm is there, when a module of KVM has come (it is live) or goes.
    /// What is refused now and was not before is told in the log. Sleeps, and reads files of the
    /// current task's `/sys`. `keep_kvm`: kvm is the one that was proven before.
    pub(super) fn check(&self, keep_kvm: bool) {
        let _checking = self.checking.lock();
        let before = self.all();
        let there = before.map(|(owner, _)| is_there(owner));
        // vmlinux's types are read once, if at all.
        let blob = match there.contains(&Ok(true)) {
            true => sysfs::read(VMLINUX_BTF, BTF_LIMIT).ok(),
            false => None,
        };
        let mut marks = KVec::from_elem(0, MARKS, GFP_KERNEL).unwrap_or_default();
        let base = blob
            .as_ref()
            .and_then(|blob| Types::of_vmlinux(blob, &mut marks).ok());
        let mut now = before;
        for ((owner, verdict), there) in now.iter_mut().zip(there) {
            if keep_kvm && *owner == Owner::Kvm {
                continue;
            }
            *verdict = match there {
                Ok(true) => prove(*owner, base.as_ref()),
                Ok(false) => Verdict::Absent,
                Err(why) => Verdict::Unproven(*owner, why),
            };
        }
        *self.verdicts.lock() = now;
        exit_source::set_svm(self.svm());
        for ((owner, now), (_, before)) in now.iter().zip(&before) {
            if let (true, Verdict::Unproven(_, why)) = (now != before, now) {
                let refused = match (owner, why) {
                    (Owner::Kvm, _) => "VMs are not shown",
                    (Owner::KvmAmd, Why::Differs(_)) => "exit reasons are not shown",
                    (Owner::KvmAmd, _) => "each vCPU has to prove where its exit reasons are",
                };
                let name = owner.name();
                pr_warn!("{name}: {}: {refused}\n", Reason(*owner, *why));
            }
        }
    }

    /// Whether `struct kvm` and `struct kvm_vcpu` may be read.
    pub(super) fn kvm_proven(&self) -> bool {
        let [(_, verdict), _] = self.all();
        matches!(verdict, Verdict::Proven(_))
    }

    /// What is known of `struct vcpu_svm`.
    fn svm(&self) -> Svm {
        let [_, (_, verdict)] = self.all();
        match verdict {
            Verdict::Proven(_) => Svm::Proven,
            Verdict::Unproven(_, Why::Differs(_)) => Svm::Refuted,
            Verdict::Unproven(..) | Verdict::Absent => Svm::Undecided,
        }
    }

    /// Each module and what is known of its structures.
    pub(crate) fn all(&self) -> [(Owner, Verdict); 2] {
        *self.verdicts.lock()
    }
}

/// Whether the running module's structures are those we were compiled for; `base` are vmlinux's
/// types, if it has any.
fn prove(owner: Owner, base: Option<&Types<'_>>) -> Verdict {
    let proven = match base.and_then(|base| by_btf(owner, base)) {
        Some(None) => Ok(By::Btf),
        Some(Some(difference)) => Err(Why::Differs(difference)),
        None => by_build_id(owner).map(|()| By::BuildId),
    };
    proven.map_or_else(|why| Verdict::Unproven(owner, why), Verdict::Proven)
}

/// Whether the module is there and stays: one that comes or goes is not.
fn is_there(owner: Owner) -> Result<bool, Why> {
    let state = match owner {
        _ if owner.is_built_in() => return Ok(true),
        Owner::Kvm => c"/sys/module/kvm/initstate",
        Owner::KvmAmd => c"/sys/module/kvm_amd/initstate",
    };
    match sysfs::read(state, NOTES_LIMIT) {
        Ok(state) => Ok(state.starts_with(b"live")),
        Err(ENOENT) if sysfs::is_mounted() => Ok(false),
        Err(ENOENT | EXDEV) => Err(Why::NoSysfs),
        Err(error) => Err(Why::Unreadable(error)),
    }
}

/// What differs in BTF, if anything does. Nothing at all: the module has none, or none that can be
/// read.
fn by_btf(owner: Owner, base: &Types<'_>) -> Option<Option<layout::Difference<'static>>> {
    let path = match owner {
        Owner::Kvm => c"/sys/kernel/btf/kvm",
        Owner::KvmAmd => c"/sys/kernel/btf/kvm_amd",
    };
    if owner.is_built_in() {
        return layout::compare(Btf::new(base, None), owner.expected()).ok();
    }
    let own = sysfs::read(path, BTF_LIMIT).ok()?;
    let mut marks = KVec::from_elem(0, MARKS, GFP_KERNEL).ok()?;
    let own = Types::of_module(&own, base, &mut marks).ok()?;
    layout::compare(Btf::new(base, Some(&own)), owner.expected()).ok()
}

/// Compare the build ids.
fn by_build_id(owner: Owner) -> Result<(), Why> {
    let expected = owner.build_id();
    if expected.is_empty() {
        return Err(Why::NoBuildId);
    }
    let notes = match owner {
        _ if owner.is_built_in() => VMLINUX_NOTES,
        Owner::Kvm => c"/sys/module/kvm/notes/.note.gnu.build-id",
        Owner::KvmAmd => c"/sys/module/kvm_amd/notes/.note.gnu.build-id",
    };
    match sysfs::read(notes, NOTES_LIMIT) {
        Ok(notes) if build_id::find(&notes) == Some(expected) => Ok(()),
        Ok(_) => Err(Why::OtherBuildId),
        Err(ENOENT | EXDEV) if !sysfs::is_mounted() => Err(Why::NoSysfs),
        Err(error) => Err(Why::Unreadable(error)),
    }
}

/// A reason with what it is about, as it stands in the log and in the table.
struct Reason(Owner, Why);

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self(owner, why) = self;
        if let Why::Differs(difference) = why {
            return write!(f, "{difference}");
        }
        let mut before: &[u8] = b"";
        for expected in owner.expected() {
            if expected.of != before {
                let and = if before.is_empty() { "" } else { " and " };
                let name = core::str::from_utf8(expected.of).unwrap_or("?");
                write!(f, "{and}struct {name}")?;
                before = expected.of;
            }
        }
        f.write_str(" cannot be proven (")?;
        match why {
            Why::Differs(_) => {}
            Why::OtherBuildId => f.write_str("no BTF, and not the build id built against")?,
            Why::NoBuildId => f.write_str("no BTF, and no build id to compare with")?,
            Why::NoSysfs => f.write_str("no sysfs at /sys")?,
            Why::Unreadable(error) => write!(f, "sysfs: {error:?}")?,
        }
        f.write_str(")")
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Absent => f.write_str("absent"),
            Self::Proven(By::Btf) => f.write_str("proven by BTF"),
            Self::Proven(By::BuildId) => f.write_str("proven by build id"),
            Self::Unproven(owner, why) => {
                f.write_str("unproven: ")?;
                fmt::Display::fmt(&Reason(*owner, *why), f)
            }
        }
    }
}
