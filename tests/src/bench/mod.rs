// SPDX-License-Identifier: GPL-2.0
//! What watching a guest costs, kvmate beside others: [`sample`] runs the guests and measures,
//! [`watcher`] is who watches meanwhile, [`table`] shows and judges the figures.
//! [`inject`]: what an interrupt costs.

pub mod inject;
pub mod sample;
pub mod table;
pub mod watcher;
