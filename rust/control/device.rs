// SPDX-License-Identifier: GPL-2.0
//! `/dev/kvmate`: the ioctls of `uapi/kvmate.h`.

use crate::{
    hold::{Gmem, Wish},
    pure::text,
    see::Watch,
    wrap::{capability, folio::Node, uabi},
};
use kernel::{
    fs::File,
    miscdevice::{MiscDevice, MiscDeviceOptions, MiscDeviceRegistration},
    prelude::*,
    uaccess::{UserPtr, UserSlice},
};

/// The registered device. The node is 0600, and an open descriptor holds the module.
pub(crate) struct Device;

/// What an open descriptor is: nothing to keep yet.
pub(crate) struct Session;

/// The registration that [`Device::register`] gives.
pub(crate) type Registration = MiscDeviceRegistration<Session>;

impl Device {
    /// Make `/dev/kvmate`.
    pub(crate) fn register() -> Result<Pin<KBox<Registration>>> {
        let options = MiscDeviceOptions { name: c"kvmate" };
        KBox::pin_init(MiscDeviceRegistration::register(options), GFP_KERNEL)
            .inspect_err(|error| pr_err!("no /dev/kvmate: {error:?}\n"))
    }
}

#[vtable]
impl MiscDevice for Session {
    type Ptr = KBox<Self>;

    fn open(_file: &File, _misc: &MiscDeviceRegistration<Self>) -> Result<KBox<Self>> {
        if !capability::sys_admin() {
            return Err(EPERM);
        }
        Ok(KBox::new(Self, GFP_KERNEL)?)
    }

    fn ioctl(_session: &Self, _file: &File, cmd: u32, arg: usize) -> Result<isize> {
        match cmd {
            uabi::GET_INFO => get_info(UserSlice::new(
                UserPtr::from_addr(arg),
                size_of::<uabi::Info>(),
            )),
            uabi::GMEM_CREATE => gmem_create(UserSlice::new(
                UserPtr::from_addr(arg),
                size_of::<uabi::Gmem>(),
            )),
            _ => Err(ENOTTY),
        }
    }
}

/// `KVMATE_GET_INFO`
fn get_info(argument: UserSlice) -> Result<isize> {
    let (mut reader, mut writer) = argument.reader_writer();
    let asked: uabi::Info = reader.read()?;
    if asked.flags != 0 || asked.reserved != 0 {
        return Err(EINVAL);
    }
    let mut features = 0;
    if Watch::possible() {
        features |= uabi::FEATURE_KVM | uabi::FEATURE_EXITS;
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

/// `KVMATE_GMEM_CREATE`
fn gmem_create(argument: UserSlice) -> Result<isize> {
    let asked: uabi::Gmem = argument.reader().read()?;
    if asked.reserved != [0; 2] || asked.flags & !(uabi::GMEM_SMALL | uabi::GMEM_NODE) != 0 {
        return Err(EINVAL);
    }
    let node = match (asked.flags & uabi::GMEM_NODE != 0, asked.node) {
        (true, number) => Node::new(number).ok_or(EINVAL)?,
        (false, 0) => Node::Any,
        (false, _) => return Err(EINVAL),
    };
    Gmem::get().ok_or(ENODEV)?.create(&Wish {
        size: asked.size,
        small: asked.flags & uabi::GMEM_SMALL != 0,
        node,
        name: CStr::from_bytes_until_nul(&asked.name).map_err(|_| EINVAL)?,
    })
}
