//! Everything that can go wrong in this crate.

use std::fmt::Display;
use std::path::{Path, PathBuf};

use crate::Output;

/// Everything that can go wrong in this crate.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// From the language model.
    #[error(transparent)]
    Lm(#[from] lm::Error),
    /// A PCM of more experts or wider embeddings than any that is in use.
    #[error("{experts} experts and embeddings {embedding} wide; at most {} and {}", most.0, most.1)]
    Size {
        /// Its experts.
        experts: usize,
        /// Width of the embeddings that it reads.
        embedding: usize,
        /// The most of both.
        most: (usize, usize),
    },
    /// A file that cannot be read or written.
    #[error("{}: {message}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What went wrong.
        message: String,
    },
    /// A PCM whose logits for a sequence are NaN or infinite.
    #[error(
        "the PCM gave no numbers (NaN or infinity) for sequence {sequence} at token {token}; look for very large \
         parameters, or train it again"
    )]
    NoNumbers {
        /// The sequence's name.
        sequence: usize,
        /// Number of the token.
        token: usize,
    },
    /// A PCM without experts to weigh, or without embeddings to read.
    #[error("a PCM needs experts and embeddings")]
    NothingToRead,
    /// A stream that cannot be shared out among the heads.
    #[error("width {width} does not divide by {heads} heads")]
    Heads {
        /// Width of the stream.
        width: usize,
        /// Heads of the attention.
        heads: usize,
    },
    /// Embeddings of its own that are not as wide as its stream.
    #[error("its own embeddings are {embeddings} wide and its stream {stream}")]
    OwnEmbeddings {
        /// Width of the embeddings.
        embeddings: usize,
        /// Width of the stream.
        stream: usize,
    },
    /// A PCM that reads no context and cannot read the preference as text.
    #[error("a PCM without context reads the preference as weights")]
    TextWithoutContext,
    /// A response or a context without a token.
    #[error("the PCM needs a context and a response")]
    EmptyContext,
    /// Inputs of another width than the PCM reads.
    #[error(
        "{importances} importances and {statistics} statistics for a PCM over {experts} experts and {expected} \
         statistics"
    )]
    Inputs {
        /// Importances that were given.
        importances: usize,
        /// Statistics that were given.
        statistics: usize,
        /// Experts of the PCM, each with an importance.
        experts: usize,
        /// Statistics that it reads.
        expected: usize,
    },
    /// A preference that is about other experts.
    #[error("the preference names none of the PCM's experts")]
    NothingNamed,
    /// A sequence goes on of which nothing was read.
    #[error("sequence {0} never began")]
    UnknownSequence(usize),
    /// A rollout whose numbers do not belong to each other or to the PCM.
    #[error(
        "a rollout of {tokens} tokens with {log_probs} experts' and {behaviour} behaviour log-probabilities for \
         {experts} experts"
    )]
    RolloutLengths {
        /// Its tokens.
        tokens: usize,
        /// Log-probabilities under the experts.
        log_probs: usize,
        /// Log-probabilities under the policy that sampled it.
        behaviour: usize,
        /// Experts of the PCM.
        experts: usize,
    },
    /// A rollout that was recorded for another kind of output.
    #[error(
        "a rollout of {tokens} tokens with {base} log-probabilities of the base and {support} numbers for the others; \
         it was recorded for another output than {output:?}"
    )]
    RolloutOutput {
        /// Its tokens.
        tokens: usize,
        /// Log-probabilities under the base.
        base: usize,
        /// Numbers of the truncated distributions.
        support: usize,
        /// What the PCM's outputs do.
        output: Output,
    },
    /// A rollout whose beginnings make no sense.
    #[error(
        "a rollout of {tokens} tokens with beginnings of {cuts:?} tokens with utilities {utilities:?}; the last is the whole"
    )]
    RolloutBeginnings {
        /// Its tokens.
        tokens: usize,
        /// Tokens of each beginning.
        cuts: Vec<u32>,
        /// The utility of each.
        utilities: Vec<f64>,
    },
    /// A rollout of nothing, or one without utility.
    #[error("a rollout without tokens or utility")]
    EmptyRollout,
    /// A rollout without beginnings where segments are to be credited.
    #[error(
        "a response to '{prompt}' was recorded without the utilities of its beginnings; record with a segment length \
         (settings: segment), or take credit: Response"
    )]
    NoBeginnings {
        /// Its prompt.
        prompt: String,
    },
    /// Rollouts that are not in pairs.
    #[error("rollouts come in pairs")]
    Unpaired,
    /// A replay without prompts to measure on.
    #[error("all rollouts are of one prompt; there is nothing to hold out")]
    NothingToHoldOut,
    /// Settings of a fit that the PCM's kind of output or the algorithm has no use for.
    #[error("{0}")]
    Unsupported(&'static str),
}

/// Result of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    pub(crate) fn file(path: &Path, message: impl Display) -> Self {
        Self::File {
            path: path.to_path_buf(),
            message: message.to_string(),
        }
    }
}
