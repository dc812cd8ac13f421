//! The program with adapters, reward models, trainings and rows of a run that hold what is no number.
#![allow(clippy::unwrap_used, reason = "tests")]

mod common;

use std::path::{Path, PathBuf};

use common::{done, experiment, fails, fixture, mope, stderr, stdout, write};
use eval::rewards::RewardModel;
use eval::rows::{generations, generations_frame, scores, scores_frame};
use eval::table::{parquet, read_parquet};
use lm::DeviceSpec;
use serde_json::Value;

/// Calls `change` with each tensor's name and numbers of a file of 32-bit floats.
fn patch(path: &Path, change: impl Fn(&str, &mut Vec<f32>)) {
    let mut bytes = std::fs::read(path).unwrap();
    let length = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let header: Value = serde_json::from_slice(&bytes[8..8 + length]).unwrap();
    for (name, info) in header.as_object().unwrap() {
        let Some(span) = info["data_offsets"].as_array() else {
            continue;
        };
        let at = |i: usize| 8 + length + span[i].as_u64().unwrap() as usize;
        let data = &mut bytes[at(0)..at(1)];
        let numbers = data.chunks_exact(4);
        let mut numbers: Vec<f32> = numbers
            .map(|b| f32::from_le_bytes(b.try_into().unwrap()))
            .collect();
        change(name, &mut numbers);
        let parts = data.chunks_exact_mut(4).zip(numbers);
        parts.for_each(|(to, from)| to.copy_from_slice(&from.to_le_bytes()));
    }
    std::fs::write(path, bytes).unwrap();
}

/// A copy of the plain adapter.
fn adapter(here: &Path, name: &str) -> PathBuf {
    let to = here.join(name);
    pico::copy_to("adapter_plain", &to);
    to.join("adapter_model.safetensors")
}

/// The experiment with an adapter of this folder.
fn with_adapter(here: &Path, name: &str, format: &str) {
    let text = common::EXPERIMENT
        .replace("Adapter(\"PLAIN\")", &format!("Adapter({name:?})"))
        .replace("seed: 3,", &format!("seed: 3, weights: {format},"));
    write(here, &format!("{name}.ron"), &text);
}

#[test]
fn an_adapter_with_one_nan_is_refused_before_anything_is_generated() {
    let folder = experiment();
    let here = folder.path();
    let file = adapter(here, "broken");
    patch(&file, |name, numbers| {
        if name.ends_with("layers.1.self_attn.v_proj.lora_B.weight") {
            numbers[9] = f32::NAN;
        }
    });
    for format in ["F32", "Q8"] {
        with_adapter(here, "broken", format);
        let error = fails(here, &["run", "broken.ron"], 1);
        for part in [
            "expert 'informative'",
            "adapter_model.safetensors",
            "layers.1.self_attn.v_proj.lora_B.weight' holds NaN at [2, 1]",
            "fetch or train it again",
        ] {
            assert!(error.contains(part), "{error}");
        }
        assert!(
            !here.join("runs/broken/tables").exists()
                || !here.join("runs/broken/tables/ranking.csv").exists()
        );
    }
}

#[test]
fn an_adapter_that_overflows_is_named_with_token_and_prompt_on_one_thread_and_on_two() {
    let folder = experiment();
    let here = folder.path();
    let file = adapter(here, "wild");
    patch(&file, |_, numbers| numbers.fill(1e30));
    for format in ["F32", "Bf16", "Q8", "Q4"] {
        with_adapter(here, "wild", format);
        for threads in ["1", "2"] {
            let output = mope(here, &["run", "wild.ron"])
                .env("MOPE_THREADS", threads)
                .output()
                .unwrap();
            let error = stderr(&output);
            assert_eq!(output.status.code(), Some(1), "{format}: {error}");
            let expected =
                "expert 'informative' gave no numbers (NaN or infinity) at token 0 of prompt 'one'";
            assert!(
                error.contains(expected) && !error.contains("panicked"),
                "{format}: {error}"
            );
            assert_eq!(stdout(&output), "");
        }
    }
    // One response on the command line has no id: its prompt is named by how it begins.
    let ask = "Why is the sky blue, and why is it red when the sun goes down?";
    let generate = ["generate", "--config", "wild.ron", "--strategy", "uniform"];
    let more = ["--preference", "both", "--prompt", ask];
    let error = fails(here, &[&generate[..], &more].concat(), 1);
    let expected = "at token 0 of prompt 'Why is the sky blue, and why is it red w…'";
    assert!(error.contains(expected), "{error}");
}

/// A folder of a reward model over the tiny model.
fn reward_model(here: &Path) -> PathBuf {
    let pair = |i: usize| {
        let (prompt, extra) = (["a", "b c", "d"][i % 3], ["e", "e e", "d e"][i % 3]);
        format!(
            "{{\"prompt\": {prompt:?}, \"chosen\": \"a {extra}\", \"rejected\": \"b {extra}\"}}\n"
        )
    };
    write(here, "pairs.jsonl", &(0..8).map(pair).collect::<String>());
    let model = fixture("llama");
    let recipe = "Reward(data: \"pairs.jsonl\", settings: (held_out: 0.25, steps: 20))";
    let text = format!("(name: \"letter\", seed: 3, model: {model:?}, recipe: {recipe})");
    write(here, "letter.ron", &text);
    done(here, &["train", "letter.ron"]);
    here.join("runs/train/letter/reward")
}

#[test]
fn a_reward_model_without_numbers_is_refused() {
    let folder = experiment();
    let here = folder.path();
    let reward = reward_model(here);
    let (head, card) = (reward.join("head.safetensors"), reward.join("reward.json"));
    let clean = [&head, &card].map(|path| std::fs::read(path).unwrap());
    let restore = || {
        std::fs::write(&head, &clean[0]).unwrap();
        std::fs::write(&card, &clean[1]).unwrap();
    };
    assert!(RewardModel::load(&reward, &DeviceSpec::Cpu).is_ok());
    for value in [f32::NAN, f32::INFINITY] {
        patch(&head, |_, numbers| numbers[4] = value);
        let error = RewardModel::load(&reward, &DeviceSpec::Cpu)
            .err()
            .unwrap()
            .to_string();
        let expected = format!("head.safetensors: tensor 'weight' holds {value} at [4]");
        assert!(error.contains(&expected), "{error}");
        restore();
    }
    let text = String::from_utf8(clean[1].clone()).unwrap();
    let mut broken: Value = serde_json::from_str(&text).unwrap();
    broken["normaliser"]["sd"] = 0.0.into();
    std::fs::write(&card, broken.to_string()).unwrap();
    let error = RewardModel::load(&reward, &DeviceSpec::Cpu)
        .err()
        .unwrap()
        .to_string();
    assert!(
        error.contains("reward.json") && error.contains("sd is 0"),
        "{error}"
    );
    restore();
    // Large numbers are scores as long as they are numbers.
    let large =
        common::EXPERIMENT.replacen("scorer: Style", &format!("scorer: Model({reward:?})"), 1);
    write(here, "large.ron", &large);
    patch(&head, |_, numbers| numbers.fill(1e30));
    done(here, &["run", "large.ron"]);
    // A base below it that overflows.
    let model = here.join("model");
    pico::copy_to("llama", &model);
    patch(&model.join("model.safetensors"), |name, numbers| {
        if name.contains("up_proj") || name.contains("down_proj") {
            numbers.fill(1e30);
        }
    });
    restore();
    let mut broken: Value = serde_json::from_str(&text).unwrap();
    broken["base"] = model.to_str().unwrap().into();
    std::fs::write(&card, broken.to_string()).unwrap();
    let error = fails(here, &["run", "large.ron", "--out", "base"], 1);
    assert!(
        error.contains("which is no number") && error.contains("dimension 'style'"),
        "{error}"
    );
}

#[test]
fn a_training_whose_loss_is_no_number_stops() {
    let folder = experiment();
    let here = folder.path();
    let lines = "{\"prompt\": \"a b c\", \"response\": \"e d\"}\n{\"prompt\": \"d\", \"response\": \"a a\"}\n";
    write(here, "responses.jsonl", lines);
    let model = fixture("llama");
    let recipe = "Sft(data: \"responses.jsonl\", settings: (epochs: 9, minibatch: 1, \
                  optimisation: (learning_rate: 1e30, warmup: 0)))";
    let text = format!(
        "(name: \"far\", seed: 3, model: {model:?}, lora: (rank: 2, alpha: 4.0), recipe: {recipe})"
    );
    write(here, "far.ron", &text);
    let error = fails(here, &["train", "far.ron"], 1);
    assert!(
        error.contains("is no number") && error.contains("learning_rate"),
        "{error}"
    );
    assert!(!here.join("runs/train/far/adapter").exists());
    // A checkpoint that somebody else wrote.
    let text = text.replace("1e30", "1e-3").replace("far", "near");
    write(here, "near.ron", &text);
    done(here, &["train", "near.ron", "--stop-after", "2"]);
    let checkpoint = here.join("runs/train/near/checkpoint.safetensors");
    patch(&checkpoint, |name, numbers| {
        if name == "square" {
            numbers[3] = f32::NAN;
        }
    });
    let error = fails(here, &["train", "near.ron"], 1);
    for part in [
        "checkpoint.safetensors",
        "tensor 'square' holds NaN at 3",
        "remove",
    ] {
        assert!(error.contains(part), "{error}");
    }
}

/// Changes all rows of a part of a run.
fn rows(run: &Path, part: &str, change: &dyn Fn(&Path)) {
    for entry in std::fs::read_dir(run.join(part)).unwrap() {
        change(&entry.unwrap().path());
    }
}

#[test]
fn rows_without_numbers_are_missing_and_told() {
    let folder = experiment();
    let here = folder.path();
    done(here, &["run", "pico.ron", "--out", "run"]);
    let run = here.join("run");
    let before = std::fs::read_to_string(run.join("tables/ranking.csv")).unwrap();
    // As version 0.1 wrote it: a manifest that knows no hashes of rows.
    let manifest = std::fs::read_to_string(run.join("manifest.json")).unwrap();
    let from = manifest.find("  \"rows\": {").unwrap();
    let to = from + manifest[from..].find("},\n").unwrap() + 3;
    let manifest = [&manifest[..from], &manifest[to..]].concat();
    std::fs::write(run.join("manifest.json"), manifest).unwrap();
    for (kind, value) in [("NaN", f64::NAN), ("inf", f64::INFINITY), ("large", 1e308)] {
        rows(&run, "scores", &|path| {
            let mut all = scores(path, &read_parquet(path).unwrap()).unwrap();
            for (i, row) in all.iter_mut().enumerate() {
                match row.identity.strategy.as_str() {
                    // One response, all, and every other column.
                    "single" if i == 0 => (row.utility, row.kl) = (value, Some(value)),
                    "uniform" => {
                        (row.utility, row.kl, row.base_nll) = (value, Some(value), Some(-value))
                    }
                    "fixed" => {
                        row.repetition = value;
                        for score in row.dimensions.values_mut() {
                            (score.raw, score.reward, score.reference) = (value, value, -value);
                        }
                    }
                    _ => {}
                }
            }
            let bytes = parquet(path, &mut scores_frame(&all).unwrap()).unwrap();
            std::fs::write(path, bytes).unwrap();
        });
        rows(&run, "generations", &|path| {
            let mut all = generations(path, &read_parquet(path).unwrap()).unwrap();
            for row in all.iter_mut().filter(|r| r.identity.strategy == "fixed") {
                let all = row
                    .weights
                    .iter_mut()
                    .chain(&mut row.kl)
                    .chain(&mut row.log_probs);
                all.for_each(|v| *v = value as f32);
            }
            let bytes = parquet(path, &mut generations_frame(&all).unwrap()).unwrap();
            std::fs::write(path, bytes).unwrap();
        });
        let output = done(here, &["report", "run"]);
        let ranking = std::fs::read_to_string(run.join("tables/ranking.csv")).unwrap();
        assert_eq!(ranking.lines().count(), before.lines().count());
        let html = std::fs::read_to_string(run.join("report.html")).unwrap();
        if kind == "large" {
            continue;
        }
        let said = stderr(&output);
        for warning in [
            "strategy 'single': utility is NaN or infinite in 1 of 12 responses; these count as missing",
            "strategy 'uniform': kl is NaN or infinite in 12 of 12 responses",
            "strategy 'uniform': base_nll is NaN or infinite in 12 of 12 responses",
            "strategy 'fixed': reward_style is NaN or infinite in 12 of 12 responses",
            "strategy 'fixed': weights is NaN or infinite in 12 of 12 responses",
        ] {
            assert!(said.contains(warning), "{kind}: {said}");
            assert!(
                html.contains(&warning.replace('\'', "&#39;")) || html.contains(warning),
                "{kind}"
            );
        }
        for table in [
            "ranking",
            "quality",
            "rewards",
            "preferences",
            "differences",
            "weights",
        ] {
            let text = std::fs::read_to_string(run.join(format!("tables/{table}.csv"))).unwrap();
            let lost = ["NaN", "inf"]
                .iter()
                .any(|word| text.split([',', '\n']).any(|c| c == *word));
            assert!(!lost, "{kind} {table}: {text}");
        }
        // Whoever has no utility comes last, with nothing to rank it by; the others stay.
        let last = ranking.lines().last().unwrap();
        assert!(last.contains("uniform,,,,"), "{ranking}");
        let other = |text: &str| {
            text.lines()
                .find(|l| l.contains(",prompting,"))
                .unwrap()
                .split(',')
                .nth(2)
                .unwrap()
                .to_string()
        };
        assert_eq!(other(&ranking), other(&before));
        done(here, &["compare", "run", "run"]);
    }
}
