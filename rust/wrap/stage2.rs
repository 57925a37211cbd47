// SPDX-License-Identifier: GPL-2.0
//! A VM's stage-2 tables, read while KVM works on them.
//!
//! C headers: [`include/linux/kvm_host.h`](srctree/include/linux/kvm_host.h),
//! [`arch/x86/include/asm/kvm_host.h`](srctree/arch/x86/include/asm/kvm_host.h)

use super::kvm::{LiveVcpu, LiveVm};
use crate::{
    pure::stage2::{
        walk::{self, ENTRIES},
        Class, Entry, Format,
    },
    raw,
};
use core::{
    marker::PhantomData,
    ptr::NonNull,
    sync::atomic::{AtomicU64, Ordering::Relaxed},
};

/// What kind of tables a root is of: KVM's role of it.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct Role(u32);

impl Role {
    fn parts(self) -> raw::kvmate_role {
        let mut parts = raw::kvmate_role::default();
        // SAFETY: No condition.
        unsafe { raw::kvmate_role(self.0, &mut parts) };
        parts
    }

    /// The root's level.
    pub(crate) fn level(self) -> u8 {
        self.parts().level
    }

    /// The address space that it maps.
    pub(crate) fn address_space(self) -> u32 {
        self.parts().as_.into()
    }

    /// Whether it is by guest-physical addresses and of hardware's two stages. (Without these KVM
    /// has direct tables too, for a guest that has switched paging off: they have three levels.)
    pub(crate) fn is_stage2(self) -> bool {
        let parts = self.parts();
        parts.direct && parts.level >= 4
    }
}

/// A root: where, and what of. To compare, never to follow.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct RootId {
    hpa: u64,
    pub(crate) role: Role,
}

impl RootId {
    fn new(hpa: u64, role: u32) -> Option<Self> {
        // SAFETY: No condition.
        let valid = unsafe { raw::kvmate_root_valid(hpa) };
        valid.then_some(Self {
            hpa,
            role: Role(role),
        })
    }
}

impl LiveVcpu<'_> {
    /// The roots that it has now: its own, and that of the guest nested in its.
    pub(crate) fn roots(self) -> (Option<RootId>, Option<RootId>) {
        let mut roots = raw::kvmate_roots::default();
        // SAFETY: A live vCPU (type invariant).
        unsafe { raw::kvmate_vcpu_roots(self.as_ptr(), &mut roots) };
        (
            RootId::new(roots.own, roots.own_role),
            RootId::new(roots.nested, roots.nested_role),
        )
    }
}

/// KVM's MMU lock, held for reading, inside RCU's read side: what a vCPU's root leads to stays. Kept
/// for microseconds only; nothing in it may sleep. To take it, it is taken for writing for a moment.
///
/// # Invariants
///
/// Both are held until this is dropped, and `root` was in use when that began.
pub(crate) struct Mmu<'a> {
    vm: LiveVm<'a>,
    root: Option<RootId>,
}

impl<'a> Mmu<'a> {
    /// Take it, for the tables that the vCPU uses now. Process context.
    pub(crate) fn enter(vcpu: LiveVcpu<'a>) -> Self {
        let vm = vcpu.vm();
        let mut role = 0;
        // SAFETY: A live vCPU and its VM (type invariants); given back in `drop`.
        let hpa = unsafe { raw::kvmate_mmu_enter(vm.as_ptr().as_ptr(), vcpu.as_ptr(), &mut role) };
        // INVARIANT: Taken just now, and the C part says how the root is known to be in use.
        Self {
            vm,
            root: RootId::new(hpa, role),
        }
    }

    /// Whose tables: the vCPU's root, if it has one and it stays the same for a moment.
    pub(crate) fn id(&self) -> Option<RootId> {
        self.root
    }

    /// The tables, if they are of stage 2.
    pub(crate) fn root(&self) -> Option<walk::Root<Table<'_>>> {
        let RootId { hpa, role } = self.root?;
        let level = role.level();
        role.is_stage2().then_some(())?;
        // SAFETY: In use (type invariant), so it is a table, for as long as the lock is held.
        let table = unsafe { Table::new(hpa, level) }?;
        let format = format();
        Some(walk::Root {
            table,
            level,
            format,
        })
    }
}

impl Drop for Mmu<'_> {
    fn drop(&mut self) {
        // SAFETY: Taken in `enter`.
        unsafe { raw::kvmate_mmu_leave(self.vm.as_ptr().as_ptr()) };
    }
}

/// A table.
///
/// # Invariants
///
/// `entries` points to a page of entries that stays for `'a`.
#[derive(Clone, Copy)]
pub(crate) struct Table<'a> {
    entries: NonNull<[AtomicU64; ENTRIES]>,
    level: u8,
    _mmu: PhantomData<&'a ()>,
}

impl Table<'_> {
    /// # Safety
    ///
    /// `entry` has the address of a table that stays for the lifetime, if it is memory of the kernel's.
    unsafe fn new(entry: u64, level: u8) -> Option<Self> {
        // SAFETY: No condition.
        let entries = unsafe { raw::kvmate_mmu_table(entry) };
        // INVARIANT: The caller's promise.
        Some(Self {
            entries: NonNull::new(entries.cast_mut())?.cast(),
            level,
            _mmu: PhantomData,
        })
    }
}

impl walk::Table for Table<'_> {
    #[inline(always)]
    fn entry(self, index: usize) -> u64 {
        // SAFETY: A page that stays (type invariant); KVM and hardware write whole entries.
        let entries = unsafe { self.entries.as_ref() };
        entries.get(index).map_or(0, |entry| entry.load(Relaxed))
    }

    fn child(self, index: usize) -> Option<Self> {
        let entry = Entry {
            raw: self.entry(index),
            level: self.level,
            format: format(),
        };
        if entry.class() != Class::Table {
            return None;
        }
        // SAFETY: A present entry that is no leaf, of a table that is in use or was when the lock was
        // taken: it leads to a table, which stays as long as this one (RCU, and the lock).
        unsafe { Self::new(entry.raw, self.level - 1) }
    }
}

/// Whose entries this machine's tables have.
pub(crate) fn format() -> Format {
    // SAFETY: No condition.
    match unsafe { raw::kvmate_ept() } {
        true => Format::Ept,
        false => Format::Npt,
    }
}

/// How many bits a physical address has, without those of memory encryption.
pub(crate) fn physical_bits() -> u8 {
    // SAFETY: No condition.
    unsafe { raw::kvmate_physical_bits() }
}
