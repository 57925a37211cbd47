// SPDX-License-Identifier: GPL-2.0
//! The debug kernel's fault injection: allocations that fail at the chosen moment.

use anyhow::{ensure, Context, Result};
use std::{
    fs::{self, File, OpenOptions},
    os::unix::fs::FileExt,
};

const DEBUGFS: &str = "/sys/kernel/debug";

fn set(name: &str, value: &str) -> Result<()> {
    fs::write(format!("{DEBUGFS}/{name}"), value).with_context(|| format!("{name} = {value}"))
}

/// Which functions of the kernel's may fail, beside allocations, and with what: adding a folio to the
/// page cache (the error there is `ENOMEM`).
const FUNCTION: &str = "__filemap_add_folio";

/// Allocations of any kind can be made to fail, while this is there.
pub struct Injection(());

impl Injection {
    /// Make it so. Nothing fails yet.
    pub fn new() -> Result<Self> {
        for name in ["failslab", "fail_page_alloc", "fail_function"] {
            set(&format!("{name}/verbose"), "0")?;
            set(&format!("{name}/probability"), "0")?;
            set(&format!("{name}/times"), "-1")?;
        }
        set("failslab/ignore-gfp-wait", "N")?;
        set("fail_page_alloc/ignore-gfp-wait", "N")?;
        set("fail_page_alloc/ignore-gfp-highmem", "N")?;
        set("fail_page_alloc/min-order", "0")?;
        set("fail_function/inject", FUNCTION)?;
        let enomem = format!("{:#x}", -12i64);
        set(&format!("fail_function/{FUNCTION}/retval"), &enomem)?;
        Ok(Self(()))
    }

    /// While this is there, each allocation of pages fails of a task that has called
    /// [`fail_from_now`].
    pub fn all_pages(&self) -> Result<impl Drop> {
        All::of("fail_page_alloc")
    }

    /// Likewise, each of the slab allocator's.
    pub fn all_objects(&self) -> Result<impl Drop> {
        All::of("failslab")
    }
}

/// All allocations of a kind fail, while this is there.
struct All(&'static str);

impl All {
    fn of(kind: &'static str) -> Result<Self> {
        set(&format!("{kind}/task-filter"), "Y")?;
        set(&format!("{kind}/probability"), "100")?;
        Ok(Self(kind))
    }
}

impl Drop for All {
    fn drop(&mut self) {
        set(&format!("{}/probability", self.0), "0").expect("a file that was written before");
    }
}

impl Drop for Injection {
    fn drop(&mut self) {
        let back = ["failslab", "fail_page_alloc"]
            .iter()
            .try_for_each(|name| set(&format!("{name}/ignore-gfp-wait"), "Y"))
            .and_then(|()| set("fail_page_alloc/task-filter", "N"))
            .and_then(|()| set("failslab/task-filter", "N"))
            .and_then(|()| set("fail_function/inject", "\n"));
        if let Err(error) = back {
            eprintln!("# {error:#}");
        }
    }
}

/// What a task is to write to before it comes to [`Injection::all_pages`].
pub fn willing() -> Result<File> {
    let file = "/proc/thread-self/make-it-fail";
    OpenOptions::new().write(true).open(file).context(file)
}

/// The calling thread's allocations fail from now on.
pub fn fail_from_now(willing: &File) -> bool {
    willing.write_at(b"1", 0).is_ok()
}

/// The calling thread's allocations, one of which is to fail.
pub struct Nth(File);

impl Nth {
    /// Of this thread.
    pub fn new() -> Result<Self> {
        let name = "/proc/thread-self/fail-nth";
        let file = OpenOptions::new().read(true).write(true).open(name);
        Ok(Self(file.context(name)?))
    }

    /// Do something, the `n`th site of which fails; tells whether it had so many. Allocates nothing.
    pub fn fail<T>(&self, n: u32, something: impl FnOnce() -> T) -> (T, bool) {
        let mut digits = [0; 10];
        let mut at = digits.len();
        let mut rest = n;
        while rest > 0 || at == digits.len() {
            at -= 1;
            digits[at] = b'0' + (rest % 10) as u8;
            rest /= 10;
        }
        let armed = self.0.write_at(&digits[at..], 0).is_ok();
        let result = something();
        let mut left = [0];
        let read = self.0.read_at(&mut left, 0).is_ok();
        let disarmed = self.0.write_at(b"0", 0).is_ok();
        assert!(armed && read && disarmed, "fail-nth");
        (result, left == *b"0")
    }
}

/// Do something with each of its sites failing in turn, until it has no more: `before` makes what it
/// is done to, `after` looks at the outcome. Tells how many sites there were.
pub fn each_site<S, T>(
    mut before: impl FnMut() -> Result<S>,
    mut something: impl FnMut(&S) -> T,
    mut after: impl FnMut(S, T) -> Result<()>,
) -> Result<u32> {
    let nth = Nth::new()?;
    for n in 1..5000 {
        let subject = before()?;
        let (outcome, failed) = nth.fail(n, || something(&subject));
        after(subject, outcome).with_context(|| format!("site {n}"))?;
        if !failed {
            return Ok(n - 1);
        }
    }
    ensure!(false, "no end of sites");
    Ok(0)
}
