//! What mixing costs beside the experts' passes, per step of three experts:
//! `cargo bench -p mixing --bench mixing`.
#![allow(clippy::unwrap_used, reason = "a benchmark")]

use divan::Bencher;
use divan::counter::ItemsCount;
use experts::NextTokens;
use mope_mixing::strategies::{
    DeRa, Divergence, Fixed, Mato, Mod, ModelArithmetic, Operand, PackLlm, Space, Term, TopK,
};
use mope_mixing::{History, Mixed, Preference, Step, Strategy};

/// The vocabulary of SmolLM2.
const VOCAB: usize = 49_152;

fn strategies() -> Vec<(&'static str, Strategy)> {
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
        ("fixed", fixed(Space::Probability)),
        ("fixed_log", fixed(Space::Log)),
        ("mod_forward", divergence(Divergence::ForwardKl)),
        ("mod_alpha", divergence(Divergence::Alpha(0.3))),
        ("mod_jensen_shannon", divergence(Divergence::JensenShannon)),
        ("dera", Strategy::DeRa(DeRa::default())),
        ("mato", Strategy::Mato(Mato::default())),
        ("pack", Strategy::PackLlm(PackLlm::default())),
        (
            "model_arithmetic",
            Strategy::ModelArithmetic(ModelArithmetic {
                terms: vec![union, minus],
            }),
        ),
        (
            "top_20",
            Strategy::TopK(TopK {
                k: 20,
                of: Box::new(fixed(Space::Probability)),
            }),
        ),
    ]
}

fn main() {
    divan::main();
}

/// A strategy by its place in [`strategies`]; items are sequences.
fn step(bencher: Bencher<'_, '_>, strategy: usize, sequences: usize) {
    let preference = Preference {
        text: String::new(),
        importances: ["a", "b", "c"].map(|n| (n.to_string(), 1.0)).into(),
    };
    let strategy = &strategies()[strategy].1;
    let mut plan = strategy
        .plan(&preference, &["base", "a", "b", "c"])
        .unwrap();
    let experts = plan.experts.len();
    let numbers = (0..(experts * sequences * VOCAB) as u64).map(|i| {
        let mixed = i.wrapping_mul(2_654_435_761) % 1000;
        mixed as f32 / 60.0 - 20.0
    });
    let mut log_probs: Vec<f32> = numbers.collect();
    for row in log_probs.chunks_mut(VOCAB) {
        lm::sampling::log_softmax(row);
    }
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
    bencher
        .counter(ItemsCount::new(sequences))
        .bench_local(|| plan.mixer.mix(&step, &mut mixed).unwrap());
    let total: f32 = mixed.log_probs[..VOCAB].iter().map(|l| l.exp()).sum();
    assert!((total - 1.0).abs() < 1e-2);
}

/// Each strategy under its own name.
macro_rules! benches {
    ($($index:literal $name:ident),* $(,)?) => {
        $(#[divan::bench(args = [1, 16])]
        fn $name(bencher: Bencher<'_, '_>, sequences: usize) {
            assert_eq!(strategies()[$index].0, stringify!($name));
            step(bencher, $index, sequences);
        })*
    };
}

benches!(
    0 fixed,
    1 fixed_log,
    2 mod_forward,
    3 mod_alpha,
    4 mod_jensen_shannon,
    5 dera,
    6 mato,
    7 pack,
    8 model_arithmetic,
    9 top_20,
);
