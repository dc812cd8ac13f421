//! What can go wrong. A message stands alone: it says what is wrong, where, and what to do.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

/// Everything that can go wrong in this crate.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// From a language model behind a reward or a judge.
    #[error(transparent)]
    Lm(#[from] lm::Error),
    /// A reward model whose fit diverged.
    #[error(
        "the fit ends in scores that are no numbers (NaN or infinity); lower learning_rate, or look for very large \
         parameters of the base"
    )]
    FitNotFinite,
    /// A reward model that gives a response no score.
    #[error(
        "the reward model over '{base}' scores {response:?} with {score}, which is no number; look for damaged or very \
         large parameters"
    )]
    ScoreNotFinite {
        /// Its base model.
        base: String,
        /// The beginning of the response.
        response: String,
        /// The score.
        score: f64,
    },
    /// A file could not be written or read.
    #[error("{path}: {error}")]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said. It is in the message, so it is not the source: a chain would say it twice.
        error: std::io::Error,
    },
    /// A table could not be made, written or read.
    #[error("{path}: {message}")]
    Table {
        /// The file, or what the table is.
        path: PathBuf,
        /// What the library said.
        message: String,
    },
    /// A file that is not the JSON that it should be.
    #[error("{path}:{}:{}: {error}", .error.line(), .error.column())]
    Json {
        /// The file.
        path: PathBuf,
        /// What is wrong, and where.
        error: serde_json::Error,
    },
    /// A file of a reward model could not be written, or is not what it should be.
    #[error("{path}: {message}")]
    RewardModel {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        message: String,
    },
    /// A plot could not be drawn.
    #[error("plot {path}: {message}")]
    Plot {
        /// The file.
        path: PathBuf,
        /// What plotters said.
        message: String,
    },

    /// A setting whose value makes no sense.
    #[error("{name} is {value}, not {expected}")]
    Parameter {
        /// Where it stands in a file.
        name: &'static str,
        /// What it is.
        value: f64,
        /// What it should be.
        expected: &'static str,
    },
    /// A range that ends before it begins.
    #[error("{name}: ({low}, {high}) is empty")]
    EmptyRange {
        /// Where it stands in a file.
        name: &'static str,
        /// Its lower end.
        low: u32,
        /// Its upper end.
        high: u32,
    },
    /// A reward that sums nothing.
    #[error("a reward without terms")]
    NoTerms,
    /// A term of a sum that counts for nothing.
    #[error("a term of weight {weight} and cap {cap}: the weight is not 0, the cap above 0")]
    Term {
        /// Its weight.
        weight: f64,
        /// Standard deviations up to which it pays.
        cap: f64,
    },

    /// A direction that is no end of a dimension.
    #[error("no dimension has the direction '{direction}'; they have: {}", .known.join(", "))]
    UnknownDirection {
        /// The direction.
        direction: String,
        /// The ends of all dimensions.
        known: Vec<String>,
    },
    /// A dimension whose reward failed.
    #[error("dimension '{name}': {error}")]
    Dimension {
        /// Its name.
        name: String,
        /// Why. It is in the message, so it is not the source.
        error: Box<Error>,
    },
    /// A prompt whose reference response was not scored.
    #[error("no reference for prompt '{prompt}'")]
    NoReference {
        /// The prompt's id.
        prompt: String,
    },
    /// Rewards of other dimensions than the scorer's.
    #[error("{got} rewards of a response, not one for each of {expected} dimensions")]
    RewardCount {
        /// Number of rewards.
        got: usize,
        /// Number of dimensions.
        expected: usize,
    },

    /// A dimension without a scorer where one is needed.
    #[error(
        "it has no scorer, as what only judges and people tell; give it one where rewards count"
    )]
    OnlyJudged,
    /// A preference of which no reward tells anything.
    #[error(
        "the preference states only directions without a scorer ({}); utility needs one that has", directions.join(", ")
    )]
    NothingScored {
        /// What it states.
        directions: Vec<String>,
    },
    /// A scorer without constants of its own, where nothing measures them.
    #[error(
        "nothing is known of the mean and the spread of its scores; measure them on responses of the base, and give them \
         as normaliser: (mean: …, sd: …)"
    )]
    NoNormaliser,
    /// Stored constants for responses of another length.
    #[error(
        "the stored normaliser is one of responses of at most {measured} tokens, these have {tokens}; take normaliser: \
         Measured, or give numbers that you measured"
    )]
    OtherLength {
        /// Tokens of the responses that it was measured on.
        measured: usize,
        /// Tokens of those at hand.
        tokens: usize,
    },
    /// A normaliser that a run measures, asked for where no run is.
    #[error(
        "normaliser: Measured is for runs, which have reference responses; give numbers here, as a run's manifest has \
         them"
    )]
    NotARun,
    /// A normaliser that is to be measured before anything is there to measure it on.
    #[error("the normaliser is measured on reference responses, and there are none")]
    NothingToMeasure,
    /// A program that is to score and does not.
    #[error("{name}: {message}")]
    Outside {
        /// The command, or the server's address.
        name: String,
        /// What went wrong, with what it said last.
        message: String,
    },
    /// A command without a program.
    #[error("Command: the list is empty; it begins with a program")]
    NoCommand,
    /// A label that a model does not have.
    #[error(
        "{}: {}; it has: {}", folder.display(),
        label.as_ref().map_or_else(|| "name the label that counts".to_string(), |l| format!("no label '{l}'")),
        labels.join(", ")
    )]
    Label {
        /// The model's folder.
        folder: PathBuf,
        /// What was asked for.
        label: Option<String>,
        /// The labels that are there.
        labels: Vec<String>,
    },
    /// A folder that holds no model of the hub.
    #[error("{} is not there; a model of the hub is a folder as transformers saves it", config.display())]
    NoHubModel {
        /// The file that is missing.
        config: PathBuf,
    },
    /// A folder that holds no reward model.
    #[error(
        "{card} is not there; a reward model is a folder that a training with a recipe Reward writes"
    )]
    NoRewardModel {
        /// The file that is missing.
        card: PathBuf,
    },
    /// A base model whose responses have no end.
    #[error("{model} names no token that ends a response")]
    NoEndToken {
        /// Its path.
        model: PathBuf,
    },
    /// Too few pairs to fit a reward to.
    #[error("{pairs} pairs are too few to fit a reward to")]
    TooFewPairs {
        /// How many there are.
        pairs: usize,
    },

    /// Scores of other strategies than those of the config.
    #[error("scores of {scored:?}, the config has {configured:?}; run it again")]
    OtherStrategies {
        /// Strategies with scores.
        scored: Vec<String>,
        /// Strategies of the config.
        configured: BTreeSet<String>,
    },

    /// An address that is none of a server.
    #[error("url '{url}' begins with neither http:// nor https://")]
    Url {
        /// The address.
        url: String,
    },
    /// An address that would write a secret into files.
    #[error("url holds a name or password, which would be written to files; use key_variable")]
    UrlWithSecret,
    /// An address that may write a secret into files.
    #[error(
        "url holds a query (what follows ? or #), which may be a key and would be written to files; end it at /v1, \
         and use key_variable for the key"
    )]
    UrlWithQuery,
    /// An environment variable without a key.
    #[error("the environment variable {variable}, which is to hold the server's key, {problem}")]
    Key {
        /// Its name.
        variable: String,
        /// What is wrong with it.
        problem: &'static str,
    },
    /// A server that answers no questions.
    #[error("{url}: {message}; verdicts so far are kept, and the same command goes on from them")]
    Endpoint {
        /// Its address.
        url: String,
        /// What it said.
        message: String,
    },
    /// A line that is no verdict.
    #[error("{path}:{line}: no verdict ({error}); remove the line and it is asked again")]
    Verdict {
        /// The file of verdicts.
        path: PathBuf,
        /// The line, from 1.
        line: usize,
        /// What is wrong with it.
        error: serde_json::Error,
    },

    /// Strategies whose responses are all alike, or only one of them.
    #[error("nothing to compare: two strategies with different responses are needed")]
    NothingToCompare,
    /// A key of a study that names a strategy in a pair but not in its list.
    #[error("the key names no strategy '{name}'")]
    UnknownStrategy {
        /// The strategy.
        name: String,
    },
    /// A study without answers.
    #[error("there are no answers")]
    NoAnswers,
    /// Answers to another study.
    #[error("{path}: answers to study {got}, this is {expected}")]
    OtherStudy {
        /// The file of answers.
        path: PathBuf,
        /// The study that they answer.
        got: String,
        /// The study at hand.
        expected: String,
    },
    /// An answer about a pair that was not shown.
    #[error("{path}: there is no pair {id} in the study")]
    UnknownPair {
        /// The file of answers.
        path: PathBuf,
        /// Number of the pair.
        id: u32,
    },
    /// Two files of answers by one rater.
    #[error("{path}: rater '{rater}' comes twice")]
    RaterTwice {
        /// The second file.
        path: PathBuf,
        /// Who it is.
        rater: String,
    },
}

/// Result of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    pub(crate) fn io(path: &Path) -> impl Fn(std::io::Error) -> Self + use<> {
        let path = path.to_path_buf();
        move |error| Self::Io {
            path: path.clone(),
            error,
        }
    }

    #[cfg(feature = "tables")]
    pub(crate) fn table(path: &Path, e: impl std::fmt::Display) -> Self {
        Self::Table {
            path: path.into(),
            message: e.to_string(),
        }
    }

    pub(crate) fn reward_model(path: &Path, e: impl std::fmt::Display) -> Self {
        Self::RewardModel {
            path: path.into(),
            message: e.to_string(),
        }
    }
}

/// Checks that a setting is a finite number from 0 on.
pub(crate) fn from_zero_on(name: &'static str, value: f64) -> Result<()> {
    if value >= 0.0 && value.is_finite() {
        return Ok(());
    }
    let expected = "a number from 0 on";
    Err(Error::Parameter {
        name,
        value,
        expected,
    })
}

/// Checks that a setting is above 0.
pub(crate) fn above_zero(name: &'static str, value: f64) -> Result<()> {
    if value > 0.0 {
        return Ok(());
    }
    let expected = "above 0";
    Err(Error::Parameter {
        name,
        value,
        expected,
    })
}
