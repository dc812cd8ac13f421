//! What mixing costs beside the experts' passes:
//! `cargo bench --workspace --bench mixing`, milliseconds per step of three experts.
#![allow(clippy::unwrap_used, reason = "a benchmark")]

use std::time::Instant;

use experts::NextTokens;
use mixing::strategies::{
    DeRa, Divergence, Fixed, Mato, Mod, ModelArithmetic, Operand, Pack, Space, Term, TopK,
};
use mixing::{History, Mixed, Preference, Step, Strategy};

/// The vocabulary of SmolLM2.
const VOCAB: usize = 49_152;

fn strategies() -> Vec<Strategy> {
    let fixed = |space| {
        Strategy::Fixed(Fixed {
            weights: None,
            space,
        })
    };
    let divergence = |divergence| {
        Strategy::Mod(Mod {
            weights: None,
            divergence,
        })
    };
    let union = Term {
        weight: 2.0,
        of: Operand::Union(vec!["a".into(), "b".into()]),
    };
    let minus = Term {
        weight: -1.0,
        of: Operand::Expert("c".into()),
    };
    vec![
        fixed(Space::Probability),
        fixed(Space::Log),
        divergence(Divergence::ForwardKl),
        divergence(Divergence::Alpha(0.3)),
        divergence(Divergence::JensenShannon),
        Strategy::DeRa(DeRa::default()),
        Strategy::Mato(Mato::default()),
        Strategy::Pack(Pack::default()),
        Strategy::ModelArithmetic(ModelArithmetic {
            terms: vec![union, minus],
        }),
        Strategy::TopK(TopK {
            k: 20,
            of: Box::new(fixed(Space::Probability)),
        }),
    ]
}

fn main() {
    let preference = Preference {
        text: String::new(),
        weights: ["a", "b", "c"].map(|n| (n.to_string(), 1.0)).into(),
    };
    for sequences in [1, 16] {
        for strategy in strategies() {
            let mut plan = strategy
                .plan(&preference, &["base", "a", "b", "c"])
                .unwrap();
            let experts = plan.experts.len();
            let numbers = (0..(experts * sequences * VOCAB) as u64).map(|i| {
                let mixed = i.wrapping_mul(2_654_435_761) % 1000;
                mixed as f32 / 60.0 - 20.0
            });
            let mut log_probs: Vec<f32> = numbers.collect();
            log_probs
                .chunks_mut(VOCAB)
                .for_each(lm::sampling::log_softmax);
            let next = NextTokens {
                reference: None,
                experts,
                sequences,
                vocab: VOCAB,
                log_probs,
                temperature: None,
            };
            let history = History {
                log_probs: (0..experts).map(|e| -3.0 * e as f64).collect(),
                prompt: vec![2.0; experts],
                ..History::default()
            };
            let history = vec![history; sequences];
            let step = Step {
                next: &next,
                history: &history,
            };
            let mut mixed = Mixed::default();
            let mut best = f64::INFINITY;
            for _ in 0..16 {
                let start = Instant::now();
                plan.mixer.mix(&step, &mut mixed).unwrap();
                best = best.min(start.elapsed().as_secs_f64());
            }
            let total: f32 = mixed.log_probs[..VOCAB].iter().map(|l| l.exp()).sum();
            assert!((total - 1.0).abs() < 1e-2);
            println!(
                "{sequences:>2} sequences {:7.3} ms  {strategy:?}",
                best * 1e3
            );
        }
    }
}
