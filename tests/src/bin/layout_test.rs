// SPDX-License-Identifier: GPL-2.0
//! Whether kvmate knows a KVM whose structures are not those it was built for: a kvm.ko built again
//! alone, which vermagic lets pass; and a kvmate.ko built with other headers than the running KVM.

use anyhow::{ensure, Context, Result};
use kvmate_tests::{
    ensure_eq,
    guest::{real, Vm},
    ktap,
    module::{self, Kvmate, Log, WithoutKvm, DEVICE},
    seen,
    storm::until,
};
use kvmate_uapi::{kvmate_info, KVMATE_GET_INFO};
use std::{
    fs::{self, OpenOptions},
    path::{Path, PathBuf},
    process::{Command, ExitCode},
    thread,
    time::{Duration, Instant},
};
use vmm_sys_util::ioctl::ioctl_with_mut_ref;

/// Where scripts/test puts KVM's modules with another `struct kvm`.
const OTHERS: &str = "/share";

fn main() -> ExitCode {
    ktap::main(&[
        ("proven", proven),
        ("absent_without_kvm", absent_without_kvm),
        ("vendor_only_when_loaded", vendor_only_when_loaded),
        ("other_kvm_is_refused", other_kvm_is_refused),
        ("other_vendor_is_refused", other_vendor_is_refused),
        ("vcpus_prove_themselves", vcpus_prove_themselves),
        ("vcpus_refute_themselves", vcpus_refute_themselves),
        ("headers_changed", headers_changed),
        ("no_sysfs", no_sysfs),
        ("false_sysfs", false_sysfs),
        ("proven_later", proven_later),
    ])
}

/// What `layouts` says of a module.
fn layout(kvmate: &Kvmate, module: &str) -> Result<String> {
    let table = kvmate.read("layouts")?;
    let mut found = table.lines().filter_map(|l| l.split_once(' '));
    let line = found.find(|(name, _)| *name == module);
    let (_, verdict) = line.with_context(|| format!("{module} is not in {table:?}"))?;
    Ok(verdict.to_owned())
}

/// What proves a module's structures here.
fn proof() -> &'static str {
    match Path::new("/sys/kernel/btf/vmlinux").exists() {
        true => "proven by BTF",
        false => "proven by build id",
    }
}

/// Whether there is a kvm_amd, loaded or built in.
fn has_amd() -> bool {
    Path::new("/sys/module/kvm_amd").exists()
}

/// What does not depend on structures works whatever they look like.
fn rest_works(kvmate: &Kvmate) -> Result<()> {
    let device = OpenOptions::new().read(true).write(true).open(DEVICE)?;
    // SAFETY: Integers and byte arrays only.
    let mut info: kvmate_info = unsafe { std::mem::zeroed() };
    // SAFETY: The ioctl takes and gives a `kvmate_info`.
    let status = unsafe { ioctl_with_mut_ref(&device, KVMATE_GET_INFO, &mut info) };
    ensure_eq!(status, 0, "KVMATE_GET_INFO");
    ensure!(info.features != 0, "no features");
    for value in ["0", "1"] {
        kvmate.write("knobs/observe", value)?;
        ensure_eq!(kvmate.read("knobs/observe")?, value, "knobs/observe");
    }
    let before = kvmate.exits()?;
    real::write_ports(100)?;
    let seen = kvmate.exits()? - before;
    ensure!(seen >= 100, "saw {seen} of 100 exits and some");
    Ok(())
}

fn proven() -> Result<()> {
    let mut log = Log::from_now()?;
    let kvmate = Kvmate::load("")?;
    let said = log.ours()?;
    ensure!(!said.iter().any(|l| l.contains("struct")), "said {said:?}");
    ensure_eq!(layout(&kvmate, "kvm")?, proof(), "kvm");
    let vendor = if has_amd() { proof() } else { "absent" };
    ensure_eq!(layout(&kvmate, "kvm_amd")?, vendor, "kvm_amd");
    ensure_eq!(kvmate.read("layouts")?.lines().count(), 2, "lines");
    rest_works(&kvmate)?;
    kvmate.unload()
}

fn absent_without_kvm() -> Result<()> {
    let _kvm = WithoutKvm::new()?;
    let kvmate = Kvmate::load("")?;
    ensure_eq!(
        kvmate.read("layouts")?,
        "kvm absent\nkvm_amd absent",
        "layouts"
    );
    kvmate.unload()
}

fn vendor_only_when_loaded() -> Result<()> {
    if !module::is_loaded("kvm_amd") {
        return ktap::skip("kvm_amd is not loaded as a module here");
    }
    module::unload("kvm_amd")?;
    let kvmate = Kvmate::load("");
    let before = kvmate.as_ref().map(|kvmate| layout(kvmate, "kvm_amd"));
    module::modprobe("kvm_amd")?;
    let before = before.ok().context("kvmate was not loaded")??;
    ensure_eq!(before, "absent", "kvm_amd before it came");
    let kvmate = kvmate?;
    ensure_eq!(layout(&kvmate, "kvm")?, proof(), "kvm");
    ensure_eq!(
        layout(&kvmate, "kvm_amd")?,
        proof(),
        "kvm_amd after it came"
    );
    module::unload("kvm_amd")?;
    let without = layout(&kvmate, "kvm_amd");
    module::modprobe("kvm_amd")?;
    ensure_eq!(without?, "absent", "kvm_amd after it went");
    kvmate.unload()
}

/// A file of `OTHERS`; skips the test where there is none.
fn other(name: &str) -> Result<PathBuf> {
    let file = Path::new(OTHERS).join(format!("{}.ko", name.replace('_', "-")));
    if !file.exists() {
        return ktap::skip("KVM was not built again for this kernel");
    }
    Ok(file)
}

/// Modules loaded for a test; unloaded on drop, the last first.
struct Loaded(Vec<&'static str>);

impl Loaded {
    fn load(&mut self, name: &'static str, file: &Path) -> Result<()> {
        module::load_file(file, "").with_context(|| format!("insmod {}", file.display()))?;
        self.0.push(name);
        Ok(())
    }
}

impl Drop for Loaded {
    fn drop(&mut self) {
        for name in self.0.iter().rev() {
            if let Err(error) = module::unload(name) {
                eprintln!("# rmmod {name}: {error}");
            }
        }
    }
}

/// One line of `said` begins so, and no other names that module.
fn said_once(said: &[String], module: &str, begins: &str, ends: &str) -> Result<()> {
    let of_module = format!("{module}: ");
    let lines: Vec<_> = said.iter().filter(|l| l.starts_with(&of_module)).collect();
    ensure_eq!(lines.len(), 1, "lines about {module} in {said:?}");
    let line = &lines[0][of_module.len()..];
    ensure!(line.starts_with(begins) && line.ends_with(ends), "{line}");
    Ok(())
}

const KVM_UNPROVEN: &str = "struct kvm and struct kvm_vcpu and struct kvm_irq_routing_table and \
     struct kvm_kernel_irq_routing_entry and struct kvm_kernel_irqfd and struct kvm_memslots and \
     struct kvm_memory_slot and struct kvm_lpage_info cannot be proven (";
const EACH_PROVES: &str = ": each vCPU has to prove where its exit reasons are";
const SVM_UNPROVEN: &str = "struct vcpu_svm cannot be proven (";

fn other_kvm_is_refused() -> Result<()> {
    let kvm = WithoutKvm::new()?;
    let vendor = kvm.vendor();
    {
        let mut loaded = Loaded(Vec::new());
        loaded.load("kvm", &other("kvm")?)?;
        loaded.load(vendor, &other(vendor)?)?;
        let mut log = Log::from_now()?;
        let kvmate = Kvmate::load("").context("beside another kvm.ko")?;
        let said = log.ours()?;
        let why = "no BTF, and not the build id built against)";
        ensure_eq!(
            layout(&kvmate, "kvm")?,
            format!("unproven: {KVM_UNPROVEN}{why}"),
            "kvm"
        );
        said_once(&said, "kvm", KVM_UNPROVEN, ": VMs are not shown")?;
        if vendor == "kvm_amd" {
            let found = layout(&kvmate, vendor)?;
            ensure_eq!(found, format!("unproven: {SVM_UNPROVEN}{why}"), "kvm_amd");
            said_once(&said, vendor, SVM_UNPROVEN, EACH_PROVES)?;
        } else {
            ensure_eq!(layout(&kvmate, "kvm_amd")?, "absent", "kvm_amd");
        }
        rest_works(&kvmate)?;
        kvmate.unload()?;
    }
    drop(kvm);
    // The right one is proven as before.
    proven()
}

/// The right kvm.ko, but another kvm-amd.ko: each is judged by itself. No VM is run on these.
fn other_vendor_is_refused() -> Result<()> {
    let kvm = WithoutKvm::new()?;
    let vendor = kvm.vendor();
    {
        let file = other(vendor)?;
        module::modprobe("kvm")?;
        let mut loaded = Loaded(vec!["kvm"]);
        loaded.load(vendor, &file)?;
        let mut log = Log::from_now()?;
        let kvmate = Kvmate::load("")?;
        ensure_eq!(layout(&kvmate, "kvm")?, proof(), "kvm");
        let found = layout(&kvmate, "kvm_amd")?;
        if vendor == "kvm_amd" {
            ensure!(found.starts_with("unproven: struct vcpu_svm "), "{found}");
            said_once(&log.ours()?, vendor, SVM_UNPROVEN, EACH_PROVES)?;
        } else {
            ensure_eq!(found, "absent", "kvm_amd");
        }
        kvmate.unload()?;
    }
    drop(kvm);
    proven()
}

/// Load the right kvm.ko and that kvm-amd.ko, of which only the vCPUs can tell whether it is right.
fn with_vendor(file: &Path, test: impl FnOnce(&Kvmate, &mut Log) -> Result<()>) -> Result<()> {
    let kvm = WithoutKvm::new()?;
    {
        module::modprobe("kvm")?;
        let mut loaded = Loaded(vec!["kvm"]);
        loaded.load("kvm_amd", file)?;
        let mut log = Log::from_now()?;
        let kvmate = Kvmate::load("")?;
        ensure_eq!(layout(&kvmate, "kvm")?, proof(), "kvm");
        said_once(&log.ours()?, "kvm_amd", SVM_UNPROVEN, EACH_PROVES)?;
        test(&kvmate, &mut log)?;
        kvmate.unload()?;
    }
    drop(kvm);
    proven()
}

/// The reasons and counts of the VMs that have ended.
fn ended(kvmate: &Kvmate) -> Result<Vec<(String, u64)>> {
    let end = Instant::now() + Duration::from_secs(100);
    loop {
        let table = kvmate.read("ended")?;
        let rows: Vec<Vec<&str>> = table
            .lines()
            .skip(1)
            .map(|l| l.split(' ').collect())
            .collect();
        if !rows.is_empty() {
            let count = |row: &[&str]| Ok((row[3].to_owned(), row[4].parse()?));
            return rows.iter().map(|row| count(row)).collect();
        }
        ensure!(Instant::now() < end, "no VM has ended within 20 s");
        thread::sleep(Duration::from_millis(5));
    }
}

/// Take a module's signature off, which is right no more and would be refused.
fn strip_signature(file: &mut Vec<u8>) -> Result<()> {
    let magic = b"~Module signature appended~\n";
    let Some(signed) = file.strip_suffix(magic) else {
        return Ok(());
    };
    // Before the magic stands struct module_signature, whose last word is the length of what is
    // before it.
    let (rest, length) = signed.split_last_chunk::<4>().context("a length")?;
    let length = u32::from_be_bytes(*length) as usize + 8;
    let end = rest.len().checked_sub(length).context("a signature")?;
    file.truncate(end);
    Ok(())
}

/// The right kvm-amd.ko, but for its build id: what each vCPU shows is right, from its first exit on.
fn vcpus_prove_themselves() -> Result<()> {
    if !module::is_loaded("kvm_amd") {
        return ktap::skip("kvm_amd is not loaded as a module here");
    }
    if proof() == "proven by BTF" {
        return ktap::skip("BTF proves it here");
    }
    let notes = fs::read("/sys/module/kvm_amd/notes/.note.gnu.build-id")?;
    let release = fs::read_to_string("/proc/sys/kernel/osrelease")?;
    let installed = format!(
        "/lib/modules/{}/kernel/arch/x86/kvm/kvm-amd.ko",
        release.trim()
    );
    let mut file = fs::read(&installed).context(installed)?;
    let at: Vec<_> = file
        .windows(notes.len())
        .enumerate()
        .filter(|(_, part)| *part == notes)
        .map(|(at, _)| at)
        .collect();
    ensure_eq!(at.len(), 1, "places of the build id");
    file[at[0] + notes.len() - 1] ^= 1;
    strip_signature(&mut file)?;
    let other = Path::new("/tmp/kvm-amd-other-id.ko");
    fs::write(other, file)?;
    with_vendor(other, |kvmate, log| {
        real::write_ports(1000)?;
        let found = ended(kvmate)?;
        ensure!(found.contains(&("io".to_owned(), 1000)), "{found:?}");
        ensure!(
            !found.iter().any(|(name, _)| name == "unknown"),
            "{found:?}"
        );
        ensure_eq!(log.ours()?, [""; 0], "what the log says");
        Ok(())
    })
}

/// A kvm-amd.ko with its VMCB elsewhere: counted, but no reason is guessed.
fn vcpus_refute_themselves() -> Result<()> {
    if !module::is_loaded("kvm_amd") {
        return ktap::skip("kvm_amd is not loaded as a module here");
    }
    with_vendor(&other("kvm_amd_vmcb")?, |kvmate, log| {
        real::write_ports(1000)?;
        let found = ended(kvmate)?;
        let [(name, count)] = &found[..] else {
            anyhow::bail!("reasons: {found:?}");
        };
        ensure!(name == "unknown" && *count >= 1001, "{found:?}");
        let line = "kvm_amd's struct vcpu_svm has its VMCB elsewhere: reasons are unknown";
        ensure_eq!(log.ours()?, [line], "what the log says");
        real::write_ports(10)?;
        ensure_eq!(log.ours()?, [""; 0], "what it says of the next VM");
        Ok(())
    })
}

/// kvmate.ko was built with a `struct kvm` that has one more `long` at its start.
fn headers_changed() -> Result<()> {
    let file: PathBuf = std::env::var_os("KVMATE_CHANGED_KO")
        .context("KVMATE_CHANGED_KO")?
        .into();
    if !file.exists() {
        return ktap::skip("KVM was not built again for this kernel");
    }
    let mut log = Log::from_now()?;
    let kvmate = Kvmate::load_from(&file, "")?;
    let said = log.ours()?;
    let found = layout(&kvmate, "kvm")?;
    if proof() == "proven by BTF" {
        let begins = "struct kvm differs from the one built against (mmu_lock at 0x";
        let places = found
            .strip_prefix("unproven: ")
            .and_then(|f| f.strip_prefix(begins))
            .and_then(|f| f.strip_suffix(')'))
            .and_then(|f| f.split_once(" instead of 0x"))
            .with_context(|| found.clone())?;
        let at = u32::from_str_radix(places.0, 16)?;
        let expected = u32::from_str_radix(places.1, 16)?;
        ensure_eq!(expected - at, 8, "what was moved ({found})");
        said_once(&said, "kvm", begins, "): VMs are not shown")?;
        // struct vcpu_svm is what it was.
        if has_amd() {
            ensure_eq!(layout(&kvmate, "kvm_amd")?, proof(), "kvm_amd");
        }
    } else {
        // The tree's kvm.ko is older than the header, so its build id says nothing.
        let why = "no BTF, and no build id to compare with)";
        ensure_eq!(found, format!("unproven: {KVM_UNPROVEN}{why}"), "kvm");
        said_once(&said, "kvm", KVM_UNPROVEN, ": VMs are not shown")?;
    }
    rest_works(&kvmate)?;
    kvmate.unload()
}

/// Load it in a name space of its own, after a change there.
fn load_where(change: &str) -> Result<Kvmate> {
    let script = format!("{change}\nexec insmod \"$1\"");
    Kvmate::load_by(
        Command::new("unshare")
            .args(["-m", "sh", "-ec", &script, "sh"])
            .arg(module::path()?),
    )
}

fn refused_without_sysfs(change: &str) -> Result<()> {
    let mut log = Log::from_now()?;
    let kvmate = load_where(change)?;
    let said = log.ours()?;
    ensure_eq!(
        layout(&kvmate, "kvm")?,
        format!("unproven: {KVM_UNPROVEN}no sysfs at /sys)"),
        "kvm"
    );
    said_once(&said, "kvm", KVM_UNPROVEN, ": VMs are not shown")?;
    rest_works(&kvmate)?;
    kvmate.unload()
}

fn no_sysfs() -> Result<()> {
    refused_without_sysfs("umount -l /sys")
}

/// Files that say the right things are no proof if they are not the kernel's.
fn false_sysfs() -> Result<()> {
    refused_without_sysfs(
        "mkdir /tmp/false && mount -t tmpfs tmpfs /tmp/false && cd /sys
         cp -r --parents kernel/notes $(ls -d kernel/btf module/kvm* 2>/dev/null) /tmp/false 2>/dev/null || true
         mount --bind /tmp/false /sys && test -e /sys/module/kvm && test -e /sys/kernel/notes",
    )
}

/// kvm is looked at again when its vendor module comes, and once it is proven VMs are shown; what was
/// proven stays so, whoever loads the vendor module then.
fn proven_later() -> Result<()> {
    let vendor = module::vendor()?;
    let kvmate = load_where("umount -l /sys")?;
    let vm = Vm::new(1 << 16, false)?;
    let vcpu = vm.vcpu(0)?;
    ensure_eq!(
        seen::names_of_vms()?,
        [""; 0],
        "VMs while kvm is not proven"
    );
    drop((vcpu, vm));
    module::unload(vendor)?;
    module::modprobe(vendor)?;
    ensure_eq!(layout(&kvmate, "kvm")?, proof(), "kvm");
    let again = || -> Result<()> {
        let vm = Vm::new(1 << 16, false)?;
        let vcpu = vm.vcpu(0)?;
        ensure_eq!(seen::names_of_vms()?.len(), 1, "VMs");
        drop((vcpu, vm));
        until("it is gone", || Ok(seen::names_of_vms()?.is_empty()))
    };
    again()?;
    module::unload(vendor)?;
    let script = format!("umount -l /sys\nexec modprobe {vendor}");
    let loaded = Command::new("unshare")
        .args(["-m", "sh", "-ec", &script])
        .status()?;
    ensure!(loaded.success(), "modprobe {vendor} without /sys: {loaded}");
    ensure_eq!(
        layout(&kvmate, "kvm")?,
        proof(),
        "kvm, from where there is no /sys"
    );
    again()?;
    kvmate.unload()
}
