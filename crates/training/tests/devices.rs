//! Trainings on every device of the build: the same curves, the same bytes after an interruption, and what is refused
//! before anything is read.
#![allow(clippy::unwrap_used, reason = "tests")]

use std::path::{Path, PathBuf};

use eval::rewards::Scorer;
use harness::failure::is_usage;
use lm::chat::Prompt;
use lm::device::WgpuKind;
use lm::{DeviceSpec, Format};
use mope_training::{Outcome, Product, TrainOptions, Training, train};

const REWARD: &str =
    "reward: (terms: [(scorer: Informativeness, weight: 1.0, normaliser: (mean: 1.0, sd: 0.5))])";
const CLASSIFIER: &str = "Classifier(prompts: \"asked.jsonl\", samples: 4, max_new_tokens: 6, share: 0.5, \
    dimensions: {\"length\": (scorer: Informativeness, low: \"short\", high: \"long\", \
    normaliser: (mean: 1.0, sd: 0.5))}, settings: (steps: 20, held_out: 0.0))";

/// A folder with the data of all recipes.
fn data() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let write = |name: &str, text: String| std::fs::write(folder.path().join(name), text).unwrap();
    let asked = ["a b c", "d e", "c c a"].map(|p| format!("{{\"prompt\": {p:?}}}\n"));
    write("asked.jsonl", asked.concat());
    let responses = [("a b c", "e d"), ("d", "a a"), ("b", "c d e a b")];
    let response = |(p, r): (&str, &str)| format!("{{\"prompt\": {p:?}, \"response\": {r:?}}}\n");
    write("responses.jsonl", responses.map(response).concat());
    let pair = |i: usize| {
        let (prompt, extra) = (["a", "b c", "d"][i % 3], ["e", "e e", "d e"][i % 3]);
        format!(
            "{{\"prompt\": {prompt:?}, \"chosen\": \"a {extra}\", \"rejected\": \"b {extra}\"}}\n"
        )
    };
    write("pairs.jsonl", (0..12).map(pair).collect());
    folder
}

/// A training with a recipe, on a device, in numbers that every device has.
fn training(folder: &Path, recipe: &str, device: &DeviceSpec) -> Training {
    let file = folder.join("training.ron");
    let text = format!(
        "(name: \"pico\", seed: 3, model: {:?}, sampling_format: F32, lora: (rank: 2, alpha: 4.0), device: {device}, \
         recipe: {recipe})",
        pico::path("llama")
    );
    std::fs::write(&file, text).unwrap();
    Training::load(&file).unwrap()
}

fn go(training: &Training, out: PathBuf, stop_after: Option<usize>) -> Outcome {
    let source = out.clone();
    let options = TrainOptions {
        source,
        out,
        stop_after,
    };
    train(training, &options).unwrap()
}

/// The loss of every step.
fn losses(out: &Path) -> Vec<f64> {
    let text = std::fs::read_to_string(out.join("metrics.csv")).unwrap();
    let mut lines = text.lines();
    let column = lines.next().unwrap().split(',').position(|n| n == "loss");
    let loss = |line: &str| {
        line.split(',')
            .nth(column.unwrap())
            .unwrap()
            .parse()
            .unwrap()
    };
    lines.map(loss).collect()
}

fn alike(what: &str, got: &[f64], expected: &[f64]) {
    assert_eq!(got.len(), expected.len(), "{what}");
    for (step, (got, expected)) in got.iter().zip(expected).enumerate() {
        let limit = 1e-3 * expected.abs().max(1.0);
        assert!(
            (got - expected).abs() <= limit,
            "{what}, step {step}: {got} {expected}"
        );
    }
}

fn adapter(out: &Path) -> Vec<u8> {
    std::fs::read(out.join("adapter/adapter_model.safetensors")).unwrap()
}

#[test]
fn adapters_learn_alike_on_every_device_and_move_between_them() {
    let folder = data();
    let here = folder.path();
    let recipes = [
        "Sft(data: \"responses.jsonl\", settings: (epochs: 30, minibatch: 3, optimisation: (learning_rate: 0.004)))",
        "Dpo(data: \"pairs.jsonl\", settings: (epochs: 30, minibatch: 12, nll: 0.2, optimisation: (learning_rate: 0.004)))",
    ];
    for (number, recipe) in recipes.into_iter().enumerate() {
        let out = |what: &str| here.join(format!("{number} {what}"));
        let on = |device: &DeviceSpec| training(here, recipe, device);
        let cpu = on(&DeviceSpec::Cpu);
        go(&cpu, out("Cpu"), None);
        let expected = losses(&out("Cpu"));
        assert_eq!(expected.len(), 30);
        assert!(expected[29] < 0.9 * expected[0], "{expected:?}");
        for device in DeviceSpec::built() {
            let (whole, cut) = (out(&format!("{device}")), out(&format!("{device} cut")));
            go(&on(&device), whole.clone(), None);
            alike(&format!("{device} {recipe}"), &losses(&whole), &expected);
            // Killed after eleven steps, on the same device: the same bytes.
            assert!(!go(&on(&device), cut.clone(), Some(11)).finished);
            assert!(go(&on(&device), cut.clone(), None).finished);
            assert_eq!(adapter(&cut), adapter(&whole), "{device} {recipe}");
            // Begun on one engine, continued on the other: the same curve.
            for (begin, end) in [(&DeviceSpec::Cpu, &device), (&device, &DeviceSpec::Cpu)] {
                let moved = out(&format!("{begin} to {end}"));
                go(&on(begin), moved.clone(), Some(11));
                assert_eq!(go(&on(end), moved.clone(), None).done, 30);
                alike(
                    &format!("{begin} to {end} {recipe}"),
                    &losses(&moved),
                    &expected,
                );
            }
        }
    }
}

#[test]
fn a_policy_samples_and_learns_on_every_device() {
    let folder = data();
    let here = folder.path();
    let recipe = format!(
        "Rebel(prompts: \"asked.jsonl\", {REWARD}, \
         settings: (iterations: 3, prompts: 2, max_new_tokens: 6, minibatch: 1))"
    );
    for device in DeviceSpec::built() {
        let training = training(here, &recipe, &device);
        let out = |what: &str| here.join(format!("{device} {what}"));
        let whole = go(&training, out("whole"), None);
        assert_eq!((whole.finished, whole.done), (true, 3));
        assert!(losses(&out("whole")).iter().all(|l| l.is_finite()));
        go(&training, out("cut"), Some(1));
        go(&training, out("cut"), None);
        assert_eq!(adapter(&out("cut")), adapter(&out("whole")), "{device}");
    }
}

#[test]
fn a_reward_model_is_fitted_and_scores_on_every_device() {
    let folder = data();
    let here = folder.path();
    let recipe = "Reward(data: \"pairs.jsonl\", \
        settings: (held_out: 0.25, lora: (rank: 2, alpha: 4.0), epochs: 4, minibatch: 3))";
    let prompt = Prompt::Chat(vec![lm::chat::Message::user("b c")]);
    let mut all: Vec<[f64; 2]> = Vec::new();
    for device in DeviceSpec::built() {
        let outcome = go(
            &training(here, recipe, &device),
            here.join(format!("{device}")),
            None,
        );
        let Product::Reward { folder, held_out } = outcome.product else {
            panic!("{outcome:?}")
        };
        assert_eq!((held_out.pairs, held_out.accuracy), (3, 1.0), "{device}");
        let scores = |device: &DeviceSpec| {
            let reward = Scorer::Model(folder.clone()).open_on(device).unwrap();
            ["a e e", "b e e"].map(|text| {
                let score = reward.score(&prompt, text).unwrap();
                reward.normaliser().unwrap().apply(score)
            })
        };
        let trained = scores(&device);
        assert!(trained[0] > trained[1] + 0.5, "{device}: {trained:?}");
        // What one device fitted another reads; the base is in 16 bits.
        for (here, there) in trained.iter().zip(scores(&DeviceSpec::Cpu)) {
            assert!((here - there).abs() < 0.05, "{device}: {here} {there}");
        }
        all.push(trained);
    }
    for (device, scores) in DeviceSpec::built().iter().zip(&all) {
        for (score, expected) in scores.iter().zip(&all[0]) {
            assert!(
                (score - expected).abs() < 0.2,
                "{device}: {score} {expected}"
            );
        }
    }
}

#[test]
fn a_classifier_is_fitted_on_every_device() {
    let folder = data();
    let here = folder.path();
    for device in DeviceSpec::built() {
        let training = training(here, CLASSIFIER, &device);
        let fitted = |out: PathBuf| {
            let outcome = go(&training, out, None);
            let Product::Classifier { folder, .. } = outcome.product else {
                panic!("{outcome:?}")
            };
            std::fs::read(folder.join("classifier.safetensors")).unwrap()
        };
        let out = |what: &str| here.join(format!("{device} {what}"));
        let stopped = go(&training, out("cut"), Some(0));
        assert_eq!(stopped.product, Product::Responses);
        assert_eq!(fitted(out("cut")), fitted(out("whole")), "{device}");
    }
}

#[test]
fn a_device_or_a_format_that_is_not_there_is_refused_before_anything_is_read() {
    let folder = data();
    let here = folder.path();
    let mut wrong = training(
        here,
        "Sft(data: \"responses.jsonl\")",
        &DeviceSpec::BurnFlex,
    );
    // Were anything read, this would be what is missing.
    wrong.model = "nowhere".into();
    let error = |training: &Training| {
        let out = here.join("refused");
        let options = TrainOptions {
            source: out.clone(),
            out: out.clone(),
            stop_after: None,
        };
        let error = train(training, &options).unwrap_err();
        assert!(is_usage(&error) && !out.exists(), "{error:#}");
        error.to_string()
    };
    let devices = [
        (DeviceSpec::Libtorch, "tch"),
        (DeviceSpec::LibtorchCuda(0), "tch"),
        (DeviceSpec::Wgpu(WgpuKind::Cpu), "wgpu"),
        (DeviceSpec::Cuda(7), "cuda"),
    ];
    for (device, feature) in devices {
        if !DeviceSpec::built().contains(&device) {
            wrong.device = device.clone();
            let error = error(&wrong);
            let named = format!("device: device {device}: ");
            assert!(
                error.starts_with(&named) && error.contains(feature),
                "{error}"
            );
        }
    }
    // Where the build could open such a device, the machine has no hundred of them.
    for device in [
        DeviceSpec::Wgpu(WgpuKind::Discrete(99)),
        DeviceSpec::LibtorchCuda(99),
    ] {
        wrong.device = device.clone();
        let error = error(&wrong);
        assert!(
            error.starts_with(&format!("device: device {device}: ")),
            "{error}"
        );
        assert!(
            error.contains("built without feature") || error.contains("has none"),
            "{error}"
        );
    }
    let recipe = format!("Rebel(prompts: \"asked.jsonl\", {REWARD})");
    let mut rebel = training(here, &recipe, &DeviceSpec::BurnFlex);
    rebel.sampling_format = Format::Q8;
    let error = error(&rebel);
    assert!(
        error.starts_with("sampling_format on device BurnFlex: format Q8"),
        "{error}"
    );
    assert!(
        error.contains("needs device Cpu; others have F32 and Bf16"),
        "{error}"
    );
}
