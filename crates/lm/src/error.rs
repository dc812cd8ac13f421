use std::path::{Path, PathBuf};

/// Everything that can go wrong in this crate. Each variant carries what a user needs to act.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file could not be opened, read or written.
    #[error("{path}: {source}")]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// A file is not what its format says it must be.
    #[error("{path}{}: {message}", .offset.map_or(String::new(), |o| format!(" at byte {o}")))]
    Format {
        /// The file.
        path: PathBuf,
        /// Position of the offending bytes, where one is known.
        offset: Option<u64>,
        /// What is wrong, and what to do.
        message: String,
    },
    /// A model of a kind that this crate does not run.
    #[error("{path}: {what} is not supported; supported: {supported}")]
    Unsupported {
        /// The file or folder.
        path: PathBuf,
        /// The feature by its name in the file.
        what: String,
        /// What would have been accepted.
        supported: String,
    },
    /// The checkpoint has no tensor of this name.
    #[error("{path}: tensor '{tensor}' is missing; the file is incomplete or of another model")]
    MissingTensor {
        /// The file.
        path: PathBuf,
        /// Its name there.
        tensor: String,
    },
    /// A tensor whose shape contradicts the config.
    #[error("{path}: tensor '{tensor}': expected shape {expected:?}, got {got:?}")]
    Shape {
        /// The file.
        path: PathBuf,
        /// Its name there.
        tensor: String,
        /// From the config.
        expected: Vec<usize>,
        /// From the file.
        got: Vec<usize>,
    },
    /// A stored number that is NaN or infinite.
    #[error(
        "{path}: tensor '{tensor}' holds {value} at {position:?}; the file is damaged, or its training diverged: \
         fetch or train it again"
    )]
    NotFinite {
        /// The file.
        path: PathBuf,
        /// Its name there.
        tensor: String,
        /// The number.
        value: f32,
        /// Where it stands, by the tensor's dimensions.
        position: Vec<usize>,
    },
    /// A sequence of which the model computes NaN or infinity.
    #[error(
        "the model gave no numbers (NaN or infinity) for sequence {lane}: its weights are too large for this number \
         format, or damaged; load it in F32, or fetch it again"
    )]
    NoNumbers {
        /// The sequence, by its place among those that were asked for.
        lane: usize,
    },
    /// An argument outside of what an operation accepts.
    #[error("{0}")]
    Argument(String),
    /// More tokens than the model's context or the cache's capacity.
    #[error(
        "{tokens} tokens do not fit into {limit} ({what}); shorten the prompt or generate less"
    )]
    TooLong {
        /// Tokens needed.
        tokens: usize,
        /// Tokens that fit.
        limit: usize,
        /// What sets the limit.
        what: &'static str,
    },
    /// The tokenizer could not be built or refused a text.
    #[error("tokenizer: {0}")]
    Tokenizer(String),
    /// The chat template is wrong or refused the messages.
    #[error("chat template: {0}")]
    ChatTemplate(String),
}

/// Result of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    pub(crate) fn io(path: &Path) -> impl FnOnce(std::io::Error) -> Self + '_ {
        move |source| Self::Io {
            path: path.into(),
            source,
        }
    }

    pub(crate) fn format(path: &Path, message: impl Into<String>) -> Self {
        Self::Format {
            path: path.into(),
            offset: None,
            message: message.into(),
        }
    }

    pub(crate) fn unsupported(path: &Path, what: impl Into<String>, supported: &str) -> Self {
        Self::Unsupported {
            path: path.into(),
            what: what.into(),
            supported: supported.into(),
        }
    }
}
