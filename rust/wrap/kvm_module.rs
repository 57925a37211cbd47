// SPDX-License-Identifier: GPL-2.0
//! kvm and its vendor modules, as they come and go.
//!
//! kvmate depends on none of them: it is told when kvm.ko is there and before it goes, and what it
//! uses of it it lets go of then. KVM built into the kernel is there from the start.
//!
//! Two notifiers: the tracepoints' tells of modules that are there already, and of kvm.ko's end
//! while its tracepoints still stand; the modules' own tells when a module has become live, by when
//! its facts stand in sysfs.
//!
//! C headers: [`include/linux/tracepoint.h`](srctree/include/linux/tracepoint.h),
//! [`include/linux/module.h`](srctree/include/linux/module.h)

use super::probes::Tracepoints;
use crate::raw;
use core::sync::atomic::{AtomicPtr, Ordering::SeqCst};
use kernel::{
    bindings,
    error::to_result,
    ffi::{c_int, c_ulong, c_void},
    prelude::*,
    sync::Arc,
    types::Opaque,
};

const COMING: c_ulong = bindings::module_state_MODULE_STATE_COMING as c_ulong;
const LIVE: c_ulong = bindings::module_state_MODULE_STATE_LIVE as c_ulong;
const GOING: c_ulong = bindings::module_state_MODULE_STATE_GOING as c_ulong;

/// What wants to know. Process context; may sleep.
pub(crate) trait KvmEvents: Send + Sync + 'static {
    /// kvm is there, and has these tracepoints until [`KvmEvents::kvm_goes`] has returned.
    fn kvm_is_there(&self, tracepoints: Tracepoints);
    /// kvm is about to go, or we are.
    fn kvm_goes(&self);
    /// A vendor module has come, or is about to go.
    fn vendor_changed(&self);
}

/// The registered notifiers. Dropping it tells [`KvmEvents::kvm_goes`] once more if kvm is there.
///
/// # Invariants
///
/// Both blocks are registered as long as this is, and `target` is what they tell.
#[pin_data(PinnedDrop)]
pub(crate) struct KvmModule<T: KvmEvents> {
    #[pin]
    tracepoints: Opaque<bindings::notifier_block>,
    #[pin]
    modules: Opaque<bindings::notifier_block>,
    /// kvm.ko between the first event and the last that the tracepoints' notifier told of, else null.
    kvm: AtomicPtr<bindings::module>,
    target: Arc<T>,
}

// SAFETY: Notifier blocks belong to their chains while registered; the rest is atomic or shared.
unsafe impl<T: KvmEvents> Send for KvmModule<T> {}
// SAFETY: As above.
unsafe impl<T: KvmEvents> Sync for KvmModule<T> {}

impl<T: KvmEvents> KvmModule<T> {
    /// Tell `target` from now on, and at once if kvm is there.
    pub(crate) fn register(target: Arc<T>) -> Result<Pin<KBox<Self>>> {
        // INVARIANT: Registered below, or not given to anybody.
        let this = KBox::pin_init(
            pin_init!(Self {
                tracepoints: Opaque::new(block(Self::on_tracepoints)),
                modules: Opaque::new(block(Self::on_modules)),
                kvm: AtomicPtr::new(core::ptr::null_mut()),
                target,
            }),
            GFP_KERNEL,
        )?;
        // SAFETY: The blocks are pinned, and unregistered when dropped.
        to_result(unsafe { bindings::register_module_notifier(this.modules.get()) })?;
        // Dropping `this` from here on unregisters what is not registered, which is harmless.
        // SAFETY: As above.
        to_result(unsafe {
            bindings::register_tracepoint_module_notifier(this.tracepoints.get())
        })?;
        if this.kvm.load(SeqCst).is_null() {
            // SAFETY: The kernel's own tracepoints stay for ever.
            let builtin = unsafe {
                Tracepoints::find(|name| raw::kvmate_kernel_tracepoint(name.as_char_ptr()))
            };
            if let Some(tracepoints) = builtin {
                this.target.kvm_is_there(tracepoints);
            }
        }
        Ok(this)
    }

    /// Tell of kvm.ko, if it has become live; else its becoming live tells. Called from a chain
    /// that keeps the module meanwhile.
    fn attach(&self, kvm: *mut bindings::module) {
        // SAFETY: kvm.ko, which the calling chain keeps.
        let tracepoints = unsafe {
            if !raw::kvmate_module_live(kvm) {
                return;
            }
            Tracepoints::find(|name| raw::kvmate_module_tracepoint(kvm, name.as_char_ptr()))
        };
        if let Some(tracepoints) = tracepoints {
            self.target.kvm_is_there(tracepoints);
        }
    }

    /// # Safety
    ///
    /// The tracepoints' chain calls it, with the block of a registered `Self`.
    unsafe extern "C" fn on_tracepoints(
        block: *mut bindings::notifier_block,
        event: c_ulong,
        data: *mut c_void,
    ) -> c_int {
        // SAFETY: The block is the field of a pinned `Self`.
        let this = unsafe { &*kernel::container_of!(Opaque::cast_from(block), Self, tracepoints) };
        // SAFETY: The chain's data.
        let module = unsafe { (*data.cast::<bindings::tp_module>()).mod_ };
        // SAFETY: A module that the chain tells of.
        if unsafe { raw::kvmate_module_is(module, c"kvm".as_char_ptr()) } {
            if event == COMING {
                this.kvm.store(module, SeqCst);
                this.attach(module);
            } else if event == GOING {
                this.kvm.store(core::ptr::null_mut(), SeqCst);
                this.target.kvm_goes();
            }
        }
        0
    }

    /// # Safety
    ///
    /// The modules' chain calls it, with the block of a registered `Self`.
    unsafe extern "C" fn on_modules(
        block: *mut bindings::notifier_block,
        event: c_ulong,
        data: *mut c_void,
    ) -> c_int {
        // SAFETY: The block is the field of a pinned `Self`.
        let this = unsafe { &*kernel::container_of!(Opaque::cast_from(block), Self, modules) };
        let module: *mut bindings::module = data.cast();
        // SAFETY: A module that the chain tells of.
        let is = |name: &CStr| unsafe { raw::kvmate_module_is(module, name.as_char_ptr()) };
        // Of a kvm that the other notifier has not told of yet it may never tell: it could go again
        // before that is registered. If it is there then, it tells.
        if event == LIVE && is(c"kvm") && !this.kvm.load(SeqCst).is_null() {
            this.attach(module);
        }
        if (event == LIVE || event == GOING) && (is(c"kvm_amd") || is(c"kvm_intel")) {
            this.target.vendor_changed();
        }
        0
    }
}

fn block(
    call: unsafe extern "C" fn(*mut bindings::notifier_block, c_ulong, *mut c_void) -> c_int,
) -> bindings::notifier_block {
    bindings::notifier_block {
        notifier_call: Some(call),
        ..pin_init::zeroed()
    }
}

#[pinned_drop]
impl<T: KvmEvents> PinnedDrop for KvmModule<T> {
    fn drop(self: Pin<&mut Self>) {
        // Becoming live first, or kvm could come once more after it has gone for us.
        // SAFETY: Registered (type invariant).
        unsafe { bindings::unregister_module_notifier(self.modules.get()) };
        // SAFETY: As above. Tells of kvm.ko's going if it is there.
        unsafe { bindings::unregister_tracepoint_module_notifier(self.tracepoints.get()) };
        // KVM built in has no such end.
        self.target.kvm_goes();
    }
}
