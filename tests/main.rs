//! Tests of the whole product, one module per behaviour, all in one binary.

mod tidy;
