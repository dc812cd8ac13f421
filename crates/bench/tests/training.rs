//! `mope train` over tiny models: what it writes, that it goes on where it stopped, what it refuses.
#![allow(clippy::unwrap_used, reason = "tests")]

mod common;

use std::path::Path;

use common::{done, experiment, fails, fixture, stdout, write};
use serde_json::Value;

fn json(folder: &Path, arguments: &[&str]) -> Value {
    let all = [&["--json"], arguments].concat();
    serde_json::from_str(&stdout(&done(folder, &all))).unwrap()
}

/// A training file with a recipe over the tiny model.
fn training(folder: &Path, name: &str, recipe: &str) {
    let model = fixture("llama");
    let text = format!(
        "(name: {name:?}, seed: 3, model: {model:?}, lora: (rank: 2, alpha: 4.0), recipe: {recipe})"
    );
    write(folder, &format!("{name}.ron"), &text);
}

fn data(folder: &Path) {
    let prompts = "{\"prompt\": \"a b c\"}\n{\"prompt\": \"d e\"}\n{\"prompt\": \"c c a\"}\n";
    write(folder, "asked.jsonl", prompts);
    let responses = "{\"prompt\": \"a b c\", \"response\": \"e d\"}\n{\"prompt\": \"d\", \"response\": \"a a\"}\n";
    write(folder, "responses.jsonl", responses);
    let pair = |i: usize| {
        let (prompt, extra) = (["a", "b c", "d"][i % 3], ["e", "e e", "d e"][i % 3]);
        format!(
            "{{\"prompt\": {prompt:?}, \"chosen\": \"a {extra}\", \"rejected\": \"b {extra}\"}}\n"
        )
    };
    write(
        folder,
        "pairs.jsonl",
        &(0..12).map(pair).collect::<String>(),
    );
}

const REBEL: &str = "Rebel(prompts: \"asked.jsonl\", \
    reward: (terms: [(scorer: Informativeness, weight: 1.0, normaliser: (mean: 1.0, sd: 0.5))], \
             penalties: (repetition: 1.0)), \
    settings: (iterations: 4, prompts: 2, max_new_tokens: 6, minibatch: 1, kl_target: 0.1))";

fn best_worst(extra: &str) -> String {
    format!(
        "BestWorst(prompts: \"asked.jsonl\", samples: 3, max_new_tokens: 5, {extra}, \
         reward: (terms: [(scorer: Informativeness, weight: 1.0, normaliser: (mean: 1.0, sd: 0.5))]), \
         settings: (epochs: 1, minibatch: 2))"
    )
}

#[test]
fn others_than_the_base_write_candidates() {
    let folder = experiment();
    let here = folder.path();
    data(here);
    let plain = fixture("adapter_plain");
    let candidates = format!("candidates: [Base, Adapter({plain:?})]");
    let mut results = Vec::new();
    for (name, extra) in [
        ("alone", "candidates: [Base]"),
        ("both", candidates.as_str()),
        ("strict", "candidates: [Base], missing_end: 9.0"),
    ] {
        training(here, name, &best_worst(extra));
        let done = json(here, &["train", &format!("{name}.ron")]);
        assert_eq!(done["finished"], true, "{name}");
        results.push(adapter(&here.join("runs/train").join(name)));
    }
    assert_ne!(results[0], results[1]);
}

#[test]
fn exchanged_pairs_and_the_chosen_ones_loss_change_a_training() {
    let folder = experiment();
    let here = folder.path();
    data(here);
    let mut results = Vec::new();
    for (name, extra) in [
        ("plain", ""),
        ("swapped", ", swap: true"),
        ("anchored", ", settings: (nll: 1.0)"),
    ] {
        training(here, name, &format!("Dpo(data: \"pairs.jsonl\"{extra})"));
        let done = json(here, &["train", &format!("{name}.ron")]);
        assert_eq!(done["finished"], true, "{name}");
        results.push(adapter(&here.join("runs/train").join(name)));
    }
    assert!(results[0] != results[1] && results[0] != results[2]);
}

fn adapter(run: &Path) -> Vec<u8> {
    std::fs::read(run.join("adapter/adapter_model.safetensors")).unwrap()
}

#[test]
fn an_interrupted_training_ends_as_an_uninterrupted_one() {
    let folder = experiment();
    let here = folder.path();
    data(here);
    let offline = "(epochs: 4, minibatch: 1)";
    let recipes = [
        (
            "sft",
            format!("Sft(data: \"responses.jsonl\", settings: {offline})"),
            8,
        ),
        (
            "dpo",
            "Dpo(data: \"pairs.jsonl\", settings: (epochs: 1, minibatch: 4))".into(),
            3,
        ),
        ("rebel", REBEL.to_string(), 4),
    ];
    for (name, recipe, rounds) in recipes {
        training(here, name, &recipe);
        let file = format!("{name}.ron");
        let whole = json(here, &["train", &file]);
        assert_eq!(
            (&whole["finished"], &whole["done"]),
            (&true.into(), &rounds.into())
        );
        let first = here.join("runs/train").join(name);
        for part in [
            "manifest.json",
            "metrics.parquet",
            "metrics.csv",
            "plots/loss.svg",
            "plots/gradient.png",
        ] {
            assert!(first.join(part).is_file(), "{name}: {part}");
        }
        let part = json(here, &["train", &file, "--out", "cut", "--stop-after", "1"]);
        assert_eq!(
            (&part["finished"], &part["done"]),
            (&false.into(), &1.into())
        );
        assert_ne!(adapter(&here.join("cut")), adapter(&first));
        let rest = json(here, &["train", &file, "--out", "cut"]);
        assert_eq!(rest["done"], rounds);
        assert_eq!(rest["last"], whole["last"]);
        assert_eq!(adapter(&here.join("cut")), adapter(&first), "{name}");
        // The adapter is an expert like any other.
        let path = first.join("adapter");
        let model = fixture("llama");
        let arguments = [
            "generate",
            "--model",
            model.to_str().unwrap(),
            "--adapter",
            path.to_str().unwrap(),
            "--prompt",
            "a",
            "--max-new-tokens",
            "3",
        ];
        done(here, &arguments);
        std::fs::remove_dir_all(here.join("cut")).unwrap();
    }
}

#[test]
fn a_checkpoint_of_another_training_is_refused_and_kept() {
    let folder = experiment();
    let here = folder.path();
    data(here);
    training(here, "rebel", REBEL);
    done(
        here,
        &["train", "rebel.ron", "--out", "run", "--stop-after", "1"],
    );
    let before = std::fs::read(here.join("run/checkpoint.safetensors")).unwrap();
    training(
        here,
        "rebel",
        &REBEL.replace("iterations: 4", "iterations: 5"),
    );
    let error = fails(here, &["train", "rebel.ron", "--out", "run"], 2);
    assert!(
        error.contains("other settings") && error.contains("--out"),
        "{error}"
    );
    assert_eq!(
        std::fs::read(here.join("run/checkpoint.safetensors")).unwrap(),
        before
    );
}

#[test]
fn mistakes_name_their_place() {
    let folder = experiment();
    let here = folder.path();
    data(here);
    let mistakes = [
        (
            REBEL.replace("iterations: 4", "iterations: 0"),
            "iterations is 0",
        ),
        (REBEL.replace("scorer: Info", "scorer: Inf"), "did you mean"),
        (
            REBEL.replace("asked.jsonl", "nowhere.jsonl"),
            "nowhere.jsonl",
        ),
        (REBEL.replace("weight: 1.0", "weight: 0.0"), "weight 0"),
        (
            "Sft(data: \"asked.jsonl\")".into(),
            "asked.jsonl:1: missing field `response`",
        ),
        (
            "Dpo(data: \"pairs.jsonl\", settings: (beta: -1.0))".into(),
            "beta is -1",
        ),
        (
            "Sft(data: \"responses.jsonl\", swap: true)".into(),
            "swap is for pairs",
        ),
        (
            "Dpo(data: \"pairs.jsonl\", settings: (nll: -1.0))".into(),
            "nll is -1",
        ),
        (
            best_worst("candidates: [Full(\"other\")]"),
            "candidates: one or more of",
        ),
        (best_worst("missing_end: -1.0"), "missing_end is -1"),
        (
            "Reward(data: \"asked.jsonl\")".into(),
            "asked.jsonl:1: missing field `chosen`",
        ),
    ];
    for (recipe, expected) in mistakes {
        training(here, "wrong", &recipe);
        let error = fails(here, &["train", "wrong.ron"], 2);
        assert!(error.contains(expected), "{recipe}\n{error}");
    }
}

#[test]
fn a_reward_model_scores_like_any_other_scorer() {
    let folder = experiment();
    let here = folder.path();
    data(here);
    training(
        here,
        "first_letter",
        "Reward(data: \"pairs.jsonl\", settings: (held_out: 0.25))",
    );
    let fitted = json(here, &["train", "first_letter.ron"]);
    assert_eq!(fitted["held_out"]["pairs"], 3);
    // Every pair differs in the same letter, so the held-out ones are in the right order.
    assert_eq!(fitted["held_out"]["accuracy"], 1.0);
    let text = common::EXPERIMENT.replacen(
        "scorer: Style",
        "scorer: Model(\"runs/train/first_letter/reward\")",
        1,
    );
    assert_ne!(text, common::EXPERIMENT);
    write(
        here,
        "model.ron",
        &text
            .replace("OTHER", fixture("qwen3").to_str().unwrap())
            .replace("MODEL", fixture("llama").to_str().unwrap()),
    );
    done(here, &["run", "model.ron", "--out", "run"]);
    let rewards = std::fs::read_to_string(here.join("run/tables/rewards.csv")).unwrap();
    assert!(
        rewards.lines().count() > 1 && !rewards.contains("NaN"),
        "{rewards}"
    );
}

/// A PCM over two adapters that serve the ends of one dimension.
fn preference_model(folder: &Path, extra: &str) {
    let words = "{\"short\": {\"train\": [\"a b\"]}, \"long\": {\"train\": [\"c d\", \"d c\"]}}";
    write(folder, "words.json", words);
    let (one, two) = (fixture("adapter_plain"), fixture("adapter_patterns"));
    let recipe = format!(
        "Pcm(prompts: \"asked.jsonl\", texts: \"words.json\", \
         dimensions: {{\"length\": (scorer: Informativeness, low: \"short\", high: \"long\", normaliser: (mean: 1.0, sd: 0.5))}}, \
         experts: {{\"short\": Adapter({one:?}), \"long\": Adapter({two:?})}}, {extra} \
         settings: (iterations: 3, preferences: 2, prompts: 2, max_new_tokens: 5, kl: 0.1))"
    );
    training(folder, "pcm", &recipe);
}

#[test]
fn a_preference_control_model_trains_resumes_and_mixes() {
    let folder = experiment();
    let here = folder.path();
    data(here);
    for extra in [
        "",
        "preferences: Dirichlet(alpha: 0.7), input: (statistics: true),",
        "input: (context: false, preference: Weights), utility: Mean,",
        "output: Logs,",
        "output: Gates(limit: 2.0), preferences: Dirichlet(alpha: 1.0),",
    ] {
        preference_model(here, extra);
        let whole = json(here, &["train", "pcm.ron", "--out", "whole"]);
        assert_eq!(whole["done"], 3);
        done(
            here,
            &["train", "pcm.ron", "--out", "cut", "--stop-after", "2"],
        );
        let rest = json(here, &["train", "pcm.ron", "--out", "cut"]);
        assert_eq!(rest["last"], whole["last"]);
        let weights =
            |run: &str| std::fs::read(here.join(run).join("pcm/model.safetensors")).unwrap();
        assert_eq!(weights("whole"), weights("cut"), "{extra}");
        for file in [
            "rollouts/00002.parquet",
            "metrics.parquet",
            "plots/utility.svg",
            "manifest.json",
        ] {
            assert!(here.join("whole").join(file).is_file(), "{file}");
        }
        std::fs::remove_dir_all(here.join("whole")).unwrap();
        std::fs::remove_dir_all(here.join("cut")).unwrap();
    }
    // Records are enough: nothing is sampled again.
    let gates = "output: Gates(limit: 2.0),";
    preference_model(here, gates);
    let settings = std::fs::read_to_string(here.join("pcm.ron")).unwrap();
    done(here, &["train", "pcm.ron", "--out", "first"]);
    let replay = settings
        .replace(gates, &format!("{gates} records: [\"first/rollouts\"],"))
        .replace("iterations: 3,", "iterations: ITERATIONS, replay: true,");
    for (iterations, done_after) in [("0", 1), ("2", 2)] {
        write(here, "again.ron", &replay.replace("ITERATIONS", iterations));
        let again = json(here, &["train", "again.ron", "--out", iterations]);
        assert_eq!(
            (&again["done"], &again["finished"]),
            (&done_after.into(), &true.into())
        );
        assert!(again["last"]["explained"].as_f64().unwrap() >= 0.0);
        assert!(here.join(iterations).join("pcm/config.json").is_file());
    }
    for (from, to, message) in [
        ("first/rollouts", "nowhere", "records: "),
        ("replay: true", "replay: false", "replay: true"),
        (
            "iterations: ITERATIONS",
            "fit: (algorithm: Ppo(clip: 0.2))",
            "REBEL",
        ),
    ] {
        let wrong = replay.replace(from, to).replace("ITERATIONS", "1");
        write(here, "wrong.ron", &wrong);
        let error = fails(here, &["train", "wrong.ron", "--out", "wrong"], 2);
        assert!(error.contains(message), "{error}");
    }
}
