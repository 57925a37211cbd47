// SPDX-License-Identifier: GPL-2.0
//! `/dev/kvmate`: the ioctls of `uapi/kvmate.h`.

use super::State;
use crate::{
    hold::{Gmem, Wish},
    poke::{self, Poke},
    pure::text,
    see::{self, Answer, Watch},
    wrap::{
        capability,
        folio::Node,
        slot::{Filled, Slot},
        uabi,
    },
};
use kernel::{
    fs::File,
    miscdevice::{MiscDevice, MiscDeviceOptions, MiscDeviceRegistration},
    prelude::*,
    sync::Arc,
    uaccess::{UserPtr, UserSlice},
};

/// What ioctls work on.
struct Target {
    watch: Arc<Watch>,
    poke: Arc<Poke>,
    gmem: Arc<Gmem>,
}

/// For [`Session::open`], which is given nothing of ours.
static TARGET: Slot<Target> = Slot::new();

/// The registered device. The node is 0600, and an open descriptor holds the module. The fields' order
/// is that of the end.
pub(crate) struct Device {
    _registration: Pin<KBox<MiscDeviceRegistration<Session>>>,
    _target: Filled<Target>,
}

/// What an open descriptor is.
struct Session(Arc<Target>);

impl Device {
    /// Make `/dev/kvmate`.
    pub(crate) fn register(state: &State) -> Result<Self> {
        let target = Target {
            watch: state.watch.clone(),
            poke: state.poke.clone(),
            gmem: state.gmem.clone(),
        };
        let target = TARGET.fill(Arc::new(target, GFP_KERNEL)?);
        let options = MiscDeviceOptions { name: c"kvmate" };
        let registration = KBox::pin_init(MiscDeviceRegistration::register(options), GFP_KERNEL)
            .inspect_err(|error| pr_err!("no /dev/kvmate: {error:?}\n"))?;
        Ok(Self {
            _registration: registration,
            _target: target,
        })
    }
}

#[vtable]
impl MiscDevice for Session {
    type Ptr = KBox<Self>;

    fn open(_file: &File, _misc: &MiscDeviceRegistration<Self>) -> Result<KBox<Self>> {
        if !capability::sys_admin() {
            return Err(EPERM);
        }
        let target = TARGET.get().ok_or(ENODEV)?;
        Ok(KBox::new(Self(target), GFP_KERNEL)?)
    }

    fn ioctl(Session(target): &Self, _file: &File, cmd: u32, arg: usize) -> Result<isize> {
        let argument = |size| UserSlice::new(UserPtr::from_addr(arg), size);
        match cmd {
            uabi::GET_INFO => get_info(target, argument(size_of::<uabi::Info>())),
            uabi::GET_VM_STATS => get_vm_stats(target, argument(size_of::<uabi::VmStats>())),
            uabi::GMEM_CREATE => gmem_create(target, argument(size_of::<uabi::Gmem>())),
            uabi::BIND_IRQFD => bind_irqfd(target, argument(size_of::<uabi::Irqfd>())),
            uabi::LOOKUP => look_up(target, argument(size_of::<uabi::LookUp>())),
            _ => Err(ENOTTY),
        }
    }
}

/// `KVMATE_GET_INFO`
fn get_info(target: &Target, argument: UserSlice) -> Result<isize> {
    let (mut reader, mut writer) = argument.reader_writer();
    let asked: uabi::Info = reader.read()?;
    if asked.flags != 0 || asked.reserved != 0 {
        return Err(EINVAL);
    }
    let mut features = 0;
    if Watch::possible() {
        features |= uabi::FEATURE_KVM | uabi::FEATURE_EXITS;
    }
    if target.watch.shows_vms() {
        features |= uabi::FEATURE_POKE;
    }
    writer.write(&uabi::Info {
        flags: 0,
        reserved: 0,
        features: features.into(),
        version: text::fixed(uabi::VERSION),
        release: text::fixed(uabi::release().to_bytes()),
    })?;
    Ok(0)
}

/// `KVMATE_GET_VM_STATS`
fn get_vm_stats(target: &Target, argument: UserSlice) -> Result<isize> {
    let asked: uabi::VmStats = argument.reader().read()?;
    let descriptor = see::open_stats(&target.watch, &asked)?;
    Ok(descriptor as isize)
}

/// `KVMATE_GMEM_CREATE`
fn gmem_create(target: &Target, argument: UserSlice) -> Result<isize> {
    let asked: uabi::Gmem = argument.reader().read()?;
    if asked.reserved != [0; 2] || asked.flags & !(uabi::GMEM_SMALL | uabi::GMEM_NODE) != 0 {
        return Err(EINVAL);
    }
    let node = match (asked.flags & uabi::GMEM_NODE != 0, asked.node) {
        (true, number) => Node::new(number).ok_or(EINVAL)?,
        (false, 0) => Node::Any,
        (false, _) => return Err(EINVAL),
    };
    target.gmem.create(&Wish {
        size: asked.size,
        small: asked.flags & uabi::GMEM_SMALL != 0,
        node,
        name: CStr::from_bytes_until_nul(&asked.name).map_err(|_| EINVAL)?,
    })
}

/// `KVMATE_BIND_IRQFD`
fn bind_irqfd(target: &Target, argument: UserSlice) -> Result<isize> {
    let asked: uabi::Irqfd = argument.reader().read()?;
    let descriptor = poke::bind(&target.watch, &target.poke, &asked)?;
    Ok(descriptor as isize)
}

/// `KVMATE_LOOKUP`
fn look_up(target: &Target, argument: UserSlice) -> Result<isize> {
    let (mut reader, mut writer) = argument.reader_writer();
    let asked: uabi::LookUp = reader.read()?;
    if asked.flags != 0
        || asked.reserved != [0; 9]
        || !Answer::can_be(asked.address_space, asked.gpa)
    {
        return Err(EINVAL);
    }
    let answer = target
        .watch
        .look_up(asked.vm_fd, asked.address_space, asked.gpa)?;
    let mut told = uabi::LookUp {
        vm_fd: asked.vm_fd,
        gpa: asked.gpa,
        address_space: asked.address_space,
        why: answer.why.map_or(0, |why| uabi::WHY_FIRST + why as u32),
        ..Default::default()
    };
    if let Some(slot) = &answer.slot {
        told.found |= uabi::FOUND_SLOT;
        (told.slot, told.slot_flags, told.hva) = (slot.id, slot.flags, answer.hva);
        (told.slot_gpa, told.slot_size) = (slot.gfn << 12, slot.pages << 12);
    }
    if let Some(entry) = &answer.entry {
        told.found |= uabi::FOUND_STAGE2;
        (told.stage2_entry, told.stage2_level) = (entry.raw, entry.level.into());
    }
    if let Some(leaf) = &answer.leaf {
        told.found |= uabi::FOUND_HOST;
        (told.pfn, told.host_level) = (leaf.pfn, leaf.level.into());
        let flag = |set, flag| if set { flag } else { 0 };
        told.host_flags = flag(leaf.writable, uabi::HOST_WRITE)
            | flag(leaf.dirty, uabi::HOST_DIRTY)
            | flag(leaf.accessed, uabi::HOST_ACCESSED);
    }
    if let Some(leaf) = answer.leaf.filter(|leaf| leaf.folio) {
        told.found |= uabi::FOUND_FOLIO;
        (told.page_flags, told.cgroup, told.order) = (leaf.flags, leaf.cgroup, leaf.order);
        (told.refcount, told.expected) = (leaf.refcount, leaf.expected);
        (told.mapcount, told.node) = (leaf.mapcount, leaf.node);
    }
    writer.write(&told)?;
    Ok(0)
}
