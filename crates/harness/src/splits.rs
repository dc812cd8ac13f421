//! Prompt sets kept apart: what is compared must not be what was trained or chosen on.
//!
//! ```
//! use mope_harness::experiment::Experiment;
//! use mope_harness::splits::Splits;
//!
//! let folder = tempfile::tempdir()?;
//! let mut experiment = Experiment::load(&pico::experiment(folder.path()))?;
//! let trained = folder.path().join("trained.txt");
//! std::fs::write(&trained, "Who are you?\n")?;
//! experiment.training = vec![trained.clone()];
//! assert!(Splits::load(&experiment)?.warnings.is_empty());
//! // Case and spaces do not make a prompt another one.
//! std::fs::write(&trained, "WHY  is the sky blue?\n")?;
//! let error = Splits::load(&experiment).err().map(|e| e.to_string());
//! assert!(error.is_some_and(|e| e.contains("compare on prompts that no training saw")));
//! # anyhow::Ok(())
//! ```

use std::collections::{BTreeSet, HashMap};
use std::path::Path;

use anyhow::{Context, Result};

use crate::experiment::Experiment;
use crate::failure::usage;
use crate::prompts::{self, NamedPrompt};
use crate::trained;

/// Share of word pairs in common from which two prompts count as near duplicates (ours: "Why is the sky
/// blue?" and "Why is the sky so blue?" share a half).
const NEAR: f64 = 0.5;

/// Near duplicates that a warning names (ours).
const NAMED: usize = 5;

/// The prompt sets of an experiment.
pub struct Splits {
    /// What is compared.
    pub prompts: Vec<NamedPrompt>,
    /// What is chosen on.
    pub validation: Vec<NamedPrompt>,
    /// Near duplicates between sets, in words.
    pub warnings: Vec<String>,
}

impl Splits {
    /// Reads the sets of an experiment and checks each against those that are compared, and what was trained on
    /// against what is chosen on.
    ///
    /// # Errors
    /// A set that cannot be read, or a prompt that is in two sets.
    pub fn load(experiment: &Experiment) -> Result<Self> {
        let prompts = prompts::load(&experiment.prompts).context("prompts")?;
        let (mut validation, mut warnings) = (Vec::new(), Vec::new());
        // Nothing is looked up where there is no other set.
        let alone = experiment.validation.is_none() && experiment.training.is_empty();
        let mut compared = Set::new("compared", if alone { &[] } else { &prompts });
        if let Some(file) = &experiment.validation {
            validation = prompts::load(file).context("validation")?;
            let near = compared.apart(file, &validation, "choose on other prompts")?;
            warnings.extend(near);
        }
        let mut chosen = Set::new("validation", &validation);
        for file in &experiment.training {
            let trained = prompts::load(file).context("training")?;
            let remedy = "compare on prompts that no training saw";
            warnings.extend(compared.apart(file, &trained, remedy)?);
            let remedy = "choose on prompts that no training saw";
            warnings.extend(chosen.apart(file, &trained, remedy)?);
        }
        warnings.extend(trained::unnamed(experiment)?);
        Ok(Self {
            prompts,
            validation,
            warnings,
        })
    }
}

/// A set that others must keep away from.
struct Set<'a> {
    what: &'static str,
    prompts: &'a [NamedPrompt],
    words: Words,
    /// The first prompt with these words.
    same: HashMap<Vec<u32>, usize>,
    near: Neighbours,
}

impl<'a> Set<'a> {
    fn new(what: &'static str, prompts: &'a [NamedPrompt]) -> Self {
        let mut words = Words::default();
        let (mut same, mut pairs) = (HashMap::new(), Vec::with_capacity(prompts.len()));
        for (number, prompt) in prompts.iter().enumerate() {
            let key = words.of(prompt);
            pairs.push(word_pairs(&key));
            same.entry(key).or_insert(number);
        }
        Self {
            what,
            prompts,
            words,
            same,
            near: Neighbours::new(pairs),
        }
    }

    /// Near duplicates between this set and that of a file, in words.
    ///
    /// # Errors
    /// A prompt that is in both.
    fn apart(
        &mut self,
        path: &Path,
        others: &[NamedPrompt],
        remedy: &str,
    ) -> Result<Option<String>> {
        let what = self.what;
        // Prompts on both sides: one may be near several.
        let (mut pairs, mut theirs, mut ours) = (0usize, 0usize, BTreeSet::new());
        let mut named = Vec::new();
        for other in others {
            let key = self.words.of(other);
            if let Some(&prompt) = self.same.get(&key) {
                return Err(usage(format!(
                    "{}: prompt '{}' is in the {what} set, too, as '{}'; {remedy}",
                    path.display(),
                    other.id,
                    self.prompts[prompt].id
                )));
            }
            let near = self.near.of(word_pairs(&key));
            theirs += usize::from(!near.is_empty());
            pairs += near.len();
            for prompt in near {
                ours.insert(prompt);
                if named.len() < NAMED {
                    named.push(format!("'{}' and '{}'", other.id, self.prompts[prompt].id));
                }
            }
        }
        if pairs == 0 {
            return Ok(None);
        }
        let name = path.file_name().unwrap_or(path.as_os_str());
        let plural = |n: usize, one: &str, many: &str| match n {
            1 => format!("1 {one}"),
            n => format!("{n} {many}"),
        };
        Ok(Some(format!(
            "{} of {} nearly the same as {what} ones ({}, {}): {}.",
            plural(theirs, "prompt", "prompts"),
            format_args!(
                "{} {}",
                name.to_string_lossy(),
                if theirs == 1 { "is" } else { "are" }
            ),
            plural(ours.len(), "prompt", "prompts"),
            plural(pairs, "pair", "pairs"),
            named.join(", ")
        )))
    }
}

/// Words by number.
#[derive(Default)]
struct Words(HashMap<String, u32>);

impl Words {
    /// What a prompt is compared by: case, punctuation and spaces don't count.
    fn of(&mut self, prompt: &NamedPrompt) -> Vec<u32> {
        let text = prompt.prompt.question().to_lowercase();
        let words = text.split(|c: char| !c.is_alphanumeric());
        let words = words.filter(|word| !word.is_empty());
        let number = |word: &str| match self.0.get(word) {
            Some(&number) => number,
            None => {
                let number = self.0.len() as u32;
                self.0.insert(word.into(), number);
                number
            }
        };
        words.map(number).collect()
    }
}

/// The pairs of words that follow each other, each once.
fn word_pairs(words: &[u32]) -> Vec<u64> {
    let pairs = words.windows(2);
    let pairs = pairs.map(|w| u64::from(w[0]) << 32 | u64::from(w[1]));
    let mut pairs: Vec<u64> = pairs.collect();
    pairs.sort_unstable();
    pairs.dedup();
    pairs
}

/// All sets whose Jaccard index with another is at least [`NEAR`], without comparing it with each: the prefix filter of
/// AllPairs and PPJoin (Bayardo, Ma & Srikant 2007; Xiao et al. 2008), which leaves out none.
///
/// Two sets of n and m elements whose index reaches t share at least `a = ceil(t (n + m) / (1 + t))`. With the elements
/// in any common order, one that they share is then among the first `n - a + 1` of one and the first `m - a + 1` of the
/// other; the rarest come first, so that few sets have them.
struct Neighbours {
    sets: Vec<Vec<u64>>,
    /// In how many sets an element is.
    counts: HashMap<u64, u32>,
    /// The sets of an element: by size, by the element's place in the set's order, and by number.
    postings: HashMap<u64, Vec<(u32, u32, u32)>>,
}

impl Neighbours {
    fn new(sets: Vec<Vec<u64>>) -> Self {
        let mut counts: HashMap<u64, u32> = HashMap::new();
        for element in sets.iter().flatten() {
            *counts.entry(*element).or_default() += 1;
        }
        let mut neighbours = Self {
            sets,
            counts,
            postings: HashMap::new(),
        };
        for number in 0..neighbours.sets.len() {
            let ordered = neighbours.ordered(&neighbours.sets[number]);
            let size = ordered.len();
            // The longest prefix is due to the smallest set that can be near.
            let prefix = size + 1 - shared(size, smallest(size)).min(size + 1);
            for (place, element) in ordered.into_iter().take(prefix).enumerate() {
                let posting = (size as u32, place as u32, number as u32);
                neighbours
                    .postings
                    .entry(element)
                    .or_default()
                    .push(posting);
            }
        }
        neighbours
            .postings
            .values_mut()
            .for_each(|p| p.sort_unstable());
        neighbours
    }

    /// The rarest elements first.
    fn ordered(&self, set: &[u64]) -> Vec<u64> {
        let mut ordered = set.to_vec();
        ordered.sort_by_key(|element| (self.counts.get(element).copied().unwrap_or(0), *element));
        ordered
    }

    /// Numbers of the sets that are near, sorted. `set` is sorted.
    fn of(&self, set: Vec<u64>) -> Vec<usize> {
        let n = set.len();
        let mut near = BTreeSet::new();
        for (place, element) in self.ordered(&set).into_iter().enumerate() {
            let postings = self.postings.get(&element).map_or(&[][..], Vec::as_slice);
            let mut at = postings.partition_point(|p| (p.0 as usize) < smallest(n));
            while let Some(&(size, _, _)) = postings.get(at) {
                let m = size as usize;
                if smallest(m) > n {
                    break;
                }
                let next = at + postings[at..].partition_point(|p| p.0 == size);
                let least = shared(n, m);
                if place + least <= n {
                    let candidates = postings[at..next].iter();
                    for &(_, place, number) in candidates.take_while(|p| p.1 as usize + least <= m)
                    {
                        debug_assert!(place < size);
                        let number = number as usize;
                        if !near.contains(&number) && alike(&set, &self.sets[number]) >= NEAR {
                            near.insert(number);
                        }
                    }
                }
                at = next;
            }
        }
        near.into_iter().collect()
    }
}

/// The size of the smallest set that can be near one of `n` elements.
fn smallest(n: usize) -> usize {
    ((NEAR * n as f64).ceil() as usize).max(1)
}

/// Elements that near sets of `n` and `m` share at least.
fn shared(n: usize, m: usize) -> usize {
    // Less a little: what is an integer must not become the next one by rounding.
    ((NEAR / (1.0 + NEAR) * (n + m) as f64 - 1e-9).ceil() as usize).max(1)
}

/// Jaccard index of two sorted sets.
fn alike(a: &[u64], b: &[u64]) -> f64 {
    let (mut i, mut j, mut shared) = (0, 0, 0);
    while i < a.len() && j < b.len() {
        let (x, y) = (a[i], b[j]);
        shared += usize::from(x == y);
        i += usize::from(x <= y);
        j += usize::from(y <= x);
    }
    let all = a.len() + b.len() - shared;
    shared as f64 / all.max(1) as f64
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use lm::chat::{Message, Prompt};

    fn prompts(texts: &[String]) -> Vec<NamedPrompt> {
        let prompt = |(number, text): (usize, &String)| NamedPrompt {
            id: format!("{number}"),
            prompt: Prompt::Chat(vec![Message::user(text)]),
        };
        texts.iter().enumerate().map(prompt).collect()
    }

    #[test]
    fn wording_counts_and_writing_does_not() {
        let mut words = Words::default();
        let mut key = |text: &str| words.of(&prompts(&[text.to_string()])[0]);
        assert_eq!(key("Why is it so?"), key("why  is it SO"));
        let mut pairs = |text: &str| word_pairs(&key(text));
        let sky = pairs("Why is the sky blue?");
        assert!(alike(&sky, &pairs("Why is the sky so blue?")) >= NEAR);
        assert!(alike(&sky, &pairs("Why is the sea salty?")) < NEAR);
        assert_eq!(alike(&pairs("Hi"), &pairs("Ho")), 0.0);
    }

    #[test]
    fn the_index_finds_what_comparing_each_with_each_finds() {
        // Texts of few words, so that many are near; Knuth's generator.
        let mut state = 7u64;
        let mut below = |limit: u64| {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            (state >> 33) % limit
        };
        let mut texts = |count: usize| -> Vec<String> {
            let mut text = || {
                let words = (0..below(12)).map(|_| ["a", "b", "c", "d"][below(4) as usize]);
                words.collect::<Vec<_>>().join(" ")
            };
            (0..count).map(|_| text()).collect()
        };
        let (left, right) = (prompts(&texts(300)), prompts(&texts(300)));
        let mut set = Set::new("compared", &left);
        let mut all = 0;
        for other in &right {
            let pairs = word_pairs(&set.words.of(other));
            let near = |number: &usize| alike(&pairs, &set.near.sets[*number]) >= NEAR;
            let expected: Vec<usize> = (0..left.len()).filter(near).collect();
            all += expected.len();
            assert_eq!(set.near.of(pairs.clone()), expected);
        }
        assert!(all > 1000, "{all}");
    }

    #[test]
    fn equal_prompts_are_refused_and_near_ones_are_counted() {
        let texts =
            |texts: &[&str]| prompts(&texts.iter().map(|t| t.to_string()).collect::<Vec<_>>());
        let compared = texts(&["Why is the sky blue?", "Who are you?", "who are YOU"]);
        let mut set = Set::new("compared", &compared);
        let file = Path::new("train.txt");
        let near = set
            .apart(file, &texts(&["Why is the sky so blue?", "No."]), "x")
            .unwrap();
        assert_eq!(
            near.unwrap(),
            "1 prompt of train.txt is nearly the same as compared ones (1 prompt, 1 pair): '0' and '0'."
        );
        // Two of theirs near one of ours and to two: prompts are counted, not pairs.
        let sky = texts(&["Why is the sky so blue?", "So, why is the sky blue?"]);
        let near = set.apart(file, &sky, "x").unwrap().unwrap();
        assert!(
            near.starts_with(
                "2 prompts of train.txt are nearly the same as compared ones (1 prompt, 2 pairs)"
            ),
            "{near}"
        );
        let equal = set.apart(file, &texts(&["Hum", "Who, are you!"]), "choose others");
        assert_eq!(
            equal.unwrap_err().to_string(),
            "train.txt: prompt '1' is in the compared set, too, as '1'; choose others"
        );
        assert_eq!(set.apart(file, &texts(&["Hum"]), "x").unwrap(), None);
    }
}
