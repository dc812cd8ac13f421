use super::{Judge, Question, Reply, Verdict};
use crate::Result;
use crate::rewards::Reward;

/// A reward that says which response has more of its dimension.
pub struct Rewarded(pub Box<dyn Reward>);

impl Judge for Rewarded {
    fn ask(&mut self, question: &Question<'_>) -> Result<Reply> {
        let [first, second] = question.responses;
        let first = self.0.score(question.prompt, first)?;
        let second = self.0.score(question.prompt, second)?;
        let verdict = match first.total_cmp(&second) {
            std::cmp::Ordering::Greater => Verdict::First,
            std::cmp::Ordering::Less => Verdict::Second,
            std::cmp::Ordering::Equal => Verdict::Tie,
        };
        let raw = format!("{first:.6} and {second:.6}");
        Ok(Reply { verdict, raw })
    }
}
