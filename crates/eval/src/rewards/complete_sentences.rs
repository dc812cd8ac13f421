//! Another reward, of responses up to the end of their last complete sentence. A limit on tokens cuts most responses
//! within a sentence, and what a model reads there tells of the cut rather than of the text.

use std::path::{Path, PathBuf};

use lm::DeviceSpec;
use lm::chat::Prompt;
use unicode_segmentation::UnicodeSegmentation;

use super::{Definition, Normaliser, Reward, Scorer};
use crate::Result;

/// What ends a sentence.
const ENDS: [char; 8] = ['.', '!', '?', '…', '。', '！', '？', '।'];

/// The scorer whose reward is taken.
pub(super) struct Of<'a>(pub(super) &'a Scorer);

impl Definition for Of<'_> {
    fn open(&self, device: &DeviceSpec) -> Result<Box<dyn Reward>> {
        Ok(Box::new(CompleteSentences(self.0.open_on(device)?)))
    }

    fn validate(&self) -> Result<()> {
        self.0.validate()
    }

    fn with_models(&self, change: &mut dyn FnMut(&Path) -> PathBuf) -> Scorer {
        Scorer::CompleteSentences(Box::new(self.0.definition().with_models(change)))
    }
}

/// A reward of complete sentences.
struct CompleteSentences(Box<dyn Reward>);

/// A response up to the end of its last complete sentence; all of it where there is none.
fn complete_sentences(response: &str) -> &str {
    let closing = |c: char| "\"'”’)]*_".contains(c);
    let after = |c: char| c.is_whitespace() || closing(c);
    let mut end = 0;
    for (at, sentence) in response.split_sentence_bound_indices() {
        // The number of a list's next item is not a sentence.
        if sentence.trim_end_matches(after).ends_with(ENDS)
            && sentence.contains(char::is_alphabetic)
        {
            end = at + sentence.trim_end().len();
        }
    }
    if end == 0 {
        return response;
    }
    let rest = response[end..].trim_start_matches(closing);
    &response[..response.len() - rest.len()]
}

impl Reward for CompleteSentences {
    fn score(&self, prompt: &Prompt, response: &str) -> Result<f64> {
        self.0.score(prompt, complete_sentences(response))
    }

    fn score_all(&self, items: &[(&Prompt, &str)]) -> Result<Vec<f64>> {
        let items: Vec<(&Prompt, &str)> = items
            .iter()
            .map(|(p, r)| (*p, complete_sentences(r)))
            .collect();
        self.0.score_all(&items)
    }

    fn normaliser(&self) -> Option<Normaliser> {
        self.0.normaliser()
    }

    fn measured_at(&self) -> Option<usize> {
        self.0.measured_at()
    }
}

#[cfg(test)]
mod tests {
    use super::complete_sentences;

    #[test]
    fn what_does_not_end_is_left_out() {
        for (response, kept) in [
            ("Bees make honey. They store it in wax", "Bees make honey."),
            ("He said \"Stop!\" Then he", "He said \"Stop!\""),
            ("Two ways help.\n\n1. Write it", "Two ways help."),
            ("**Really?**\n\n", "**Really?**"),
            ("蜜蜂酿蜜。它们", "蜜蜂酿蜜。"),
            ("No end in sight", "No end in sight"),
            ("", ""),
        ] {
            assert_eq!(complete_sentences(response), kept);
        }
    }
}
