//! How diverse responses are, and how repetitive each is.

use std::collections::HashSet;

use unicode_segmentation::UnicodeSegmentation;

/// Distinct-n (arXiv 1510.03055): n-grams of words that differ, over all n-grams of the responses; words
/// as Unicode bounds them, in lower case. `None` where there is no n-gram.
///
/// ```
/// use mope_eval::metrics::distinct;
/// assert_eq!(distinct(&["a b a b"], 2), Some(2.0 / 3.0));
/// ```
pub fn distinct(responses: &[&str], n: usize) -> Option<f64> {
    let mut seen = HashSet::new();
    let mut all = 0;
    for response in responses {
        let lower = response.to_lowercase();
        let words: Vec<&str> = lower.unicode_words().collect();
        for gram in words.windows(n) {
            all += 1;
            let gram: Vec<String> = gram.iter().map(|w| (*w).to_string()).collect();
            seen.insert(gram);
        }
    }
    (all > 0).then(|| seen.len() as f64 / all as f64)
}

/// Share of a response's token trigrams that came before in it (seq-rep-3 of arXiv 1908.04319); 0 for
/// fewer than three tokens.
///
/// ```
/// use mope_eval::metrics::repetition;
/// assert_eq!(repetition(&[1, 2, 3, 1, 2, 3]), 0.25);
/// ```
pub fn repetition(tokens: &[u32]) -> f64 {
    let all = tokens.len().saturating_sub(2);
    let distinct: HashSet<&[u32]> = tokens.windows(3).collect();
    if all == 0 {
        return 0.0;
    }
    1.0 - distinct.len() as f64 / all as f64
}
