//! A local model as a judge, by the log-probabilities of the letters.

use std::sync::Arc;

use lm::LanguageModel;
use lm::chat::{Message, Prompt};

use super::{Judge, Question, Reply, Verdict};
use crate::Result;

/// A model that is asked for the likeliest of the letters A, B and C.
#[derive(Debug)]
pub struct Local {
    model: Arc<LanguageModel>,
    letters: [Vec<u32>; 3],
}

impl Local {
    /// With a model that is open.
    ///
    /// # Errors
    /// A tokenizer that refuses a letter.
    pub fn new(model: Arc<LanguageModel>) -> Result<Self> {
        let letter = |letter: &str| model.tokenizer.encode(letter, false);
        let letters = [letter("A")?, letter("B")?, letter("C")?];
        Ok(Self { model, letters })
    }
}

impl Judge for Local {
    fn ask(&mut self, question: &Question<'_>) -> Result<Reply> {
        let text = question.text();
        let special = self.model.tokenizer.special_in(&text)?;
        let prompt = Prompt::Chat(vec![Message::user(text)]);
        let prompt = self.model.prompt_tokens(&prompt)?;
        let prompts = [prompt.as_slice(); 3];
        let letters = self.letters.each_ref().map(Vec::as_slice);
        let scored = match self.model.log_probs(&prompts, &letters, None) {
            // It would be too long the next time as well.
            Err(error @ lm::Error::TooLong { .. }) => {
                return Ok(Reply {
                    verdict: Verdict::Unreadable,
                    raw: error.to_string(),
                });
            }
            scored => scored?,
        };
        let sums: Vec<f32> = scored.iter().map(|s| s.iter().sum()).collect();
        let verdict = match (sums[0], sums[1], sums[2]) {
            (a, b, c) if a > b && a > c => Verdict::First,
            (a, b, c) if b > a && b > c => Verdict::Second,
            (a, b, c) if (a + b + c).is_nan() => Verdict::Unreadable,
            _ => Verdict::Tie,
        };
        let mut raw = format!(
            "log p: A {:.4}, B {:.4}, C {:.4}",
            sums[0], sums[1], sums[2]
        );
        if special > 0 {
            // Somebody may have tried to close the turn and to answer for the judge.
            raw +=
                &format!("; {special} special tokens were written in the question, read as text");
        }
        Ok(Reply { verdict, raw })
    }
}
