//! What went wrong, as exit codes: 1 failed, 2 bad usage or config.

/// A mistake of the user's that another command line or config would mend.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct Usage(pub String);

/// An error that ends in exit code 2.
pub fn usage(message: impl Into<String>) -> anyhow::Error {
    Usage(message.into()).into()
}

/// ` (did you mean 'x'?)` when one of the known names is near, else nothing.
pub fn nearest<'a>(name: &str, known: impl IntoIterator<Item = &'a str>) -> String {
    let scored = known
        .into_iter()
        .map(|k| (strsim::jaro_winkler(name, k), k))
        .filter(|(score, _)| *score > 0.75);
    let best = scored.max_by(|a, b| a.0.total_cmp(&b.0));
    best.map_or(String::new(), |(_, k)| format!(" (did you mean '{k}'?)"))
}
