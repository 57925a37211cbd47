// SPDX-License-Identifier: GPL-2.0
//! `tests/module/kvmate_delay.ko`: waits at chosen points of KVM, so that races happen.

use crate::{module, storm};
use anyhow::{Context, Result};
use std::{fs, time::Duration};

const NAME: &str = "kvmate_delay";

/// The loaded module; dropping it unloads.
pub struct Delay(());

impl Delay {
    /// Load it, next to kvmate.ko.
    pub fn load() -> Result<Self> {
        let kvmate = module::path()?;
        let folder = kvmate.parent().context("KVMATE_KO is no path of a file")?;
        let file = folder.join("tests").join(NAME).with_extension("ko");
        module::load_file(&file, "").with_context(|| format!("insmod {}", file.display()))?;
        Ok(Self(()))
    }

    /// Wait so long at that point from now on.
    pub fn at(&self, point: &str, wait: Duration) -> Result<()> {
        self.set(point, wait.as_micros() as u64)
    }

    /// Set any parameter.
    pub fn set(&self, name: &str, value: u64) -> Result<()> {
        let path = format!("/sys/module/{NAME}/parameters/{name}");
        fs::write(&path, value.to_string()).context(path)
    }

    /// Any parameter that counts.
    pub fn get(&self, name: &str) -> Result<u64> {
        let path = format!("/sys/module/{NAME}/parameters/{name}");
        let text = fs::read_to_string(&path).with_context(|| path.clone())?;
        text.trim_end().parse().context(path)
    }

    /// How often it has waited at that point, or still does.
    pub fn hits(&self, point: &str) -> Result<u64> {
        self.get(&format!("{point}_hits"))
    }

    /// Stand by until it has begun to wait at that point once more than `before` times.
    pub fn until_hit(&self, point: &str, before: u64) -> Result<()> {
        storm::until(&format!("somebody comes to the point {point}"), || {
            Ok(self.hits(point)? > before)
        })
    }

    /// Unload.
    pub fn unload(self) -> Result<()> {
        std::mem::forget(self);
        module::unload_when_free(NAME).context("rmmod kvmate_delay")
    }
}

impl Drop for Delay {
    fn drop(&mut self) {
        if let Err(error) = module::unload_when_free(NAME) {
            eprintln!("# rmmod {NAME}: {error}");
        }
    }
}
