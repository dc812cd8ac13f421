//! `mope`: mixture of preference experts.
//!
//! Several experts, each good at one preference, run side by side over one base model; at every token their next-token
//! distributions are mixed with weights that follow a person's preference ([arXiv 2407.04181]). This package is the whole:
//! the libraries under one name, a [`prelude`], and the program `mope` (feature `cli`, on by default).
//!
//! Start with `examples/mix_two_experts.rs`. Each library can be used alone, too: a program that only mixes needs
//! `mope-mixing` and what lies below it.
//!
//! [arXiv 2407.04181]: https://arxiv.org/abs/2407.04181

#![forbid(unsafe_code)]

pub use eval;
pub use experts;
pub use harness;
pub use lm;
pub use mixing;
pub use pcm;
pub use training;

/// What most programs need.
///
/// ```
/// use mope::prelude::*;
///
/// let importances = [("concise".to_string(), 3.0), ("friendly".to_string(), 1.0)].into();
/// let preference = Preference { text: "Be brief.".into(), importances };
/// let plan = Strategy::Uniform(Uniform::default()).plan(&preference, &["concise", "friendly"])?;
/// assert_eq!(plan.experts, ["concise", "friendly"]);
/// # Ok::<(), mope::mixing::Error>(())
/// ```
pub mod prelude {
    pub use eval::rewards::{Normaliser, Reward, Scorer};
    pub use experts::{Expert, ExpertPool, ExpertSpec};
    pub use harness::experiment::Experiment;
    pub use lm::chat::{Message, Prompt};
    pub use lm::sampling::{Draws, Sampling};
    pub use lm::{DeviceSpec, Format, LanguageModel};
    pub use mixing::strategies::{Base, Fixed, Pcm, Space, Uniform};
    pub use mixing::{
        Generation, Generator, Mixed, Mixer, Plan, Preference, Request, Response, Step, Strategy,
    };
}
