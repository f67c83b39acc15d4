//! All integration tests, in one binary.

mod affinity;
mod behaviours;
mod bench;
mod coexist;
mod config;
mod drift;
mod e2e;
mod kubeadm;
mod kubeproxy;
mod listing;
mod load;
mod loopback;
mod node;
mod others;
mod scenarios;
mod tidy;
