// SPDX-License-Identifier: GPL-2.0
//! What has to be there, each looked at by itself.

use super::Root;
use schemars::JsonSchema;
use serde::Serialize;
use std::io::{self, ErrorKind};

/// How it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum State {
    Ok,
    Missing,
    /// It could not be seen.
    Unknown,
}

impl State {
    /// As people and programs read it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Missing => "missing",
            Self::Unknown => "unknown",
        }
    }
}

/// What was looked at.
#[derive(Debug, Serialize, JsonSchema)]
pub struct Check {
    pub name: &'static str,
    pub state: State,
    /// What there is, for people.
    pub found: String,
    /// What does not work; of `missing` only.
    pub cost: Option<String>,
    /// What mends it; null of `ok`.
    pub fix: Option<String>,
}

impl Check {
    fn ok(name: &'static str, found: impl Into<String>) -> Self {
        Self {
            name,
            state: State::Ok,
            found: found.into(),
            cost: None,
            fix: None,
        }
    }

    fn missing(
        name: &'static str,
        found: impl Into<String>,
        cost: &str,
        fix: impl Into<String>,
    ) -> Self {
        Self {
            name,
            state: State::Missing,
            found: found.into(),
            cost: Some(cost.into()),
            fix: Some(fix.into()),
        }
    }

    fn unknown(name: &'static str, found: impl Into<String>, fix: &str) -> Self {
        Self {
            name,
            state: State::Unknown,
            found: found.into(),
            cost: None,
            fix: Some(fix.into()),
        }
    }
}

const TREE: &str = "/sys/kernel/debug/kvmate";
const AS_ROOT: &str = "sudo kvmate doctor";
const LOAD: &str = "insmod kvmate.ko, or modprobe kvmate";

/// All of them.
pub fn all(root: &Root) -> Vec<Check> {
    vec![
        module(root),
        vermagic(root),
        debugfs(root),
        kvm(root),
        layouts(root),
        lockdown(root),
    ]
}

/// A file of the module's, or the check that tells why it cannot be read.
fn of_module(root: &Root, name: &'static str, file: &str) -> Result<String, Check> {
    root.read(&format!("{TREE}/{file}"))
        .map_err(|error| match error.kind() {
            _ if !root.has("/sys/module/kvmate") => {
                Check::unknown(name, "not known while the module is not loaded", LOAD)
            }
            ErrorKind::PermissionDenied => {
                Check::unknown(name, format!("{TREE}/{file} is for root"), AS_ROOT)
            }
            ErrorKind::NotFound => Check::unknown(
                name,
                format!("{TREE}/{file} is not there"),
                "mount debugfs, see there",
            ),
            _ => Check::unknown(name, format!("{TREE}/{file}: {error}"), AS_ROOT),
        })
}

fn module(root: &Root) -> Check {
    const NAME: &str = "module";
    let tool = env!("CARGO_PKG_VERSION");
    if !root.has("/sys/module/kvmate") {
        return Check::missing(NAME, "kvmate is not loaded", "nothing of it works", LOAD);
    }
    match of_module(root, NAME, "version") {
        Ok(version) if version == tool => {
            Check::ok(NAME, format!("kvmate {version}, as this tool"))
        }
        Ok(version) => Check::missing(
            NAME,
            format!("kvmate {version} is loaded, this tool is of {tool}"),
            "tables may have other columns, and files other names",
            format!("rmmod kvmate, and load that of {tool}; or use the tool of {version}"),
        ),
        Err(unknown) => unknown,
    }
}

/// What is loaded fits, but where it was forced; what is not loaded `scripts/vermagic` compares.
fn vermagic(root: &Root) -> Check {
    const NAME: &str = "vermagic";
    let magic = match of_module(root, NAME, "vermagic") {
        Ok(magic) => magic,
        Err(mut unknown) => {
            if !root.has("/sys/module/kvmate") {
                unknown.fix = Some("scripts/vermagic kvmate.ko tells before it is loaded".into());
            }
            return unknown;
        }
    };
    match root.read("/proc/sys/kernel/osrelease") {
        Ok(release) if magic.split(' ').next() == Some(&release) => Check::ok(NAME, magic),
        Ok(release) => Check::missing(
            NAME,
            format!("the module is for {magic}, this is {release}"),
            "it was loaded by force: anything may happen",
            "rmmod kvmate; make module KDIR=/lib/modules/$(uname -r)/build",
        ),
        Err(error) => Check::unknown(NAME, format!("the running release: {error}"), AS_ROOT),
    }
}

fn debugfs(root: &Root) -> Check {
    const NAME: &str = "debugfs";
    const WHERE: &str = "/sys/kernel/debug";
    let is = |line: &str| {
        let mut words = line.split(' ').skip(1);
        words.next() == Some(WHERE) && words.next() == Some("debugfs")
    };
    match root.read("/proc/self/mounts") {
        Ok(mounts) if mounts.lines().any(is) => Check::ok(NAME, format!("at {WHERE}")),
        Ok(_) => Check::missing(
            NAME,
            format!("not mounted at {WHERE}"),
            "no table, no knob, and no VM is shown; /dev/kvmate works",
            format!("mount -t debugfs none {WHERE}"),
        ),
        Err(error) => Check::unknown(
            NAME,
            format!("/proc/self/mounts: {error}"),
            "mount -t proc none /proc",
        ),
    }
}

fn kvm(root: &Root) -> Check {
    const NAME: &str = "kvm";
    // A built-in one has a folder for its parameters, and nothing that says how it was loaded.
    let vendor = ["kvm_amd", "kvm_intel"]
        .into_iter()
        .find(|name| root.has(&format!("/sys/module/{name}")));
    let loaded = vendor.map(|name| (name, root.has(&format!("/sys/module/{name}/initstate"))));
    let device = root.has("/dev/kvm");
    match loaded {
        Some((name, as_module)) if device => {
            let how = if as_module { "a module" } else { "built in" };
            Check::ok(NAME, format!("{name}, {how}"))
        }
        _ => {
            let found = match vendor {
                Some(name) => format!("{name} is there, and no /dev/kvm"),
                None if root.has("/sys/module/kvm") => "kvm, without kvm_amd or kvm_intel".into(),
                None => "no kvm".into(),
            };
            let flags = root.read("/proc/cpuinfo").unwrap_or_default();
            let can = |flag| flags.split_whitespace().any(|word| word == flag);
            let fix = match () {
                () if vendor.is_some() => "dmesg | grep -i kvm tells why; a container needs the device passed to it",
                () if can("svm") => "modprobe kvm_amd",
                () if can("vmx") => "modprobe kvm_intel",
                () => "the CPU offers neither SVM nor VMX: switch it on in the firmware, or nesting in the host",
            };
            Check::missing(NAME, found, "there are no VMs; kvmate waits for it", fix)
        }
    }
}

fn layouts(root: &Root) -> Check {
    const NAME: &str = "layouts";
    let text = match of_module(root, NAME, "layouts") {
        Ok(text) => text,
        Err(unknown) => return unknown,
    };
    let found = text.lines().collect::<Vec<_>>().join("; ");
    let unproven = |module: &str| {
        let verdict = text
            .lines()
            .find_map(|line| line.strip_prefix(module)?.strip_prefix(' '));
        verdict.is_some_and(|verdict| verdict.starts_with("unproven"))
    };
    let cost = match (unproven("kvm"), unproven("kvm_amd")) {
        (false, false) => return Check::ok(NAME, found),
        (true, _) => "VMs are not shown, and cannot be injected into; exits are counted together",
        (false, true) => {
            "each vCPU has to prove where its exit reasons are; until then they are unknown"
        }
    };
    let fix = "build kvmate against the tree that the running KVM is of: make module KDIR=...";
    Check::missing(NAME, found, cost, fix)
}

fn lockdown(root: &Root) -> Check {
    const NAME: &str = "lockdown";
    match root.read("/sys/kernel/security/lockdown") {
        Ok(modes) if modes.contains("[none]") => Check::ok(NAME, "none"),
        Ok(modes) => {
            let mode = modes.split(['[', ']']).nth(1).unwrap_or(&modes).to_owned();
            Check::missing(
                NAME,
                mode,
                "an unsigned module does not load, and no knob can be opened; tables can be read",
                "sign kvmate.ko by a key that the kernel trusts (scripts/sign-file of its tree), and set knobs as its parameters; or boot without lockdown",
            )
        }
        Err(error) => without_file(root, NAME, &error),
    }
}

/// No file: a kernel without lockdown, or securityfs is not there.
fn without_file(root: &Root, name: &'static str, error: &io::Error) -> Check {
    const MODES: &str = "/sys/kernel/security";
    let mounted = root.read("/proc/self/mounts").is_ok_and(|mounts| {
        let mut lines = mounts.lines();
        lines.any(|line| line.split(' ').nth(1) == Some(MODES))
    });
    let known = root
        .read("/proc/filesystems")
        .map(|all| all.contains("securityfs"));
    match (error.kind(), mounted, known) {
        (ErrorKind::NotFound, true, _) | (ErrorKind::NotFound, _, Ok(false)) => {
            Check::ok(name, "this kernel has none")
        }
        (ErrorKind::NotFound, false, _) => Check::unknown(
            name,
            format!("securityfs is not mounted at {MODES}"),
            "mount -t securityfs none /sys/kernel/security",
        ),
        _ => Check::unknown(name, format!("{MODES}/lockdown: {error}"), AS_ROOT),
    }
}

#[cfg(test)]
mod tests {
    use super::{super::users::tests::Tree, *};

    fn state(tree: &Tree, name: &str) -> (State, String) {
        let mut checks = all(tree.root()).into_iter();
        let check = checks.find(|check| check.name == name).unwrap();
        assert_eq!(
            check.state == State::Missing,
            check.cost.is_some(),
            "{check:?}"
        );
        assert_eq!(check.state == State::Ok, check.fix.is_none(), "{check:?}");
        (
            check.state,
            format!("{} {}", check.found, check.fix.unwrap_or_default()),
        )
    }

    /// One where all is well.
    fn well() -> Tree {
        let tree = Tree::new();
        for (file, text) in [
            ("sys/module/kvmate/initstate", "live\n"),
            (
                "sys/kernel/debug/kvmate/version",
                concat!(env!("CARGO_PKG_VERSION"), "\n"),
            ),
            (
                "sys/kernel/debug/kvmate/vermagic",
                "7.3.4-x SMP preempt mod_unload \n",
            ),
            (
                "sys/kernel/debug/kvmate/layouts",
                "kvm proven by BTF\nkvm_amd absent\n",
            ),
            ("proc/sys/kernel/osrelease", "7.3.4-x\n"),
            (
                "proc/self/mounts",
                "none /sys/kernel/debug debugfs rw 0 0\n",
            ),
            ("proc/cpuinfo", "flags : fpu svm\n"),
            ("sys/module/kvm_amd/initstate", "live\n"),
            ("dev/kvm", ""),
            (
                "sys/kernel/security/lockdown",
                "[none] integrity confidentiality\n",
            ),
        ] {
            tree.file(file, text);
        }
        tree
    }

    #[test]
    fn all_is_well() {
        let tree = well();
        for check in all(tree.root()) {
            assert_eq!(check.state, State::Ok, "{check:?}");
        }
        // Built in, and a kernel that has no lockdown.
        tree.gone("sys/module/kvm_amd/initstate");
        tree.gone("sys/kernel/security/lockdown");
        tree.file("proc/filesystems", "nodev\tproc\n");
        assert!(state(&tree, "kvm").1.contains("kvm_amd, built in"));
        assert_eq!(state(&tree, "lockdown").0, State::Ok);
    }

    #[test]
    fn each_is_missing_by_itself() {
        for (file, text, name, part) in [
            (
                "sys/kernel/debug/kvmate/version",
                "9.9.9",
                "module",
                "kvmate 9.9.9 is loaded",
            ),
            (
                "proc/sys/kernel/osrelease",
                "7.3.5",
                "vermagic",
                "this is 7.3.5",
            ),
            (
                "proc/self/mounts",
                "none /sys/kernel/debug tmpfs rw 0 0",
                "debugfs",
                "mount -t debugfs none /sys",
            ),
            (
                "sys/kernel/debug/kvmate/layouts",
                "kvm unproven: x\nkvm_amd absent",
                "layouts",
                "kvm unproven: x",
            ),
            (
                "sys/kernel/debug/kvmate/layouts",
                "kvm proven by BTF\nkvm_amd unproven: y",
                "layouts",
                "unproven: y",
            ),
            (
                "sys/kernel/security/lockdown",
                "none [integrity] confidentiality",
                "lockdown",
                "integrity sign",
            ),
        ] {
            let tree = well();
            tree.file(file, text);
            let (found, said) = state(&tree, name);
            assert_eq!(found, State::Missing, "{name}: {said}");
            assert!(said.contains(part), "{said}");
            let others = all(tree.root())
                .into_iter()
                .filter(|check| check.state != State::Ok);
            assert_eq!(others.count(), 1, "{name} alone");
        }
    }

    #[test]
    fn kvm_is_missing() {
        let tree = well();
        tree.gone("dev/kvm");
        assert!(state(&tree, "kvm")
            .1
            .contains("kvm_amd is there, and no /dev/kvm dmesg"));
        tree.gone("sys/module/kvm_amd");
        assert!(state(&tree, "kvm").1.contains("no kvm modprobe kvm_amd"));
        tree.file("sys/module/kvm/initstate", "live");
        tree.file("proc/cpuinfo", "flags : vmx");
        assert!(state(&tree, "kvm")
            .1
            .contains("without kvm_amd or kvm_intel modprobe kvm_intel"));
        tree.file("proc/cpuinfo", "");
        assert!(state(&tree, "kvm").1.contains("neither SVM nor VMX"));
    }

    #[test]
    fn nothing_is_there() {
        let tree = Tree::new();
        let states: Vec<_> = all(tree.root()).iter().map(|check| check.state).collect();
        use State::{Missing, Unknown};
        assert_eq!(
            states,
            [Missing, Unknown, Unknown, Missing, Unknown, Unknown]
        );
        assert!(state(&tree, "vermagic").1.contains("scripts/vermagic"));
    }
}
