//! Decides what every packet to a Service meets, and what each dataplane must hold for that. Touches nothing: no I/O, no
//! clock, no unsafe code, no Kubernetes client.
//!
//! ```text
//! input ─ convert ─▶ Change ─▶ Forwarding(Cluster) ─ routes ─▶ seat(Slots) ─▶ lower ─▶ Objects ─▶ Ledger ─▶ Tx
//! ```
//!
//! `model ← input ← cluster, surroundings ← select ← route ← forward ← lower/{bpf, nft}`; [`ledger`] stands alone; [`plan`] joins
//! a lowering with its ledger and [`slots`].

#![forbid(unsafe_code)]

pub mod cidr;
pub mod cluster;
pub mod connections;
pub mod forward;
pub mod input;
pub mod ledger;
pub mod lower;
pub mod model;
pub mod plan;
pub mod route;
mod select;
pub mod settings;
pub mod slots;
pub mod stale;
pub mod surroundings;
pub mod view;
