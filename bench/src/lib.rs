//! What the benchmarks share: a load, an origin, the statistics of both.

pub mod load;
pub mod origin;
