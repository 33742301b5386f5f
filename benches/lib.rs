//! Criterion benchmarks of each layer; see the files beside this one.
