//! BLEU as sacrebleu computes it for a sentence (arXiv 1804.08771): tokens of mteval's `13a`, four orders,
//! effective order, exponential smoothing of orders without a match.

use std::collections::HashMap;
use std::sync::LazyLock;

use regex::Regex;

const ORDERS: usize = 4;

#[expect(
    clippy::unwrap_used,
    reason = "the patterns are constants, and tests use them"
)]
static RULES: LazyLock<[(Regex, &str); 4]> = LazyLock::new(|| {
    [
        (r"([\{-\~\[-` -\&\(-\+\:-@/])", " $1 "),
        (r"([^0-9])([\.,])", "$1 $2 "),
        (r"([\.,])([^0-9])", " $1 $2"),
        (r"([0-9])(-)", "$1 $2 "),
    ]
    .map(|(rule, with)| (Regex::new(rule).unwrap(), with))
});

/// Words and punctuation, as `13a` separates them.
pub fn tokens(text: &str) -> Vec<String> {
    let mut text = text
        .replace("<skipped>", "")
        .replace("-\n", "")
        .replace('\n', " ");
    for (entity, character) in [
        ("&quot;", "\""),
        ("&amp;", "&"),
        ("&lt;", "<"),
        ("&gt;", ">"),
    ] {
        text = text.replace(entity, character);
    }
    text = format!(" {text} ");
    for (rule, with) in RULES.iter() {
        text = rule.replace_all(&text, *with).into_owned();
    }
    text.split_whitespace().map(String::from).collect()
}

/// How often each n-gram stands in a text.
type Counts<'a> = HashMap<&'a [String], usize>;

fn counts(tokens: &[String]) -> Counts<'_> {
    let mut counts = Counts::new();
    for n in 1..=ORDERS {
        for gram in tokens.windows(n) {
            *counts.entry(gram).or_default() += 1;
        }
    }
    counts
}

/// Sentence BLEU in 0..100 of a response against references, all as [`tokens`] gives them.
pub fn sentence(response: &[String], references: &[&[String]]) -> f64 {
    let mut most = Counts::new();
    for reference in references {
        for (gram, count) in counts(reference) {
            let best = most.entry(gram).or_default();
            *best = count.max(*best);
        }
    }
    let lengths: Vec<usize> = references.iter().map(|r| r.len()).collect();
    let counted = counts(response);
    let known = |gram: &[String]| most.get(gram).copied().unwrap_or(0);
    of_counts(response.len(), &counted, known, &lengths)
}

/// The mean BLEU of every text against all the others (Self-BLEU, arXiv 1802.01886): the higher, the more
/// alike. `None` for fewer than two.
pub fn of_each_other(texts: &[Vec<String>]) -> Option<f64> {
    if texts.len() < 2 {
        return None;
    }
    // The largest count of each n-gram with its owner, and the largest of everybody else.
    let mut most: HashMap<&[String], (usize, usize, usize)> = HashMap::new();
    let all: Vec<Counts<'_>> = texts.iter().map(|t| counts(t)).collect();
    for (owner, counts) in all.iter().enumerate() {
        for (&gram, &count) in counts {
            let best = most.entry(gram).or_insert((0, owner, 0));
            if count > best.0 {
                *best = (count, owner, best.0);
            } else {
                best.2 = count.max(best.2);
            }
        }
    }
    let mut total = 0.0;
    for (i, text) in texts.iter().enumerate() {
        let others = |gram: &[String]| match most.get(gram) {
            Some(&(_, owner, second)) if owner == i => second,
            Some(&(first, _, _)) => first,
            None => 0,
        };
        let lengths = texts.iter().enumerate().filter(|(j, _)| *j != i);
        let lengths: Vec<usize> = lengths.map(|(_, t)| t.len()).collect();
        total += of_counts(text.len(), &all[i], others, &lengths);
    }
    Some(total / texts.len() as f64)
}

/// BLEU of a text from the counts of its n-grams, the largest counts in the references, and their lengths.
fn of_counts(
    length: usize,
    counts: &Counts<'_>,
    known: impl Fn(&[String]) -> usize,
    lengths: &[usize],
) -> f64 {
    let mut correct = [0usize; ORDERS];
    let mut total = [0usize; ORDERS];
    for (gram, count) in counts {
        correct[gram.len() - 1] += (*count).min(known(gram));
        total[gram.len() - 1] += count;
    }
    if correct.iter().all(|c| *c == 0) {
        return 0.0;
    }
    let closest = lengths.iter().copied();
    let closest = closest
        .min_by_key(|&l| (l.abs_diff(length), l))
        .unwrap_or(0);
    let brevity = match length < closest {
        true => 1.0 - closest as f64 / length as f64,
        false => 0.0,
    };
    let (mut smooth, mut sum, mut orders) = (1.0, 0.0, 0.0);
    for (correct, total) in correct.iter().zip(total).filter(|(_, t)| *t > 0) {
        let precision = match correct {
            0 => {
                smooth *= 2.0;
                100.0 / (smooth * total as f64)
            }
            correct => 100.0 * *correct as f64 / total as f64,
        };
        sum += precision.ln();
        orders += 1.0;
    }
    (brevity + sum / orders).exp()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_against_the_others_is_its_sentence_score() {
        let texts = [
            "the cat sat on the mat",
            "the cat sat",
            "a dog sat on the mat, too",
        ];
        let texts: Vec<Vec<String>> = texts.iter().map(|t| tokens(t)).collect();
        let mut sum = 0.0;
        for i in 0..3 {
            let others: Vec<&[String]> =
                (0..3).filter(|&j| j != i).map(|j| &texts[j][..]).collect();
            sum += sentence(&texts[i], &others);
        }
        let mean = of_each_other(&texts).unwrap_or(f64::NAN);
        assert!((mean - sum / 3.0).abs() < 1e-9, "{mean}");
        assert_eq!(of_each_other(&texts[..1]), None);
    }
}
