//! What the decisions cost, by stage: for each Service of the first load, and for each change afterwards, in a small and in a
//! large cluster. `cargo xtask microbench` runs this, shows the figures and compares them with `baseline.json`.
//!
//! Run as it is, it counts time and allocations. Under callgrind with `--instructions`, it counts instructions. Everything but
//! time is the same in every run: that is what a change of the code is judged by.

mod alloc;
mod cases;
mod clock;
mod meter;
mod objects;
mod subject;
mod valgrind;

use meter::{Counting, Meter};

#[global_allocator]
static ALLOCATOR: alloc::Counted = alloc::Counted;

/// Services of the clusters, each with [`objects::ENDPOINTS`] endpoints.
const SIZES: [u32; 2] = [1_000, 50_000];
/// In a larger cluster, the instructions of the first load are not counted: that would take minutes.
const INSTRUCTIONS_OF_LOAD: u32 = 1_000;

fn main() {
    // Cargo adds `--bench`.
    let counting = if std::env::args().any(|arg| arg == "--instructions") { Counting::Instructions } else { Counting::Allocations };
    if counting == Counting::Instructions && !valgrind::is_running() {
        eprintln!("--instructions needs callgrind, on x86-64: run `cargo xtask microbench`");
        std::process::exit(2);
    }
    for services in SIZES {
        let load = if counting == Counting::Instructions && services > INSTRUCTIONS_OF_LOAD { Counting::Nothing } else { counting };
        for row in cases::run(services, Meter::new(load), Meter::new(counting)) {
            println!("{row}");
        }
    }
}
