//! Log-probabilities, losses and gradients of adapters against PyTorch and peft, on tiny models of every shape and every
//! device of the build; and both engines against each other.
#![allow(clippy::unwrap_used, reason = "tests")]

mod common;

use common::{close, expected};
use mope_lm::adapter::Target;
use mope_lm::objectives::{self, Pair};
use mope_lm::tuning::{
    AdamW, AdamWConfig, AdamWState, Item, LoraConfig, LoraParameters, Loss, Sequence, TuningDecoder,
};
use mope_lm::{Adapter, DeviceSpec, Error, Format};

const SHAPES: [&str; 6] = [
    "llama",
    "llama_untied_biases",
    "llama3_rope",
    "mistral_window",
    "qwen2",
    "qwen3",
];
// As in scripts/fixtures/tuning.py.
const PROMPTS: [usize; 3] = [5, 3, 9];
const LENGTHS: [[usize; 2]; 3] = [[7, 4], [11, 11], [2, 6]];
const REWARDS: [[f64; 2]; 3] = [[0.7, -0.4], [-1.2, 0.1], [0.3, 0.25]];
const ETA: f64 = 1.5;
const BETA: f64 = 0.3;

fn sequence(prompt: usize, response: usize) -> Sequence {
    let (from, salt) = (PROMPTS[prompt], 17 * prompt);
    let shared = (0..from).map(|i| (5 * i * i + 3 * i + salt) % 96);
    let response_ids = 0..LENGTHS[prompt][response];
    let response_ids = response_ids.map(|i| (7 * i * i + 11 * i + salt + 29 * response) % 96);
    Sequence {
        tokens: shared.chain(response_ids).map(|id| id as u32).collect(),
        from,
    }
}

fn pairs() -> Vec<Item> {
    (0..3)
        .map(|p| vec![sequence(p, 0), sequence(p, 1)])
        .collect()
}

fn decoder(shape: &str, weights: Format) -> TuningDecoder {
    decoder_on(&DeviceSpec::Cpu, shape, weights)
}

fn decoder_on(device: &DeviceSpec, shape: &str, weights: Format) -> TuningDecoder {
    TuningDecoder::load(&pico::checkpoint(shape), device, weights).unwrap()
}

/// Rank 4 on all matrices, with a fixture's numbers.
fn parameters(decoder: &TuningDecoder, file: &str) -> LoraParameters {
    let config = LoraConfig {
        rank: 4,
        alpha: 8.0,
        targets: Target::ALL.to_vec(),
    };
    let mut all = LoraParameters::new(&config, decoder.config(), 0).unwrap();
    all.values = in_order(decoder, file, "");
    all
}

/// A fixture's numbers in the order of [`LoraParameters`].
fn in_order(decoder: &TuningDecoder, file: &str, prefix: &str) -> Vec<f32> {
    let mut values = Vec::new();
    for layer in 0..decoder.config().layers {
        for target in Target::ALL {
            for part in ["a", "b"] {
                let name = format!("{prefix}layers.{layer}.{}.{part}", target.module());
                values.extend(expected(file, &name));
            }
        }
    }
    values
}

fn reference(decoder: &TuningDecoder) -> Vec<Pair> {
    let flat: Vec<Sequence> = pairs().into_iter().flatten().collect();
    let base = decoder.log_probs(None, &flat).unwrap();
    let sums: Vec<f64> = base
        .iter()
        .map(|r| r.iter().map(|v| f64::from(*v)).sum())
        .collect();
    let pair = |(old, rewards): (&[f64], &[f64; 2])| Pair {
        old: [old[0], old[1]],
        rewards: *rewards,
    };
    sums.chunks(2).zip(&REWARDS).map(pair).collect()
}

#[test]
fn losses_and_gradients_equal_pytorch() {
    for device in DeviceSpec::built() {
        for shape in shapes(&device) {
            equals_pytorch(&device, shape);
        }
    }
}

fn equals_pytorch(device: &DeviceSpec, shape: &str) {
    let file = format!("tuning/{shape}.safetensors");
    let decoder = decoder_on(device, shape, Format::F32);
    let lora = parameters(&decoder, &file);
    let items = pairs();
    let flat: Vec<Sequence> = items.iter().flatten().cloned().collect();
    let log_probs = decoder.log_probs(Some(&lora), &flat).unwrap();
    for (i, got) in log_probs.iter().enumerate() {
        let expected = expected(&file, &format!("log_probs.{}.{}", i / 2, i % 2));
        close(&format!("{device} {shape}"), got, &expected, 1e-4);
    }
    let reference = reference(&decoder);
    let firsts: Vec<Item> = items.iter().map(|p| vec![p[0].clone()]).collect();
    type Objective<'a> = Box<dyn Fn(usize, &[Vec<f32>]) -> Loss + Sync + 'a>;
    let objectives: [(&str, &[Item], Objective<'_>); 3] = [
        ("sft", &firsts, Box::new(|_, l| objectives::nll(&l[0]))),
        (
            "rebel",
            &items,
            Box::new(|i, l| objectives::rebel([&l[0], &l[1]], &reference[i], ETA)),
        ),
        (
            "dpo",
            &items,
            Box::new(|i, l| objectives::dpo([&l[0], &l[1]], reference[i].old, BETA)),
        ),
    ];
    for (name, items, objective) in objectives {
        let got = decoder.gradient(&lora, items, &objective).unwrap();
        let total = got.losses.iter().sum::<f64>() as f32;
        let loss = expected(&file, &format!("{name}.loss"));
        let tolerance = 1e-5 * loss[0].abs().max(1.0);
        close(
            &format!("{device} {shape} {name}"),
            &[total],
            &loss,
            tolerance,
        );
        let gradient = in_order(&decoder, &file, &format!("{name}."));
        let largest = gradient.iter().fold(0f32, |m, v| m.max(v.abs()));
        let tolerance = 1e-4 * largest.max(1.0);
        close(
            &format!("{device} {shape} {name}"),
            &got.values,
            &gradient,
            tolerance,
        );
    }
}

#[test]
fn fifty_steps_follow_pytorch() {
    let built = DeviceSpec::built().into_iter();
    built
        .filter(|d| !is_slow(d))
        .for_each(|d| follows_pytorch(&d));
}

fn follows_pytorch(device: &DeviceSpec) {
    let decoder = decoder_on(device, "llama", Format::F32);
    let mut lora = parameters(&decoder, "tuning/curve.safetensors");
    let items: Vec<Item> = (0..3).map(|p| vec![sequence(p, 0)]).collect();
    let config = AdamWConfig {
        weight_decay: 0.01,
        ..Default::default()
    };
    let mut adam = AdamW::new(config, AdamWState::default());
    let mut losses = Vec::new();
    for _ in 0..50 {
        let mut step = decoder
            .gradient(&lora, &items, &|_, l| objectives::nll(&l[0]))
            .unwrap();
        losses.push((step.losses.iter().sum::<f64>() / 3.0) as f32);
        step.values.iter_mut().for_each(|g| *g /= 3.0);
        adam.step(&mut lora.values, &step.values, 1e-2);
    }
    let expected = expected("tuning/curve.safetensors", "losses");
    assert!(expected[49] < 0.5 * expected[0]);
    close(&format!("{device} loss curve"), &losses, &expected, 1e-3);
}

#[test]
fn an_adapter_decodes_as_it_was_trained() {
    let decoder = decoder("llama", Format::F32);
    let lora = parameters(&decoder, "tuning/llama.safetensors");
    let adapter = lora.adapter();
    let again = LoraParameters::from_adapter(&adapter, &lora.config, decoder.config()).unwrap();
    close("there and back", &again.values, &lora.values, 1e-6);
    let checkpoint = pico::checkpoint("llama");
    let packed = mope_lm::packed::PackedDecoder::load(&checkpoint, Format::F32).unwrap();
    let stack = packed.adapters(&[Some(&adapter)]);
    let sequence = sequence(0, 0);
    let mut cache = packed.cache(1, 64);
    let mut got = Vec::new();
    let read = &sequence.tokens[..sequence.tokens.len() - 1];
    let row = |t: usize, logits: &mut [f32]| {
        mope_lm::sampling::log_softmax(logits);
        if t + 1 >= sequence.from {
            got.push(logits[sequence.tokens[t + 1] as usize]);
        }
    };
    packed
        .all_logits(&[read], &mut cache, Some(&stack), row)
        .unwrap();
    let trained = decoder
        .log_probs(Some(&lora), std::slice::from_ref(&sequence))
        .unwrap();
    close("decoded", &got, &trained[0], 1e-4);
}

#[test]
fn sixteen_bits_are_near_and_batches_do_not_matter() {
    let (exact, near) = (
        decoder("qwen3", Format::F32),
        decoder("qwen3", Format::Bf16),
    );
    let lora = parameters(&exact, "tuning/qwen3.safetensors");
    let flat: Vec<Sequence> = pairs().into_iter().flatten().collect();
    let all = exact.log_probs(Some(&lora), &flat).unwrap();
    for (sequence, together) in flat.iter().zip(&all) {
        let alone = exact
            .log_probs(Some(&lora), std::slice::from_ref(sequence))
            .unwrap();
        close("alone", &alone[0], together, 1e-5);
    }
    let rounded = near.log_probs(Some(&lora), &flat).unwrap();
    for (rounded, exact) in rounded.iter().zip(&all) {
        close("16 bits", rounded, exact, 0.1);
    }
    let loss = |_: usize, l: &[Vec<f32>]| objectives::nll(&l[0]);
    let items: Vec<Item> = flat.iter().map(|s| vec![s.clone()]).collect();
    let one = exact.gradient(&lora, &items, &loss).unwrap();
    let two = near.gradient(&lora, &items, &loss).unwrap();
    let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| f64::from(a * b)).sum::<f64>();
    let (a, b) = (&one.values, &two.values);
    let cosine = dot(a, b) / (dot(a, a) * dot(b, b)).sqrt();
    assert!(cosine > 0.999, "gradients' cosine is {cosine}");
}

#[test]
fn hidden_states_have_gradients_too() {
    let decoder = decoder("llama", Format::F32);
    let mut lora = parameters(&decoder, "tuning/llama.safetensors");
    let item = vec![sequence(0, 0), sequence(1, 1)];
    let weights: Vec<f32> = (0..decoder.config().hidden_size)
        .map(|i| (i as f32 * 0.7).sin())
        .collect();
    let dot = |h: &[f32]| {
        h.iter()
            .zip(&weights)
            .map(|(h, w)| f64::from(h * w))
            .sum::<f64>()
    };
    let loss = |_: usize, h: &[Vec<f32>]| Loss {
        value: dot(&h[0]) - dot(&h[1]),
        gradient: vec![weights.clone(), weights.iter().map(|w| -w).collect()],
    };
    let items = [item];
    let got = decoder.hidden_gradient(&lora, &items, &loss).unwrap();
    let largest = (0..got.values.len())
        .max_by(|a, b| got.values[*a].abs().total_cmp(&got.values[*b].abs()))
        .unwrap();
    for at in [0, largest, got.values.len() - 1] {
        let start = lora.values[at];
        let mut value = |x: f32| {
            lora.values[at] = x;
            decoder
                .hidden_gradient(&lora, &items, &loss)
                .unwrap()
                .losses[0]
        };
        let slope = (value(start + 1e-2) - value(start - 1e-2)) / 2e-2;
        lora.values[at] = start;
        let error = (slope - f64::from(got.values[at])).abs();
        assert!(
            error < 0.02 * slope.abs().max(0.05),
            "{at}: {slope} {}",
            got.values[at]
        );
    }
}

/// The devices whose engine is burn's.
fn others() -> impl Iterator<Item = DeviceSpec> {
    let built = DeviceSpec::built().into_iter();
    built.filter(|device| *device != DeviceSpec::Cpu)
}

/// WebGPU's software driver takes seconds for a step, and compiles for minutes: it gets the least and the most that a
/// block may have.
fn is_slow(device: &DeviceSpec) -> bool {
    matches!(device, DeviceSpec::Wgpu(_))
}

fn shapes(device: &DeviceSpec) -> Vec<&'static str> {
    match is_slow(device) {
        true => vec!["llama", "qwen3"],
        false => SHAPES.to_vec(),
    }
}

fn norm(values: impl Iterator<Item = f32>) -> f64 {
    values.map(|v| f64::from(v).powi(2)).sum::<f64>().sqrt()
}

/// `‖got − expected‖ / ‖expected‖`.
fn off(got: &[f32], expected: &[f32]) -> f64 {
    let differences = got.iter().zip(expected).map(|(a, b)| a - b);
    norm(differences) / norm(expected.iter().copied())
}

/// A linear head's Bradley-Terry loss of two hidden states, as reward models have it.
fn head_loss(head: &[f32], hidden: &[Vec<f32>]) -> Loss {
    let score = |h: &[f32]| h.iter().zip(head).map(|(h, w)| f64::from(h * w)).sum();
    let (value, slope) = objectives::bradley_terry(score(&hidden[0]), score(&hidden[1]));
    let row = |s: f64| head.iter().map(|w| s as f32 * w).collect();
    let gradient = vec![row(slope), row(-slope)];
    Loss { value, gradient }
}

fn head(decoder: &TuningDecoder) -> Vec<f32> {
    let numbers = 0..decoder.config().hidden_size;
    numbers.map(|i| (i as f32 * 0.7).sin()).collect()
}

/// Items of many lengths, for several chunks.
fn many_items() -> Vec<Item> {
    let long = |length: usize| Sequence {
        tokens: (0..length).map(|i| (i * i + 5) as u32 % 96).collect(),
        from: length / 2,
    };
    let pair = |i: usize| vec![long(20 + 7 * i), long(90 - 3 * i)];
    pairs().into_iter().chain((0..14).map(pair)).collect()
}

#[test]
fn both_engines_have_the_same_gradients() {
    for shape in SHAPES {
        let mut packed = decoder(shape, Format::F32);
        packed.temperature = 0.7;
        let lora = parameters(&packed, &format!("tuning/{shape}.safetensors"));
        let (items, head) = (many_items(), head(&packed));
        let likely = |_: usize, l: &[Vec<f32>]| {
            let pair = Pair {
                old: [-9.0, -11.0],
                rewards: [1.0, 0.2],
            };
            objectives::rebel([&l[0], &l[1]], &pair, ETA)
        };
        let score = |_: usize, h: &[Vec<f32>]| head_loss(&head, h);
        let expected = [
            packed.gradient(&lora, &items, &likely).unwrap(),
            packed.hidden_gradient(&lora, &items, &score).unwrap(),
        ];
        for device in others().filter(|device| shapes(device).contains(&shape)) {
            let mut other = decoder_on(&device, shape, Format::F32);
            other.temperature = 0.7;
            let got = [
                other.gradient(&lora, &items, &likely).unwrap(),
                other.hidden_gradient(&lora, &items, &score).unwrap(),
            ];
            for (got, expected) in got.iter().zip(&expected) {
                let gradient = off(&got.values, &expected.values);
                println!("{device} {shape}: gradient off by {gradient:.1e}");
                assert!(gradient <= 1e-4, "{device} {shape}: {gradient}");
                for (got, expected) in got.losses.iter().zip(&expected.losses) {
                    let difference = (got - expected).abs();
                    let limit = 1e-4 * expected.abs().max(1.0);
                    assert!(difference <= limit, "{device} {shape}: {got} {expected}");
                }
            }
        }
    }
}

/// A training of some steps: adapter, optimiser, and the loss of every step.
struct Course<'a> {
    recipe: &'a str,
    lora: LoraParameters,
    adam: AdamW,
    losses: Vec<f32>,
}

impl<'a> Course<'a> {
    fn new(recipe: &'a str, decoder: &TuningDecoder) -> Self {
        Self {
            recipe,
            lora: parameters(decoder, "tuning/curve.safetensors"),
            adam: AdamW::new(AdamWConfig::default(), AdamWState::default()),
            losses: Vec::new(),
        }
    }

    fn go(&mut self, decoder: &TuningDecoder, reference: &[Pair], steps: usize) {
        let (mut items, head) = (pairs(), head(decoder));
        if self.recipe == "sft" {
            items.iter_mut().for_each(|pair| pair.truncate(1));
        }
        for _ in 0..steps {
            let loss = |i: usize, l: &[Vec<f32>]| match self.recipe {
                "sft" => objectives::nll(&l[0]),
                "dpo" => objectives::dpo([&l[0], &l[1]], reference[i].old, BETA),
                "rebel" => objectives::rebel([&l[0], &l[1]], &reference[i], ETA),
                _ => head_loss(&head, l),
            };
            let gradient = match self.recipe {
                "reward" => decoder.hidden_gradient(&self.lora, &items, &loss),
                _ => decoder.gradient(&self.lora, &items, &loss),
            };
            let mut step = gradient.unwrap();
            let count = items.len() as f32;
            step.values.iter_mut().for_each(|g| *g /= count);
            self.losses
                .push(step.losses.iter().sum::<f64>() as f32 / count);
            self.adam.step(&mut self.lora.values, &step.values, 2e-3);
        }
    }
}

#[test]
fn every_device_trains_alike_and_continues_what_another_began() {
    let packed = decoder("llama", Format::F32);
    let reference = reference(&packed);
    for recipe in ["sft", "dpo", "rebel", "reward"] {
        let mut expected = Course::new(recipe, &packed);
        expected.go(&packed, &reference, 30);
        let (first, last) = (expected.losses[0], expected.losses[29]);
        assert!(last < 0.9 * first, "{recipe}: {first} {last}");
        for device in others() {
            let other = decoder_on(&device, "llama", Format::F32);
            let mut alone = Course::new(recipe, &other);
            alone.go(&other, &reference, 30);
            let what = format!("{device} {recipe}");
            close(&what, &alone.losses, &expected.losses, 1e-3);
            if is_slow(&device) && recipe != "reward" {
                continue;
            }
            // What the optimiser and the adapter hold after 12 steps is all that is needed to go on: on the same device
            // to the same numbers, on another to the same curve.
            let half = |begin: &TuningDecoder, end: &TuningDecoder| {
                let mut begun = Course::new(recipe, begin);
                begun.go(begin, &reference, 12);
                let mut resumed = Course {
                    adam: AdamW::new(AdamWConfig::default(), begun.adam.state.clone()),
                    ..begun
                };
                resumed.go(end, &reference, 18);
                resumed
            };
            let again = half(&other, &other);
            assert_eq!(again.lora.values, alone.lora.values, "{what}");
            assert_eq!(again.adam.state, alone.adam.state, "{what}");
            for (begin, end) in [(&packed, &other), (&other, &packed)] {
                let what = format!("{what}, changing engines");
                close(&what, &half(begin, end).losses, &expected.losses, 1e-3);
            }
        }
    }
}

#[test]
fn a_base_in_16_bits_trains_an_adapter_in_32() {
    for device in DeviceSpec::built() {
        let checkpoint = pico::checkpoint("llama");
        let exact = decoder_on(&device, "llama", Format::F32);
        let near = match device.offers(Format::Bf16) {
            Ok(()) => TuningDecoder::load(&checkpoint, &device, Format::Bf16).unwrap(),
            Err(_) => {
                let error = TuningDecoder::load(&checkpoint, &device, Format::Bf16).unwrap_err();
                assert!(error.to_string().contains("but in F32"), "{error}");
                continue;
            }
        };
        let lora = parameters(&exact, "tuning/llama.safetensors");
        let items = many_items();
        let loss = |_: usize, l: &[Vec<f32>]| objectives::dpo([&l[0], &l[1]], [-9.0, -9.0], BETA);
        let [exact, near] = [exact, near].map(|d| d.gradient(&lora, &items, &loss).unwrap());
        let error = off(&near.values, &exact.values);
        println!("{device}: gradient in 16 bits off by {error:.1e}");
        assert!((1e-5..0.1).contains(&error), "{device}: {error}");
    }
}

#[test]
fn wrong_sequences_and_adapters_are_refused() {
    let llama = decoder("llama", Format::F32);
    let refused = |tokens: Vec<u32>, from: usize| {
        let sequence = Sequence { tokens, from };
        llama.log_probs(None, &[sequence]).unwrap_err().to_string()
    };
    assert!(refused(vec![1, 2], 0).contains("prompt"));
    assert!(refused(vec![1], 1).contains("token to predict"));
    assert!(refused(vec![1, 96], 1).contains("vocabulary"));
    assert!(refused(vec![1; 10_000], 1).contains("context"));
    let checkpoint = pico::checkpoint("llama");
    for device in DeviceSpec::built() {
        let error = TuningDecoder::load(&checkpoint, &device, Format::Q8).unwrap_err();
        assert!(matches!(error, Error::NumberFormat { .. }), "{error}");
    }
    let empty = Adapter::default();
    let config = LoraConfig::default();
    assert!(LoraParameters::from_adapter(&empty, &config, llama.config()).is_err());
    let other = LoraConfig {
        rank: 0,
        ..LoraConfig::default()
    };
    assert!(LoraParameters::new(&other, llama.config(), 1).is_err());
}
