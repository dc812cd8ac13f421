//! The stages of a run, one file each: [`run`](crate::run) calls validate, generate, score, retain and
//! report in this order. They share the [`scorer`].

pub mod generate;
pub mod report;
pub mod retain;
pub mod score;
pub mod scorer;
pub mod validate;
