//! A reward of one's own, on the responses of a finished run.
//!
//! ```text
//! cargo run --release -- run experiments/quickstart/quickstart.ron
//! cargo run --release -p mope --example custom_reward -- runs/quickstart
//! ```
//!
//! To name a reward in experiment files, follow "Adding a reward" in CONTRIBUTING.md.

use std::collections::BTreeMap;

use mope::eval::Result;
use mope::harness::stages::report::read_rows;
use mope::harness::store::folder::read_only;
use mope::prelude::*;

/// Share of the question's longer words that the response takes up, from 0 to 1.
struct TakesUp;

impl Reward for TakesUp {
    fn score(&self, prompt: &Prompt, response: &str) -> Result<f64> {
        let response = response.to_lowercase();
        let question = prompt.question().to_lowercase();
        let words = question.split(|c: char| !c.is_alphanumeric());
        let words: Vec<&str> = words.filter(|word| word.len() > 3).collect();
        let taken = words.iter().filter(|word| response.contains(**word));
        Ok(taken.count() as f64 / words.len().max(1) as f64)
    }
}

fn main() -> std::result::Result<(), Box<dyn std::error::Error>> {
    let folder = std::env::args().nth(1).unwrap_or("runs/quickstart".into());
    let (responses, _) = read_rows(&read_only(folder.as_ref()))?;
    let mut scores: BTreeMap<&str, Vec<f64>> = BTreeMap::new();
    for row in &responses {
        let prompt = Prompt::Chat(vec![Message::user(row.question.clone())]);
        let score = TakesUp.score(&prompt, &row.response)?;
        scores
            .entry(&row.identity.strategy)
            .or_default()
            .push(score);
    }
    for (strategy, scores) in scores {
        let mean = scores.iter().sum::<f64>() / scores.len() as f64;
        println!("{strategy}: {mean:.3} over {} responses", scores.len());
    }
    Ok(())
}
