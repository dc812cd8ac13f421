//! Where a run lies: its folder, its manifest, its rows, and the parts that several processes make.

pub mod folder;
pub mod manifest;
pub mod rows;
pub mod shard;
