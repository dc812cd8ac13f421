//! Everything that can go wrong in this crate.

use std::fmt::Display;
use std::path::PathBuf;

/// Everything that can go wrong in this crate.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// From an expert or the pool.
    #[error(transparent)]
    Experts(#[from] experts::Error),
    /// From the PCM.
    #[error(transparent)]
    Pcm(#[from] pcm::Error),
    /// From the language model.
    #[error(transparent)]
    Lm(#[from] lm::Error),
    /// A strategy names an expert that is not there.
    #[error("there is no expert '{name}'; the experts are: {}", known.join(", "))]
    UnknownExpert {
        /// What was asked for.
        name: String,
        /// The experts that are there.
        known: Vec<String>,
    },
    /// A weight is given to an expert that is not there.
    #[error("a weight for '{name}', the experts are: {}", known.join(", "))]
    UnknownWeight {
        /// What was given a weight.
        name: String,
        /// The experts that are there.
        known: Vec<String>,
    },
    /// A preference states a direction that no expert stands for.
    #[error("the preference asks for '{name}', the experts are: {}", known.join(", "))]
    UnknownDirection {
        /// The direction.
        name: String,
        /// The experts that are there, the base left out.
        known: Vec<String>,
    },
    /// A preference states a direction that a trained model does not know.
    #[error("{model} was not trained for '{direction}'; it knows: {}", known.join(", "))]
    NotTrainedFor {
        /// The kind of model, such as "the PCM".
        model: &'static str,
        /// The direction.
        direction: String,
        /// The directions that it was trained for.
        known: Vec<String>,
    },
    /// A direction of the preference for which a strategy has nothing of what it needs.
    #[error("{lacking} '{direction}'; add {remedy}")]
    MissingFor {
        /// What is missing, such as "there is no example of".
        lacking: &'static str,
        /// The direction.
        direction: String,
        /// What to add, and where.
        remedy: &'static str,
    },
    /// A parameter outside of what makes sense.
    #[error("{name} is {value}, not {expected}")]
    Parameter {
        /// The parameter, as configs name it.
        name: String,
        /// What it is set to.
        value: String,
        /// What it may be set to.
        expected: &'static str,
    },
    /// Parameters of a strategy that exclude each other.
    #[error("{0}")]
    Combination(&'static str),
    /// A term of a formula without a finite weight or without an expert.
    #[error("term {0}: a finite weight and an expert are needed")]
    Term(usize),
    /// Weights that should sum to 1.
    #[error("the weights sum to {total}, not to 1{remedy}")]
    WeightSum {
        /// Their sum.
        total: f64,
        /// What to do, as the end of the sentence; may be empty.
        remedy: &'static str,
    },
    /// An expert, a PCM or a mixture without a distribution for the next token.
    #[error(
        "{who} gave no numbers (NaN or infinity) at token {token} of prompt {prompt}; look for damaged or very large \
         parameters, or try the number format F32"
    )]
    NoNumbers {
        /// Whose distribution it is, in words.
        who: String,
        /// Number of the request.
        request: usize,
        /// Number of the token in the response.
        token: usize,
        /// The prompt's name, where it has one, else the request's number.
        prompt: String,
    },
    /// A preference that lacks what a strategy reads of it.
    #[error("{0}")]
    Preference(&'static str),
    /// A strategy in another one that is a choice itself.
    #[error("{} still to be chosen; name what it is to be", strategy.as_ref()
        .map_or_else(|| "the inner strategy is".to_string(), |name| format!("'{name}' is itself")))]
    StillToBeChosen {
        /// Its name among several; `None` for the inner strategy of a wrapper.
        strategy: Option<String>,
    },
    /// A candidate that keeps the best of several responses.
    #[error(
        "'{0}' keeps the best of several responses by the very rewards that would choose it; compare it as a strategy \
         of its own"
    )]
    CandidateOfSeveral(String),
    /// A choice among candidates without any.
    #[error("{0}")]
    NoCandidates(&'static str),
    /// A plan that is a choice among candidates was to be decoded with.
    #[error(
        "one of {} is to be chosen on a validation set, as `mope run` does; name the strategy itself",
        candidates.join(", ")
    )]
    NotChosen {
        /// The candidates' names.
        candidates: Vec<String>,
    },
    /// A plan that keeps the best of several responses was to be decoded with where nothing rates them.
    #[error(
        "the best of several responses is kept by its utility, which needs rewards and reference responses, as \
         `mope run` has them"
    )]
    NeedsUtility,
    /// A fixed text was to be decoded.
    #[error(
        "its text is fixed and is not decoded; `mope run` has it beside other strategies, not inside of one"
    )]
    FixedText,
    /// Recorded responses were to be decoded.
    #[error(
        "its responses were recorded elsewhere: it answers the prompts of its file, in `mope run`, and no others"
    )]
    NotDecoded,
    /// Recorded responses inside of another strategy.
    #[error(
        "recorded responses are a strategy of their own; name them beside the others, not inside of one"
    )]
    RecordedInside,
    /// A file of recorded responses that cannot be read.
    #[error("{}: {error}", file.display())]
    Recorded {
        /// The file.
        file: PathBuf,
        /// Why.
        error: std::io::Error,
    },
    /// An expert cannot tell what a strategy needs.
    #[error("it needs {needed} of expert '{expert}', which gives {given}; do without: {instead}")]
    Requirement {
        /// The expert.
        expert: String,
        /// What the strategy needs.
        needed: &'static str,
        /// What the expert gives.
        given: String,
        /// Strategies that need less.
        instead: &'static str,
    },
    /// A strategy over truncated experts that needs full distributions.
    #[error(
        "the inner strategy needs full next-token distributions and gets the {0} likeliest tokens; take one that \
         averages probabilities: Uniform(), Fixed(), Single"
    )]
    Truncated(usize),
    /// A pool of other experts than the plan mixes.
    #[error("the plan mixes {planned:?}, the pool has {pool:?}")]
    Pool {
        /// The plan's experts.
        planned: Vec<String>,
        /// The pool's.
        pool: Vec<String>,
    },
    /// A step that does not fit the mixer.
    #[error(
        "made for {expected} experts, the step has {experts} ({histories} histories of {sequences} sequences)"
    )]
    Step {
        /// Experts that the mixer was made for.
        expected: usize,
        /// Experts of the step.
        experts: usize,
        /// Histories of the step.
        histories: usize,
        /// Sequences of the step.
        sequences: usize,
    },
    /// A step without what the mixer asked for, or before the mixer was opened.
    #[error("{0}")]
    NotReady(&'static str),
    /// A trained model that was made for another base.
    #[error("{0}")]
    OtherBase(String),
    /// Token ids, prompts or responses that do not fit each other.
    #[error("{0}")]
    Request(String),
    /// Experts whose parameters cannot be merged as asked for.
    #[error("{0}")]
    Merge(String),
}

/// Result of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    /// A parameter that is not what was expected: `expected` completes "…, not".
    pub(crate) fn parameter(
        name: impl Into<String>,
        value: impl Display,
        expected: &'static str,
    ) -> Self {
        Self::Parameter {
            name: name.into(),
            value: value.to_string(),
            expected,
        }
    }
}

/// Refuses what is no number above 0.
pub(crate) fn above_zero(name: impl Into<String>, value: f64) -> Result<()> {
    if value > 0.0 && value.is_finite() {
        return Ok(());
    }
    Err(Error::parameter(name, value, "above 0"))
}

/// Refuses what is no number from 0 on.
pub(crate) fn not_negative(name: impl Into<String>, value: f64) -> Result<()> {
    if value >= 0.0 && value.is_finite() {
        return Ok(());
    }
    Err(Error::parameter(name, value, "0 or more"))
}

/// Refuses what is no number.
pub(crate) fn finite(name: impl Into<String>, value: f64) -> Result<()> {
    if value.is_finite() {
        return Ok(());
    }
    Err(Error::parameter(name, value, "a number"))
}

/// Refuses what is no share of a whole.
pub(crate) fn share(name: impl Into<String>, value: f64) -> Result<()> {
    if (0.0..=1.0).contains(&value) {
        return Ok(());
    }
    Err(Error::parameter(name, value, "between 0 and 1"))
}

/// Refuses a count of 0.
pub(crate) fn at_least_one(name: impl Into<String>, value: usize) -> Result<()> {
    if value > 0 {
        return Ok(());
    }
    Err(Error::parameter(name, value, "1 or more"))
}
