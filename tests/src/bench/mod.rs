// SPDX-License-Identifier: GPL-2.0
//! What watching a guest costs, kvmate beside others: [`sample`] runs the guests and measures,
//! [`watcher`] is who watches meanwhile, [`table`] shows and judges the figures. What an interrupt
//! costs: [`inject`]. And what holding a guest's memory costs: [`memory`], [`memory_table`].

pub mod inject;
pub mod memory;
pub mod memory_table;
pub mod sample;
pub mod table;
pub mod watcher;
