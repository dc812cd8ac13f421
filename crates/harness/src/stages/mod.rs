//! The stages of a run, one file each, in the order in which [`run`](crate::run) calls them.

pub mod generate;
pub mod report;
pub mod retain;
pub mod score;
pub mod validate;
