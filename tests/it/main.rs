//! All integration tests, in one binary.

mod affinity;
mod behaviours;
mod bench;
mod chart;
mod coexist;
mod config;
mod connections;
mod conntrack;
mod drift;
mod e2e;
mod endure;
mod handover;
mod kubeadm;
mod kubeproxy;
mod listing;
mod load;
mod loopback;
mod node;
mod others;
mod privileges;
mod scenarios;
mod serve;
mod tidy;
