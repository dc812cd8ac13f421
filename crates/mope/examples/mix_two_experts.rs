//! Two adapters over one model, mixed token by token: one response.
//!
//! ```text
//! cargo run --release -p mope --example mix_two_experts
//! ```

use std::sync::Arc;

use mope::prelude::*;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let path = mope::harness::models::resolve("smollm2-135m-instruct")?;
    let base = Arc::new(LanguageModel::open(&path, &DeviceSpec::Cpu, Format::Q8)?);
    let pool = ExpertPool::new(vec![
        Expert::adapter("concise", "experiments/experts/concise", &base)?,
        Expert::adapter("friendly", "experiments/experts/friendly", &base)?,
    ])?;
    let importances = [("concise".to_string(), 0.7), ("friendly".to_string(), 0.3)].into();
    let text = "Be brief, but nice.".into();
    let plan = Strategy::Fixed(Fixed::default())
        .plan(&Preference { text, importances }, &["concise", "friendly"])?;
    let request = Request {
        prompt: Prompt::Chat(vec![Message::user("Why is the sky blue?")]),
        draws: Draws::new(&[b"seed 1"]),
    };
    let mut generator = Generator::new(&pool, plan, &base.end_tokens)?;
    let responses = generator.generate(vec![request], 1, &Generation::default(), |_, _| {})?;
    println!("{}", base.tokenizer.decode(&responses[0].tokens)?);
    Ok(())
}
