//! Tests of proxy-agent on real packets, and what they are made with.

pub mod agent;
pub mod bench;
pub mod chart;
mod child;
pub mod controlplane;
pub mod demo;
pub mod endure;
pub mod expect;
mod golang;
pub mod http;
pub mod lab;
pub mod manifest;
pub mod pod;
mod probe;
pub mod programs;
mod random;
pub mod scenario;
pub mod soak;
mod traffic;
