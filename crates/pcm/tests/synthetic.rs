//! The PCM on tasks whose answers are known.
#![allow(clippy::unwrap_used, reason = "tests")]

use lm::sampling::Draws;
use lm::tuning::{AdamWState, Optimisation};
use mope_pcm::{
    Algorithm, Context, Credit, Output, Pcm, PcmConfig, PcmTrainer, PreferenceInput, Prefixes,
    Rollout, Runner, Sequence, Support, TrainerConfig, mixture, read_rollouts, write_rollouts,
};
use proptest::prelude::*;

const WIDTH: usize = 16;

/// A fixed random embedding.
fn embed(token: u32, out: &mut [f32]) {
    let mut draws = Draws::new(&[b"embedding", &token.to_le_bytes()]);
    for (i, out) in out.iter_mut().enumerate() {
        *out = draws.uniform(i) as f32 - 0.5;
    }
}

fn config(statistics: bool) -> PcmConfig {
    PcmConfig {
        hidden: 32,
        layers: 2,
        heads: 2,
        intermediate: 48,
        statistics,
        ..PcmConfig::tiny(&["a", "b", "c"], WIDTH)
    }
}

/// A PCM whose head is not zero.
fn scrambled(config: &PcmConfig) -> Pcm {
    let mut pcm = Pcm::new(config, 3).unwrap();
    let mut draws = Draws::new(&[b"scramble"]);
    let values: Vec<f32> = pcm
        .values()
        .iter()
        .enumerate()
        .map(|(i, v)| v + 0.1 * (draws.uniform(i) as f32 - 0.5))
        .collect();
    pcm.set_values(&values);
    pcm
}

fn context(config: &PcmConfig, steps: usize, shares: [f32; 3]) -> Context {
    let width = if config.statistics {
        config.statistics_width()
    } else {
        0
    };
    Context {
        tokens: vec![5, 9, 2, 7],
        shares: shares.to_vec(),
        statistics: (0..steps * width)
            .map(|i| (i as f32 * 0.37).sin())
            .collect(),
    }
}

/// A number and its derivative: automatic differentiation in forward mode.
#[derive(Clone, Copy)]
struct Dual(f64, f64);

impl Dual {
    fn exp(self) -> Self {
        Self(self.0.exp(), self.1 * self.0.exp())
    }

    fn ln(self) -> Self {
        Self(self.0.ln(), self.1 / self.0)
    }
}

impl std::ops::Add for Dual {
    type Output = Self;
    fn add(self, other: Self) -> Self {
        Self(self.0 + other.0, self.1 + other.1)
    }
}

impl std::ops::Mul for Dual {
    type Output = Self;
    fn mul(self, other: Self) -> Self {
        Self(self.0 * other.0, self.1 * other.0 + self.0 * other.1)
    }
}

impl std::ops::Div for Dual {
    type Output = Self;
    fn div(self, other: Self) -> Self {
        let slope = (self.1 * other.0 - self.0 * other.1) / (other.0 * other.0);
        Self(self.0 / other.0, slope)
    }
}

/// `ln Σ softmax(z)_i p_i` as it is written, differentiated by `z_by`.
fn differentiated(logits: &[f32], log_probs: &[f32], by: usize) -> Dual {
    let z = |i: usize| Dual(f64::from(logits[i]), f64::from(u8::from(i == by)));
    let zero = Dual(0.0, 0.0);
    let total = (0..logits.len()).fold(zero, |sum, i| sum + z(i).exp());
    let p = |i: usize| Dual(f64::from(log_probs[i]).exp(), 0.0);
    let mixed = (0..logits.len()).fold(zero, |sum, i| sum + z(i).exp() / total * p(i));
    mixed.ln()
}

proptest! {
    #[test]
    fn the_hand_derived_gradient_is_that_of_automatic_differentiation(
        logits in prop::collection::vec(-3.0f32..3.0, 4),
        log_probs in prop::collection::vec(-9.0f32..-0.01, 4),
    ) {
        let rollout = Rollout {
            context: Context {
                shares: vec![0.25; 4],
                ..Context::default()
            },
            tokens: vec![0],
            log_probs: log_probs.clone(),
            ..Rollout::default()
        };
        let slope = rollout.slope(0, &logits, Output::Probabilities);
        prop_assert!(slope.iter().sum::<f64>().abs() < 1e-12);
        for (i, slope) in slope.iter().enumerate() {
            let Dual(value, exact) = differentiated(&logits, &log_probs, i);
            prop_assert!((value - mixture(&logits, &log_probs)).abs() < 1e-9);
            prop_assert!((exact - slope).abs() < 1e-9, "{exact} {slope}");
        }
    }
}

/// One token that three experts, the third not named, were multiplied for, over a vocabulary of 12.
fn product(output: Output, k: usize, mixed_with: &[f32], token: usize) -> (Rollout, Vec<Vec<f64>>) {
    let vocab = 12;
    let shares = vec![0.6f32, 0.4, 0.0];
    let row = |e: u32| {
        let mut draws = Draws::new(&[b"expert", &e.to_le_bytes()]);
        let logits: Vec<f64> = (0..vocab).map(|v| 4.0 * draws.uniform(v)).collect();
        let total = logits.iter().map(|l| l.exp()).sum::<f64>().ln();
        logits.iter().map(|l| l - total).collect::<Vec<f64>>()
    };
    let rows: Vec<Vec<f64>> = (0..3).map(row).collect();
    let exact = distribution(output, &rows, mixed_with, &shares);
    let short = |row: &[f64]| row.iter().map(|v| *v as f32).collect::<Vec<f32>>();
    let (base, mixed) = (short(&rows[2]), short(&exact));
    let named = [short(&rows[0]), short(&rows[1])];
    let weights = output.weights(mixed_with, &shares);
    let mut support = Vec::new();
    Support::record(
        k,
        &mixed,
        &[&named[0], &named[1]],
        output.reads_base().then_some(&base),
        &weights[..2],
        &mut support,
    );
    let rollout = Rollout {
        context: Context {
            tokens: vec![1],
            shares,
            statistics: Vec::new(),
        },
        tokens: vec![token as u32],
        log_probs: vec![named[0][token], named[1][token], 0.0],
        base: if output.reads_base() {
            vec![base[token]]
        } else {
            Vec::new()
        },
        support,
        behaviour: vec![mixed[token]],
        ..Rollout::default()
    };
    (rollout, rows)
}

/// By the formula, over the whole vocabulary; the last row is the base.
fn distribution(output: Output, rows: &[Vec<f64>], logits: &[f32], shares: &[f32]) -> Vec<f64> {
    let weights = output.weights(logits, shares);
    let score = |v: usize| {
        let base = if output.reads_base() { rows[2][v] } else { 0.0 };
        base + (0..2)
            .map(|i| weights[i] * (rows[i][v] - base))
            .sum::<f64>()
    };
    let scores: Vec<f64> = (0..rows[0].len()).map(score).collect();
    let total = scores.iter().map(|s| s.exp()).sum::<f64>().ln();
    scores.iter().map(|s| s - total).collect()
}

proptest! {
    #[test]
    fn products_follow_from_their_records(
        z in prop::collection::vec(-2.0f32..2.0, 2),
        moved in prop::collection::vec(-0.3f32..0.3, 2),
        token in 0usize..12,
        gates in any::<bool>(),
    ) {
        let output = if gates { Output::Gates { limit: 2.0 } } else { Output::Logs };
        let at = |d: &[f32]| vec![z[0] + d[0], z[1] + d[1], f32::NEG_INFINITY];
        let here = at(&[0.0, 0.0]);
        // Everything is recorded: equal wherever the weights go.
        let (rollout, rows) = product(output, 12, &here, token);
        rollout.check(3, output).unwrap();
        let there = at(&moved);
        let exact = distribution(output, &rows, &there, &rollout.context.shares)[token];
        let got = f64::from(rollout.mixed(&there, output)[0]);
        prop_assert!((got - exact).abs() < 1e-5, "{got} {exact}");
        if gates {
            let width = rollout.support.len();
            let support = Support { rows: &rollout.support[..width], experts: 2 };
            let weights = output.weights(&there, &rollout.context.shares);
            let all = distribution(output, &rows, &there, &rollout.context.shares);
            let kl: f64 = all.iter().zip(&rows[2]).map(|(l, b)| l.exp() * (l - b)).sum();
            let moments = support.moments(&weights[..2]);
            prop_assert!((moments.divergence - kl).abs() < 1e-5, "{} {kl}", moments.divergence);
            for i in 0..2 {
                let at = |h: f64| {
                    let mut moved = weights[..2].to_vec();
                    moved[i] += h;
                    support.moments(&moved).divergence
                };
                let numeric = (at(1e-4) - at(-1e-4)) / 2e-4;
                prop_assert!((moments.slopes[i] - numeric).abs() < 1e-5 * (1.0 + numeric.abs()));
            }
            // With the others as one it is exact where it was sampled.
            let (short, _) = product(output, 5, &there, token);
            let rest = Support { rows: &short.support, experts: 2 };
            let moments = rest.moments(&weights[..2]);
            prop_assert!((moments.divergence - kl).abs() < 1e-4, "{} {kl}", moments.divergence);
        }
        // Five of twelve are: equal where it was sampled, in value and slope, and never too small elsewhere.
        let (rollout, rows) = product(output, 5, &here, token);
        let shares = rollout.context.shares.clone();
        let value = |d: &[f32]| f64::from(rollout.mixed(&at(d), output)[0]);
        let exact = |d: &[f32]| distribution(output, &rows, &at(d), &shares)[token];
        prop_assert!((value(&[0.0, 0.0]) - exact(&[0.0, 0.0])).abs() < 1e-5);
        prop_assert!(value(&moved) > exact(&moved) - 1e-5);
        let slope = rollout.slope(0, &here, output);
        for i in 0..2 {
            let h = 1.0 / 64.0;
            let (mut up, mut down) = ([0.0; 2], [0.0; 2]);
            (up[i], down[i]) = (h, -h);
            let numeric = (exact(&up) - exact(&down)) / f64::from(2.0 * h);
            prop_assert!((slope[i] - numeric).abs() < 1e-3, "{} {numeric}", slope[i]);
        }
    }
}

#[test]
fn the_whole_gradient_is_the_slope() {
    for statistics in [false, true] {
        let config = config(statistics);
        let pcm = scrambled(&config);
        let response = [3, 1, 4, 1, 5];
        let (first, second) = (
            context(&config, 5, [0.5, 0.5, 0.0]),
            context(&config, 3, [0.2, 0.3, 0.5]),
        );
        let items: [(&Context, &[u32]); 2] = [(&first, &response), (&second, &response[..3])];
        let weights: Vec<f32> = (0..15).map(|i| (i as f32 * 1.3).cos()).collect();
        let value = |pcm: &Pcm| -> f64 {
            let logits = pcm.logits(&items, &embed).unwrap();
            let named = logits.iter().flat_map(|l| l.iter().zip(&weights));
            named
                .filter(|(l, _)| l.is_finite())
                .map(|(l, w)| f64::from(l * w))
                .sum()
        };
        let gradient = pcm
            .gradient(&items, &embed, |_, logits| {
                let pairs = logits.iter().zip(&weights);
                pairs
                    .map(|(l, w)| if l.is_finite() { *w } else { 0.0 })
                    .collect()
            })
            .unwrap();
        // Along random directions, each over all weights.
        for round in 0..8u32 {
            let mut draws = Draws::new(&[b"direction", &round.to_le_bytes()]);
            let direction: Vec<f32> = (0..pcm.values().len())
                .map(|i| draws.uniform(i) as f32 - 0.5)
                .collect();
            let moved = |h: f32| {
                let mut other = pcm.clone();
                let values: Vec<f32> = pcm
                    .values()
                    .iter()
                    .zip(&direction)
                    .map(|(v, d)| v + h * d)
                    .collect();
                other.set_values(&values);
                value(&other)
            };
            let numeric = (moved(2e-3) - moved(-2e-3)) / 4e-3;
            let pairs = gradient.values.iter().zip(&direction);
            let exact: f64 = pairs.map(|(g, d)| f64::from(*g) * f64::from(*d)).sum();
            assert!(
                (numeric - exact).abs() < 0.02 * exact.abs().max(0.5),
                "{numeric} {exact}"
            );
        }
    }
}

#[test]
fn decoding_equals_reading_at_once_whoever_else_is_there() {
    for statistics in [false, true] {
        let config = config(statistics);
        let pcm = scrambled(&config);
        let mut runner = Runner::new(pcm.clone());
        let response = [3u32, 1, 4, 1, 5, 9];
        let contexts = [
            context(&config, 6, [0.5, 0.5, 0.0]),
            context(&config, 4, [0.2, 0.3, 0.5]),
        ];
        let parallel = pcm
            .logits(
                &[(&contexts[0], &response), (&contexts[1], &response[..4])],
                &embed,
            )
            .unwrap();
        let width = if statistics {
            config.statistics_width()
        } else {
            0
        };
        let sequence = |id: usize, step: usize| Sequence {
            id,
            context: &contexts[id].tokens,
            response: &response[..step],
            shares: &contexts[id].shares,
            statistics: &contexts[id].statistics[step * width..(step + 1) * width],
        };
        let near = |got: &[f32], parallel: &[f32]| {
            let same = |(g, w): (&f32, &f32)| g == w || (g - w).abs() < 1e-4;
            assert!(got.iter().zip(parallel).all(same), "{got:?} {parallel:?}");
        };
        // The first begins alone; the second joins after two tokens and leaves before the end.
        for step in 0..2 {
            let got = runner.step(&[sequence(0, step)], &embed).unwrap();
            near(&got, &parallel[0][step * 3..(step + 1) * 3]);
        }
        near(
            &runner.step(&[sequence(1, 0)], &embed).unwrap(),
            &parallel[1][..3],
        );
        for step in 1..4 {
            let both = [sequence(1, step), sequence(0, step + 1)];
            let got = runner.step(&both, &embed).unwrap();
            near(&got[..3], &parallel[1][step * 3..(step + 1) * 3]);
            near(&got[3..], &parallel[0][(step + 1) * 3..(step + 2) * 3]);
        }
        let got = runner.step(&[sequence(0, 5)], &embed).unwrap();
        near(&got, &parallel[0][15..]);
        let stranger = Sequence {
            id: 9,
            ..sequence(0, 5)
        };
        assert!(runner.step(&[stranger], &embed).is_err());
    }
}

const STEPS: usize = 16;
const GOOD: f64 = 0.9;
/// Tokens after which a response is scored on its way.
const SEGMENT: u32 = 2;

/// Two experts, each right where the token before says so.
struct Halves;

impl Halves {
    fn right(previous: u32) -> usize {
        (previous % 2) as usize
    }

    /// Probability that an expert finds the right token.
    fn hit(expert: usize, previous: u32) -> f64 {
        if expert == Self::right(previous) {
            GOOD
        } else {
            1.0 - GOOD
        }
    }

    /// A pair of responses of the PCM; the utility is the share of right tokens.
    fn pair(runner: &mut Runner, number: u64) -> Vec<Rollout> {
        let shares = [0.5f32, 0.5];
        let context: [u32; 2] = [40, number as u32 % 2];
        let mut rollouts = vec![Rollout::default(); 2];
        let mut draws: Vec<Draws> = (0..2u8)
            .map(|s| Draws::new(&[b"pair", &number.to_le_bytes(), &[s]]))
            .collect();
        let mut hits = [0.0; 2];
        for step in 0..STEPS {
            let sequences: Vec<Sequence<'_>> = rollouts
                .iter()
                .enumerate()
                .map(|(i, r)| Sequence {
                    id: number as usize * 2 + i,
                    context: &context,
                    response: &r.tokens,
                    shares: &shares,
                    statistics: &[],
                })
                .collect();
            let logits = runner.step(&sequences, &embed).unwrap();
            for (i, rollout) in rollouts.iter_mut().enumerate() {
                let previous = rollout.tokens.last().copied().unwrap_or(context[1]);
                let z = &logits[i * 2..i * 2 + 2];
                let chance = [0, 1].map(|e| Self::hit(e, previous).ln() as f32);
                let hit = draws[i].uniform(3 * step) < mixture(z, &chance).exp();
                let log_probs = [0, 1].map(|e| {
                    let p = Self::hit(e, previous);
                    (if hit { p } else { 1.0 - p }).ln() as f32
                });
                hits[i] += f64::from(u8::from(hit));
                if (step as u32 + 1).is_multiple_of(SEGMENT) {
                    rollout.prefixes.utilities.push(hits[i] / STEPS as f64);
                }
                // What follows is a coin, not the experts' choice.
                let token = 2 * (draws[i].uniform(3 * step + 1) * 8.0) as u32;
                let parity = u32::from(draws[i].uniform(3 * step + 2) < 0.5);
                rollout.tokens.push(token + parity);
                rollout.behaviour.push(mixture(z, &log_probs) as f32);
                rollout.log_probs.extend(log_probs);
            }
        }
        for (rollout, hits) in rollouts.iter_mut().zip(hits) {
            rollout.utility = hits / STEPS as f64;
            rollout.prefixes = Prefixes {
                cuts: (1..=STEPS as u32 / SEGMENT).map(|k| k * SEGMENT).collect(),
                utilities: rollout.prefixes.utilities.clone(),
                ..Prefixes::default()
            };
            rollout.context.tokens = context.to_vec();
            rollout.context.shares = shares.to_vec();
        }
        rollouts
    }

    /// Expected utility of the PCM on fresh contexts.
    fn value(pcm: &Pcm) -> f64 {
        let mut runner = Runner::new(pcm.clone());
        let (mut total, mut count) = (0.0, 0.0);
        for number in 1_000_000..1_000_040 {
            for rollout in Self::pair(&mut runner, number) {
                let item = (&rollout.context, rollout.tokens.as_slice());
                let logits = pcm.logits(&[item], &embed).unwrap();
                let mut previous = rollout.context.tokens[1];
                for (z, token) in logits[0].chunks(2).zip(&rollout.tokens) {
                    let chance = [0, 1].map(|e| Self::hit(e, previous).ln() as f32);
                    total += mixture(z, &chance).exp();
                    count += 1.0;
                    previous = *token;
                }
            }
        }
        total / count
    }
}

fn train(algorithm: Algorithm, context: bool) -> f64 {
    let config = PcmConfig {
        hidden: 32,
        layers: 1,
        heads: 2,
        intermediate: 64,
        context,
        preference: PreferenceInput::Weights,
        ..PcmConfig::tiny(&["even", "odd"], WIDTH)
    };
    let settings = TrainerConfig {
        algorithm,
        epochs: 2,
        minibatch: 16,
        optimisation: Optimisation {
            learning_rate: 3e-3,
            ..Optimisation::default()
        },
        ..TrainerConfig::default()
    };
    let pcm = Pcm::new(&config, 1).unwrap();
    let mut trainer = PcmTrainer::new(pcm, settings, AdamWState::default(), 0).unwrap();
    for iteration in 0..30u64 {
        let mut runner = Runner::new(trainer.pcm.clone());
        let pairs = (0..64).flat_map(|i| Halves::pair(&mut runner, iteration * 64 + i));
        let rollouts: Vec<Rollout> = pairs.collect();
        trainer
            .fit(&rollouts, &embed, &[&iteration.to_le_bytes()])
            .unwrap();
    }
    Halves::value(&trainer.pcm)
}

#[test]
fn the_pcm_finds_optimal_weights_that_no_fixed_ones_reach() {
    let rebel = train(Algorithm::Rebel { eta: 2.0 }, true);
    assert!(rebel > 0.98 * GOOD, "REBEL reaches {rebel} of {GOOD}");
    let ppo = train(Algorithm::Ppo { clip: 0.2 }, true);
    assert!(ppo > 0.9 * GOOD, "PPO reaches {ppo} of {GOOD}");
    let blind = train(Algorithm::Rebel { eta: 2.0 }, false);
    assert!((blind - 0.5).abs() < 0.02, "without context: {blind}");
}

#[test]
fn recorded_rollouts_of_another_policy_are_enough() {
    let config = PcmConfig {
        hidden: 32,
        layers: 1,
        heads: 2,
        intermediate: 64,
        preference: PreferenceInput::Weights,
        ..PcmConfig::tiny(&["even", "odd"], WIDTH)
    };
    let fresh = Pcm::new(&config, 1).unwrap();
    let mut rollouts = Vec::new();
    for number in 0..1500u64 {
        let pair = Halves::pair(&mut Runner::new(fresh.clone()), number);
        rollouts.extend(pair.into_iter().map(|r| Rollout {
            prompt: (number % 50).to_string(),
            ..r
        }));
    }
    let settings = |algorithm| TrainerConfig {
        algorithm,
        epochs: 6,
        optimisation: Optimisation {
            learning_rate: 3e-3,
            ..Optimisation::default()
        },
        ..TrainerConfig::default()
    };
    let new = |config| PcmTrainer::new(fresh.clone(), config, AdamWState::default(), 0).unwrap();
    let mut trainer = new(settings(Algorithm::Rebel { eta: 3.0 }));
    let fit = trainer.replay(&rollouts, &fresh, &embed, &[]).unwrap();
    let value = Halves::value(&trainer.pcm);
    assert!(fit.explained > 0.3 && value > 0.7, "{fit:?} {value}");
    // What says nothing changes nothing.
    for rollout in &mut rollouts {
        let mut draws = Draws::new(&[b"noise", &rollout.tokens[0].to_le_bytes()]);
        rollout.utility = draws.uniform(rollout.tokens.iter().sum::<u32>() as usize);
        draws.uniform(0);
    }
    let mut trainer = new(settings(Algorithm::Rebel { eta: 3.0 }));
    let fit = trainer.replay(&rollouts, &fresh, &embed, &[]).unwrap();
    assert!(fit.explained < 0.1, "{fit:?}");
    let mut trainer = new(settings(Algorithm::Ppo { clip: 0.2 }));
    let error = trainer.replay(&rollouts, &fresh, &embed, &[]).unwrap_err();
    assert!(
        error.to_string().contains("samples of the PCM itself"),
        "{error}"
    );
    let mut trainer = new(settings(Algorithm::Rebel { eta: 3.0 }));
    let error = trainer
        .replay(&rollouts[..2], &fresh, &embed, &[])
        .unwrap_err();
    assert!(error.to_string().contains("one prompt"), "{error}");
}

#[test]
fn credit_for_segments_learns_more_from_the_same_records() {
    let config = PcmConfig {
        hidden: 32,
        layers: 1,
        heads: 2,
        intermediate: 64,
        preference: PreferenceInput::Weights,
        ..PcmConfig::tiny(&["even", "odd"], WIDTH)
    };
    let fresh = Pcm::new(&config, 1).unwrap();
    let mut rollouts = Vec::new();
    for number in 0..150u64 {
        let pair = Halves::pair(&mut Runner::new(fresh.clone()), number);
        for (i, mut rollout) in pair.into_iter().enumerate() {
            // What no expert is to blame for: most of the utility, as in texts.
            let mut draws = Draws::new(&[b"luck", &number.to_le_bytes(), &[i as u8]]);
            let mut luck = 0.0;
            for (k, utility) in rollout.prefixes.utilities.iter_mut().enumerate() {
                luck += 0.5 * (draws.uniform(k) - 0.5);
                *utility += luck;
            }
            rollout.utility += luck;
            rollout.prompt = (number % 50).to_string();
            rollouts.push(rollout);
        }
    }
    let learnt = |credit| {
        let settings = TrainerConfig {
            algorithm: Algorithm::Rebel { eta: 8.0 },
            credit,
            epochs: 12,
            optimisation: Optimisation {
                learning_rate: 3e-3,
                ..Optimisation::default()
            },
            ..TrainerConfig::default()
        };
        let new = PcmTrainer::new(fresh.clone(), settings, AdamWState::default(), 0);
        let mut trainer = new.unwrap();
        let fit = trainer.replay(&rollouts, &fresh, &embed, &[]).unwrap();
        (Halves::value(&trainer.pcm), fit.explained)
    };
    let response = learnt(Credit::Response);
    let to_go = learnt(Credit::Segments { lambda: 1.0 });
    let steps = learnt(Credit::Segments { lambda: 0.0 });
    assert!(
        steps.0 > response.0 + 0.1 && steps.0 > 0.75 && to_go.0 > response.0 - 0.02,
        "{response:?} {to_go:?} {steps:?}"
    );
}

#[test]
fn a_price_on_divergence_holds_gates_back() {
    let output = Output::Gates { limit: 2.0 };
    let config = PcmConfig {
        hidden: 32,
        layers: 1,
        heads: 2,
        intermediate: 48,
        output,
        ..PcmConfig::tiny(&["a", "b", "c"], WIDTH)
    };
    let fresh = Pcm::new(&config, 1).unwrap();
    let even = [0.0, 0.0, f32::NEG_INFINITY];
    // Utilities say nothing; only the price does.
    let rollouts: Vec<Rollout> = (0..64)
        .map(|i| Rollout {
            prompt: (i / 2).to_string(),
            utility: f64::from(u8::from(i % 4 < 2)) - f64::from(u8::from(i % 2 == 0)),
            ..product(output, 8, &even, i % 12).0
        })
        .collect();
    let fit = |kl| {
        let settings = TrainerConfig {
            algorithm: Algorithm::Rebel { eta: 1.0 },
            kl,
            epochs: 4,
            ..TrainerConfig::default()
        };
        let new = PcmTrainer::new(fresh.clone(), settings, AdamWState::default(), 0);
        new.unwrap().fit(&rollouts, &embed, &[]).unwrap()
    };
    let (free, priced, dear) = (fit(0.0), fit(0.5), fit(5.0));
    assert!(
        dear.divergence < priced.divergence && priced.divergence < free.divergence,
        "{free:?} {priced:?} {dear:?}"
    );
    let settings = TrainerConfig {
        kl: 0.1,
        ..TrainerConfig::default()
    };
    let plain = Pcm::new(
        &PcmConfig {
            output: Output::Logs,
            ..config.clone()
        },
        1,
    )
    .unwrap();
    let mut trainer = PcmTrainer::new(plain, settings, AdamWState::default(), 0).unwrap();
    let error = trainer.fit(&rollouts, &embed, &[]).unwrap_err().to_string();
    assert!(error.contains("with gates"), "{error}");
}

#[test]
fn models_and_rollouts_come_back_as_they_were() {
    let folder = tempfile::tempdir().unwrap();
    let pcm = scrambled(&config(true));
    pcm.save(folder.path()).unwrap();
    let again = Pcm::load(folder.path()).unwrap();
    assert_eq!(
        (pcm.values(), pcm.config()),
        (again.values(), again.config())
    );
    let file = folder.path().join("model.safetensors");
    let bytes = std::fs::read(&file).unwrap();
    std::fs::write(&file, &bytes[..bytes.len() - 4]).unwrap();
    let error = Pcm::load(folder.path()).unwrap_err().to_string();
    assert!(error.contains("model.safetensors"), "{error}");

    let mut runner = Runner::new(
        Pcm::new(
            &PcmConfig {
                hidden: 32,
                heads: 2,
                ..PcmConfig::tiny(&["even", "odd"], WIDTH)
            },
            1,
        )
        .unwrap(),
    );
    let mut rollouts = Halves::pair(&mut runner, 1);
    rollouts[1].rewards = vec![0.5, -1.0];
    rollouts[1].references = vec![0.25, 2.0];
    rollouts[1].divergence = 0.125;
    rollouts[0].prefixes.divergences = vec![0.5; 8];
    rollouts[1].prefixes.rewards = vec![0.5; 16];
    rollouts[1].prefixes.references = vec![-0.5; 16];
    rollouts[1].context.statistics = vec![0.25];
    rollouts[0].base = vec![-0.5; 16];
    rollouts[0].support = vec![0.25; 96];
    let path = folder.path().join("rollouts.parquet");
    write_rollouts(&path, &rollouts).unwrap();
    assert_eq!(read_rollouts(&path).unwrap(), rollouts);
    let gates = Output::Gates { limit: 2.0 };
    assert!(rollouts[0].check(3, gates).is_err());
    assert!(rollouts[0].check(2, gates).is_ok());
    let error = rollouts[1].check(2, gates).unwrap_err().to_string();
    assert!(error.contains("another output"), "{error}");
}
