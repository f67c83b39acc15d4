//! What must hold for every cluster and every sequence of changes. A failure prints the smallest case that was found; run again
//! with `PROPTEST_RNG_SEED` set to repeat a run, and with `PROPTEST_CASES` for a longer one.

mod changes;
mod cost;
mod definition;
mod drift;
mod input;
mod kernel;
mod local;
mod restart;
mod stale;
mod steps;
mod world;
