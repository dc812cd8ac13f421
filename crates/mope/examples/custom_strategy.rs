//! A strategy of one's own: at every token, only the expert that is surest of its next token speaks.
//!
//! ```text
//! cargo run --release -p mope --example custom_strategy
//! ```
//!
//! A mixer is all that decoding needs. To name a strategy in experiment files, follow "Adding a strategy" in
//! CONTRIBUTING.md.

use std::sync::Arc;

use mope::mixing::{Requirements, Result, mix_probabilities};
use mope::prelude::*;

/// All weight on the expert whose likeliest token has the highest probability.
#[derive(Clone)]
struct Surest;

impl Mixer for Surest {
    fn mix(&mut self, step: &Step<'_>, mixed: &mut Mixed) -> Result<()> {
        // `out` is `[vocab]`, in nats; `weights` is `[experts]`.
        mixed.each(step, |sequence, out, weights| {
            let rows: Vec<&[f32]> = (0..weights.len())
                .map(|expert| step.next.row(expert, sequence))
                .collect();
            let top = |row: &[f32]| row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            let sure = (0..rows.len()).max_by(|&a, &b| top(rows[a]).total_cmp(&top(rows[b])));
            weights.fill(0.0);
            weights[sure.unwrap_or(0)] = 1.0;
            mix_probabilities(&rows, weights, out);
        });
        Ok(())
    }
}

fn main() -> std::result::Result<(), Box<dyn std::error::Error>> {
    let path = mope::harness::models::resolve("smollm2-135m-instruct")?;
    let base = Arc::new(LanguageModel::open(&path, &DeviceSpec::Cpu, Format::Q8)?);
    let names = ["elementary", "friendly", "informative"];
    let experts: std::result::Result<Vec<Expert>, _> = names
        .iter()
        .map(|name| Expert::adapter(name, format!("experiments/experts/{name}"), &base))
        .collect();
    let pool = ExpertPool::new(experts?)?;
    let plan = Plan::new(names.map(String::from).to_vec(), Requirements::FULL, Surest);
    let mut generator = Generator::new(&pool, plan, &base.end_tokens)?;
    let request = Request {
        prompt: Prompt::Chat(vec![Message::user("How do bees find their way home?")]),
        draws: Draws::new(&[b"seed 1"]),
    };
    let responses = generator.generate(vec![request], 1, &Generation::default(), |_, _| {})?;
    let response = &responses[0];
    println!("{}", base.tokenizer.decode(&response.tokens)?);
    for (expert, name) in names.iter().enumerate() {
        let spoken = response.weights.chunks(names.len());
        let spoken = spoken.filter(|weights| weights[expert] > 0.5).count();
        println!("{name}: {spoken} of {} tokens", response.tokens.len());
    }
    Ok(())
}
