//! A study with people: blinded pairs out, answers back in.
//!
//! ```
//! use mope_eval::rows::{GenerationRow, Identity};
//! use mope_eval::study::Study;
//! let response = |strategy: &str, text: &str| GenerationRow {
//!     identity: Identity {
//!         strategy: strategy.into(),
//!         preference: "friendly".into(),
//!         prompt: "sky".into(),
//!         sample: 0,
//!     },
//!     question: "Why is the sky blue?".into(),
//!     response: text.into(),
//!     tokens: vec![],
//!     pieces: vec![],
//!     log_probs: vec![],
//!     kl: vec![],
//!     base_log_probs: vec![],
//!     experts: vec![],
//!     weights: vec![],
//!     ended: true,
//! };
//! let rows = [response("base", "It scatters."), response("pcm", "Good question!")];
//! let study = Study::draw(&rows, &["base".into(), "pcm".into()], &Default::default(), 10, 1)?;
//! assert_eq!(study.shown.len(), 1);
//! assert!(!study.page("Two answers")?.contains("pcm"));
//! # Ok::<(), mope_eval::Error>(())
//! ```

mod agreement;
#[cfg(feature = "tables")]
mod analysis;

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{RngCore, SeedableRng};
use serde::de::{Error as _, MapAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize};

use crate::escape::escape_html;
use crate::rows::{GenerationRow, Identity};
use crate::{Error, Result, write_atomic};

pub use agreement::krippendorff;
#[cfg(feature = "tables")]
pub use analysis::Analysis;

/// A pair as a rater sees it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Shown {
    /// Number of the pair, from 1.
    pub id: u32,
    /// What the person wishes, in words.
    pub preference: String,
    /// What was asked.
    pub question: String,
    /// The response on the left.
    pub left: String,
    /// The response on the right.
    pub right: String,
}

/// Who wrote what; raters don't get it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Origin {
    /// The response on the left.
    pub left: String,
    /// The response on the right.
    pub right: String,
    /// Preference, prompt and sample of both.
    pub preference: String,
    /// The prompt's id.
    pub prompt: String,
    /// Number of the sample.
    pub sample: u32,
}

/// The key of a study.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Key {
    /// Names the study; answers carry it.
    pub study: String,
    /// Strategies in the order of the run.
    pub strategies: Vec<String>,
    /// By the pair's number.
    pub pairs: BTreeMap<u32, Origin>,
}

/// What a rater prefers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Answer {
    /// The response on the left.
    Left,
    /// The response on the right.
    Right,
    /// Neither of them.
    Tie,
}

/// What the page exports.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Answers {
    /// The study that they answer.
    pub study: String,
    /// Name of the person who answered.
    pub rater: String,
    /// By the pair's number; each once.
    #[serde(deserialize_with = "each_once")]
    pub answers: BTreeMap<u32, Answer>,
}

/// Reads answers by pair. JSON lets a name come twice, and the last would count; here it is a mistake.
fn each_once<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<BTreeMap<u32, Answer>, D::Error> {
    struct Pairs;

    impl<'de> Visitor<'de> for Pairs {
        type Value = BTreeMap<u32, Answer>;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("answers by the numbers of pairs")
        }

        fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
            let mut answers = BTreeMap::new();
            while let Some((pair, answer)) = map.next_entry()? {
                if answers.insert(pair, answer).is_some() {
                    let twice =
                        format!("pair {pair} is answered twice; keep the answer that counts");
                    return Err(A::Error::custom(twice));
                }
            }
            Ok(answers)
        }
    }

    deserializer.deserialize_map(Pairs)
}

/// A blinded study.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Study {
    /// What raters see.
    pub shown: Vec<Shown>,
    /// Who wrote what.
    pub key: Key,
}

impl Study {
    /// Draws pairs of different strategies' responses to the same prompt, preference and sample, every two
    /// strategies about equally often, sides at random. `wishes` are the preferences in words.
    ///
    /// # Errors
    /// [`Error::NothingToCompare`].
    pub fn draw(
        generations: &[GenerationRow],
        strategies: &[String],
        wishes: &BTreeMap<String, String>,
        pairs: usize,
        seed: u64,
    ) -> Result<Self> {
        let mut random = ChaCha8Rng::seed_from_u64(seed);
        let mut below = |n: usize| (random.next_u64() % n.max(1) as u64) as usize;
        let drawn = draw_pairs(generations, strategies, pairs, &mut below);
        if drawn.is_empty() {
            return Err(Error::NothingToCompare);
        }
        let (mut shown, mut origins) = (Vec::new(), BTreeMap::new());
        let mut name = 0xcbf2_9ce4_8422_2325u64;
        for (mut pair, id) in drawn.into_iter().zip(1..) {
            if below(2) == 1 {
                pair.swap(0, 1);
            }
            let [left, right] = pair;
            let i = &left.identity;
            for byte in left.response.bytes().chain(right.response.bytes()) {
                // FNV-1a: it only tells studies apart.
                name = (name ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3);
            }
            shown.push(Shown {
                id,
                preference: wishes.get(&i.preference).unwrap_or(&i.preference).clone(),
                question: left.question.clone(),
                left: left.response.clone(),
                right: right.response.clone(),
            });
            let origin = Origin {
                left: i.strategy.clone(),
                right: right.identity.strategy.clone(),
                preference: i.preference.clone(),
                prompt: i.prompt.clone(),
                sample: i.sample,
            };
            origins.insert(id, origin);
        }
        Ok(Self {
            shown,
            key: Key {
                study: format!("{name:016x}"),
                strategies: strategies.to_vec(),
                pairs: origins,
            },
        })
    }

    /// The page that raters open: one file, offline.
    ///
    /// # Errors
    /// Never in practice: texts are always JSON.
    pub fn page(&self, title: &str) -> Result<String> {
        let data = serde_json::json!({"study": self.key.study, "pairs": self.shown});
        // Nothing in a text may end the script element.
        let data = data.to_string().replace('<', "\\u003c");
        // Filled in one go: a title may hold the word that stands for the data.
        let page = include_str!("page.html");
        let (before, rest) = page.split_once("DATA").unwrap_or((page, ""));
        let title = escape_html(title);
        let fill = |part: &str| part.replace("TITLE", &title);
        Ok([&fill(before), data.as_str(), &fill(rest)].concat())
    }
}

/// At most `pairs` pairs of responses in random order, every two strategies about equally often; `below` draws a number
/// below another.
fn draw_pairs<'a>(
    generations: &'a [GenerationRow],
    strategies: &[String],
    pairs: usize,
    below: &mut impl FnMut(usize) -> usize,
) -> Vec<[&'a GenerationRow; 2]> {
    let key = |i: &Identity| (i.preference.clone(), i.prompt.clone(), i.sample);
    let mut rows: BTreeMap<_, BTreeMap<&str, &GenerationRow>> = BTreeMap::new();
    for row in generations {
        let by_strategy = rows.entry(key(&row.identity)).or_default();
        by_strategy.insert(&row.identity.strategy, row);
    }
    let mut all: Vec<(usize, usize)> = Vec::new();
    for j in 0..strategies.len() {
        all.extend((0..j).map(|i| (i, j)));
    }
    // Pairs of responses of each two strategies, in random order.
    let mut decks: Vec<Vec<_>> = all
        .iter()
        .map(|(i, j)| {
            let both = |responses| different(responses, &strategies[*i], &strategies[*j]);
            let mut deck: Vec<_> = rows.values().filter_map(both).collect();
            for last in (1..deck.len()).rev() {
                deck.swap(last, below(last + 1));
            }
            deck
        })
        .collect();
    let mut drawn = Vec::new();
    while drawn.len() < pairs && decks.iter().any(|d| !d.is_empty()) {
        for deck in &mut decks {
            if let Some(pair) = deck.pop().filter(|_| drawn.len() < pairs) {
                drawn.push(pair);
            }
        }
    }
    for last in (1..drawn.len()).rev() {
        drawn.swap(last, below(last + 1));
    }
    drawn
}

/// Two strategies' responses, where they differ: equal ones tell nothing.
fn different<'a>(
    responses: &BTreeMap<&str, &'a GenerationRow>,
    first: &str,
    second: &str,
) -> Option<[&'a GenerationRow; 2]> {
    let pair = [*responses.get(first)?, *responses.get(second)?];
    (pair[0].response != pair[1].response).then_some(pair)
}

/// Reads the key that an export wrote.
///
/// # Errors
/// [`Error::Io`], [`Error::Json`].
pub fn read_key(path: &Path) -> Result<Key> {
    read(path)
}

/// Reads what raters sent back, and checks that it belongs to the study.
///
/// # Errors
/// [`Error::Io`] and [`Error::Json`] for a damaged file, [`Error::OtherStudy`], [`Error::UnknownPair`],
/// [`Error::RaterTwice`].
pub fn read_answers(key: &Key, paths: &[PathBuf]) -> Result<Vec<Answers>> {
    let mut all: Vec<Answers> = Vec::new();
    for path in paths {
        let answers: Answers = read(path)?;
        let path = path.clone();
        if answers.study != key.study {
            let (got, expected) = (answers.study, key.study.clone());
            return Err(Error::OtherStudy {
                path,
                got,
                expected,
            });
        }
        let mut ids = answers.answers.keys();
        if let Some(&id) = ids.find(|id| !key.pairs.contains_key(id)) {
            return Err(Error::UnknownPair { path, id });
        }
        if all.iter().any(|other| other.rater == answers.rater) {
            let rater = answers.rater;
            return Err(Error::RaterTwice { path, rater });
        }
        all.push(answers);
    }
    Ok(all)
}

fn read<T: serde::de::DeserializeOwned>(path: &Path) -> Result<T> {
    let text = lm::load::read_text(path)?;
    serde_json::from_str(&text).map_err(|error| Error::Json {
        path: path.into(),
        error,
    })
}

/// Writes the key.
///
/// # Errors
/// A file that cannot be written.
pub fn write_key(key: &Key, path: &Path) -> Result<()> {
    let text = serde_json::to_string_pretty(key).map_err(|error| Error::Json {
        path: path.into(),
        error,
    })?;
    let text = text + "\n";
    write_atomic(path, text.as_bytes())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[test]
    fn a_title_is_text_whatever_words_it_has() {
        let key = Key {
            study: "7".into(),
            strategies: vec![],
            pairs: BTreeMap::new(),
        };
        let study = Study { shown: vec![], key };
        for title in ["DATA", "TITLE", "DATATITLE", "</title>"] {
            let page = study.page(title).unwrap();
            let heading = format!("<title>{}</title>", escape_html(title));
            assert!(page.contains(&heading), "{title}");
            assert_eq!(page.matches("\"study\":\"7\"").count(), 1, "{title}");
        }
    }

    #[test]
    fn no_pair_is_answered_twice() {
        let read = |answers: &str| {
            let text = format!("{{\"study\": \"7\", \"rater\": \"ann\", \"answers\": {answers}}}");
            serde_json::from_str::<Answers>(&text)
        };
        let once = read("{\"1\": \"left\", \"2\": \"tie\"}").unwrap();
        assert_eq!(once.answers[&2], Answer::Tie);
        for twice in [
            "{\"1\": \"left\", \"1\": \"right\"}",
            "{\"1\": \"left\", \"1\": \"left\"}",
        ] {
            let error = read(twice).unwrap_err().to_string();
            assert!(error.contains("pair 1 is answered twice"), "{error}");
        }
        assert!(read("[]").is_err());
    }
}
