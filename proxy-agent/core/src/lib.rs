//! Decides what every packet to a Service meets, and what each dataplane must hold for that. Touches nothing: no I/O, no
//! clock, no unsafe code, no Kubernetes client.
//!
//! ```text
//! input ─ convert ─▶ Change ─▶ Forwarding(Cluster) ─ routes ─▶ seat(Slots) ─▶ lower ─▶ Objects ─▶ Ledger ─▶ Tx
//! ```
//!
//! `model ← input ← cluster ← forward ← lower/{bpf, nft}`; [`ledger`] and [`slots`] stand alone; [`plan`] joins a lowering with
//! its ledger and slots.

#![forbid(unsafe_code)]

pub mod cluster;
pub mod forward;
pub mod input;
pub mod ledger;
pub mod lower;
pub mod model;
pub mod plan;
pub mod slots;
pub mod view;
