//! Kernels for decoding many lanes over one set of weights on a processor.
//!
//! A [`Matrix`] keeps its weights packed; [`multiply`] reads each weight once for up to six lanes. Every
//! SIMD kernel has a scalar twin that gives the same bits, and what a lane gets never depends on how
//! many others there are: each output is one chain of operations, whatever the tile. [`dense`] has the
//! products of many rows that training needs.

#![warn(clippy::undocumented_unsafe_blocks)]

pub mod attention;
pub mod dense;
mod element;
mod format;
mod input;
mod isa;
mod low_rank;
pub mod math;
mod matrix;
pub mod memory;
#[cfg(all(test, loom))]
mod models;
mod multiply;
mod pace;
mod pages;
mod shared;
mod sync;
mod team;
mod tiles;
mod waiting;

pub use dense::{Dense, DenseScratch};
pub use element::Element;
pub use format::{BLOCK, Format, GROUP};
pub use input::{Input, InputRow, InputView};
pub use isa::Isa;
pub use low_rank::LowRank;
pub use matrix::Matrix;
pub use multiply::{Output, multiply};
pub use pages::advise_large;
pub use shared::Shared;
pub use team::{Member, Team};
