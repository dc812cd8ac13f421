//! A reward as a judge: the higher one wins.

use super::{Judge, Question, Reply, Verdict};
use crate::rewards::Reward;
use crate::{Error, Result};

/// A reward that says which response has more of its dimension.
pub struct Rewarded(pub Box<dyn Reward>);

impl Judge for Rewarded {
    fn ask(&mut self, question: &Question<'_>) -> Result<Reply> {
        let score = |response| self.0.score(question.prompt, response);
        let [first, second] = question.responses;
        let (first, second) = match (score(first), score(second)) {
            // It would be too long the next time as well.
            (Err(Error::Lm(error @ lm::Error::TooLong { .. })), _)
            | (_, Err(Error::Lm(error @ lm::Error::TooLong { .. }))) => {
                return Ok(Reply {
                    verdict: Verdict::Unreadable,
                    raw: error.to_string(),
                });
            }
            (first, second) => (first?, second?),
        };
        let verdict = match first.partial_cmp(&second) {
            Some(std::cmp::Ordering::Greater) => Verdict::First,
            Some(std::cmp::Ordering::Less) => Verdict::Second,
            Some(std::cmp::Ordering::Equal) => Verdict::Tie,
            None => Verdict::Unreadable,
        };
        let raw = format!("{first:.6} and {second:.6}");
        Ok(Reply { verdict, raw })
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use lm::chat::Prompt;

    use super::*;

    struct Parsed;

    impl Reward for Parsed {
        fn score(&self, _: &Prompt, response: &str) -> Result<f64> {
            let (tokens, limit, what) = (9, 8, "the model's context");
            let long = || lm::Error::TooLong {
                tokens,
                limit,
                what,
            };
            response.parse().map_err(|_| long().into())
        }
    }

    #[test]
    fn the_higher_reward_wins() {
        let prompt = Prompt::Raw("?".into());
        let mut judge = Rewarded(Box::new(Parsed));
        for (responses, verdict) in [
            (["2", "-1"], Verdict::First),
            (["1", "1.5"], Verdict::Second),
            (["1", "1.0"], Verdict::Tie),
            (["NaN", "1"], Verdict::Unreadable),
            (["1", "too long"], Verdict::Unreadable),
        ] {
            let (criterion, prompt) = ("", &prompt);
            let question = Question {
                criterion,
                prompt,
                responses,
            };
            assert_eq!(
                judge.ask(&question).unwrap().verdict,
                verdict,
                "{responses:?}"
            );
        }
    }
}
