// SPDX-License-Identifier: GPL-2.0
//! What watching a guest costs, kvmate beside others: [`sample`] runs the guests and measures,
//! [`watcher`] is who watches meanwhile, [`table`] shows and judges the figures. What an interrupt
//! costs: [`inject`]. What holding a guest's memory costs: [`memory`], [`memory_table`];
//! and splitting and merging it: [`reshape`]. And what a
//! walk through stage-2 tables costs: [`map`].

pub mod inject;
pub mod map;
pub mod memory;
pub mod memory_table;
pub mod reshape;
pub mod sample;
pub mod table;
pub mod watcher;
