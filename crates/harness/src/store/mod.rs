//! Where a run lies: its folder, its manifest, and the parts that several processes make.

pub mod folder;
pub mod manifest;
pub mod shard;
