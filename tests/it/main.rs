//! All integration tests, in one binary.

mod behaviours;
mod bench;
mod e2e;
mod kubeproxy;
mod node;
mod scenarios;
mod tidy;
