//! Everything that can go wrong in this crate.

use std::path::PathBuf;

/// Everything that can go wrong in this crate.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// From the language model.
    #[error(transparent)]
    Lm(#[from] lm::Error),
    /// From one expert's model or adapter.
    #[error("expert '{expert}': {source}")]
    Expert {
        /// Its name.
        expert: String,
        /// What went wrong.
        source: lm::Error,
    },
    /// An expert whose next-token distribution is none.
    #[error(
        "expert '{expert}' gave no numbers (NaN or infinity) for sequence {sequence}; look for damaged or very large \
         parameters, or try the number format F32"
    )]
    NoNumbers {
        /// Its name.
        expert: String,
        /// Which of the sequences.
        sequence: usize,
    },
    /// Experts that cannot be mixed.
    #[error(
        "experts '{first}' and '{second}' have different vocabularies ({reason}); next-token \
         probabilities can only be mixed over the same tokens"
    )]
    Vocabulary {
        /// One expert.
        first: String,
        /// The other.
        second: String,
        /// Where they differ.
        reason: String,
    },
    /// A pool without experts.
    #[error("a pool needs at least one expert")]
    EmptyPool,
    /// Two experts of one name.
    #[error("two experts are called '{0}'")]
    SameName(String),
    /// Other prompts for the reference than for the experts.
    #[error("{got} prompts for the reference, {expected} for the experts")]
    ReferencePrompts {
        /// Prompts for the reference.
        got: usize,
        /// Prompts for the experts.
        expected: usize,
    },
    /// A step with another number of tokens than sequences.
    #[error("{got} tokens for {expected} sequences")]
    StepTokens {
        /// Tokens that were given.
        got: usize,
        /// Sequences of the state.
        expected: usize,
    },
    /// A training's state that cannot be written or read.
    #[error("{}: {message}", path.display())]
    Checkpoint {
        /// The file.
        path: PathBuf,
        /// What went wrong.
        message: String,
    },
    /// A classifier that cannot be written or read.
    #[error("{}: {message}", path.display())]
    Classifier {
        /// The file.
        path: PathBuf,
        /// What went wrong.
        message: String,
    },
    /// A classifier's numbers that do not fit together.
    #[error(
        "a classifier of {dimensions} dimensions with {token} and {context} numbers and a window of {window}"
    )]
    ClassifierShape {
        /// Its dimensions.
        dimensions: usize,
        /// Numbers of the candidates.
        token: usize,
        /// Numbers of the tokens before them.
        context: usize,
        /// Tokens that are read.
        window: usize,
    },
    /// A classifier whose numbers are none.
    #[error(
        "a classifier holds NaN or infinity: its fit diverged; look for extreme embeddings, or raise `ridge`"
    )]
    ClassifierNotFinite,
    /// A labelled response that does not fit the classifier.
    #[error("a response to prompt {0} has other labels or tokens")]
    Labels(usize),
    /// A dimension of which one end is missing.
    #[error(
        "dimension '{dimension}': {high} of {responses} responses are at its high end; both ends are needed"
    )]
    OneEnd {
        /// The dimension.
        dimension: String,
        /// Responses at its high end.
        high: usize,
        /// All responses.
        responses: usize,
    },
    /// An item of another number of responses than the objective compares.
    #[error("an item of {got} responses, not {expected}")]
    ItemSize {
        /// Responses of the item.
        got: usize,
        /// What the objective compares.
        expected: usize,
    },
    /// A training without data.
    #[error("there is nothing to train on")]
    NoData,
    /// The policy said nothing.
    #[error("a prompt got no response")]
    NoResponse,
    /// A training's environment failed: sampling or scoring.
    #[error("{0}")]
    Environment(String),
}

/// Result of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;
