//! What went wrong: mistakes of the user's, which another file or other arguments would mend, apart from failures.
//!
//! ```
//! use mope_harness::failure::{is_usage, message, nearest, usage};
//!
//! let hint = nearest("bass", ["base", "uniform"]);
//! let error = usage(format!("no strategy 'bass'{hint}")).context("kind.ron");
//! assert!(is_usage(&error));
//! assert_eq!(message(&error), "kind.ron: no strategy 'bass' (did you mean 'base'?)");
//! ```

/// A mistake of the user's, somewhere in the chain of an [`anyhow::Error`]. The command line ends with exit code 2 for
/// it, and with 1 for everything else.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct Usage(pub String);

/// An error that is a [`Usage`].
pub fn usage(message: impl Into<String>) -> anyhow::Error {
    Usage(message.into()).into()
}

/// Whether an error is a mistake of the user's.
pub fn is_usage(error: &anyhow::Error) -> bool {
    error.downcast_ref::<Usage>().is_some()
}

/// An error with its causes, outermost first, each said once: many errors end with the text of their cause.
pub fn message(error: &anyhow::Error) -> String {
    let mut message = String::new();
    for cause in error.chain().map(ToString::to_string) {
        if message.is_empty() {
            message = cause;
        } else if !message.ends_with(&cause) {
            message = format!("{message}: {cause}");
        }
    }
    message
}

/// ` (did you mean 'x'?)` when one of the known names is near, else nothing.
pub fn nearest<'a>(name: &str, known: impl IntoIterator<Item = &'a str>) -> String {
    let lower = name.to_lowercase();
    let scored = known
        .into_iter()
        .map(|k| (strsim::jaro_winkler(&lower, &k.to_lowercase()), k))
        .filter(|(score, _)| *score > 0.75);
    let best = scored.max_by(|a, b| a.0.total_cmp(&b.0));
    best.map_or(String::new(), |(_, k)| format!(" (did you mean '{k}'?)"))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use anyhow::Context;

    use super::*;

    #[test]
    fn a_cause_is_said_once() {
        #[derive(Debug, thiserror::Error)]
        #[error("a.json: {0}")]
        struct Read(#[source] std::io::Error);

        let gone = || std::io::Error::other("it is gone");
        let error = anyhow::Error::from(Read(gone()));
        assert_eq!(message(&error), "a.json: it is gone");
        let error = Err::<(), _>(gone()).context("a.json").context("reading");
        assert_eq!(message(&error.unwrap_err()), "reading: a.json: it is gone");
    }

    #[test]
    fn a_mistake_is_one_in_any_context() {
        let mistake = Err::<(), _>(usage("no")).context("file");
        assert!(is_usage(&mistake.unwrap_err()) && !is_usage(&anyhow::anyhow!("no")));
    }
}
