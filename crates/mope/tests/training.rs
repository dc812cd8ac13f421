//! `mope train` over tiny models: what it writes, that it goes on where it stopped, what it refuses.
#![allow(clippy::unwrap_used, reason = "tests")]

mod common;

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use common::{done, experiment, fails, fixture, stderr, stdout, write};
use eval::rows;
use eval::table::read_parquet;
use serde_json::Value;

fn json(folder: &Path, arguments: &[&str]) -> Value {
    let all = [&["--json"], arguments].concat();
    serde_json::from_str(&stdout(&done(folder, &all))).unwrap()
}

/// A training file with a recipe over the tiny model.
fn training(folder: &Path, name: &str, recipe: &str) {
    let model = fixture("llama");
    let recipe = recipe.replace("DIMENSIONS", DIMENSIONS);
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

const DIMENSIONS: &str = "dimensions: {\"length\": (scorer: Informativeness, low: \"short\", high: \"long\", \
    normaliser: (mean: 1.0, sd: 0.5)), \"style\": (scorer: Style, low: \"cold\", high: \"warm\")}";

const MORL: &str = "Morl(prompts: \"asked.jsonl\", DIMENSIONS, \
    preferences: {\"a\": (text: \"b a\", weights: {\"long\": 2.0, \"warm\": 1.0}), \
                  \"b\": (text: \"a\", weights: {\"short\": 1.0})}, \
    penalties: (repetition: 1.0), samples: 6, max_new_tokens: 8, settings: (epochs: 1, minibatch: 1))";

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

#[test]
fn another_strength_of_a_finished_training_costs_nothing() {
    let folder = experiment();
    let here = folder.path();
    data(here);
    training(here, "once", &best_worst("candidates: [Base]"));
    let first = done(here, &["train", "once.ron"]);
    assert!(stderr(&first).contains("score:"), "{}", stderr(&first));
    let run = here.join("runs/train/once");
    let weak = adapter(&run);
    let again = done(here, &["train", "once.ron", "--set", "strength=3.0"]);
    let said = stderr(&again);
    assert!(
        !said.contains("score:") && !said.contains("steps"),
        "{said}"
    );
    let strong = adapter(&run);
    assert_ne!(weak, strong);
    // As if it had been trained so.
    write(
        here,
        "anew.ron",
        &std::fs::read_to_string(here.join("once.ron"))
            .unwrap()
            .replace("(name", "(strength: 3.0, name"),
    );
    done(here, &["train", "anew.ron", "--out", "anew"]);
    assert_eq!(adapter(&here.join("anew")), strong);
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
        ("morl", MORL.to_string(), 6),
    ];
    for (name, recipe, rounds) in recipes {
        training(here, name, &recipe);
        let file = format!("{name}.ron");
        let summary = json(here, &["train", &file]);
        assert_eq!(
            (&summary["finished"], &summary["done"]),
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
        assert_eq!(rest["last"], summary["last"]);
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
fn words_that_have_other_names_by_now_are_known() {
    let folder = experiment();
    let here = folder.path();
    data(here);
    training(here, "sft", "Sft(data: \"responses.jsonl\")");
    let text = std::fs::read_to_string(here.join("sft.ron")).unwrap();
    let with = |words: &str| {
        write(here, "sft.ron", &text.replace("seed: 3", words));
        done(here, &["train", "sft.ron"])
    };
    let first = with("format: Bf16, sampling_format: F32");
    assert!(!stderr(&first).contains("is called"), "{}", stderr(&first));
    let run = here.join("runs/train/sft");
    let trained = adapter(&run);
    // The same training, which is done already.
    let again = with("weights: Bf16, sampling_weights: F32");
    let said = stderr(&again);
    assert!(
        said.contains("sft.ron:1:15: `weights` is called `format` now"),
        "{said}"
    );
    assert!(said.contains("`sampling_format`"), "{said}");
    assert_eq!(said.matches("is called").count(), 2, "{said}");
    assert_eq!(adapter(&run), trained);
    let set = ["train", "sft.ron", "--set", "weights=F32", "--out", "set"];
    assert!(stderr(&done(here, &set)).contains("--set: `weights` is called `format`"));
    assert_ne!(adapter(&here.join("set")), trained);
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
            REBEL.replace("scorer: Informativeness", "scorer: Model(\"nowhere\")"),
            "a reward model is a folder",
        ),
        (
            "Sft(data: \"asked.jsonl\")".into(),
            "asked.jsonl:1: missing field `response`",
        ),
        (
            "Dpo(data: \"pairs.jsonl\", settings: (beta: -1.0))".into(),
            "beta is -1",
        ),
        (
            MORL.replace("\"warm\": 1.0", "\"warn\": 1.0"),
            "preference 'a': no dimension has the direction 'warn'",
        ),
        (
            MORL.replace("text: \"a\"", "text: \" \""),
            "preference 'b': it has no text",
        ),
        (
            CLASSIFIER.replace("share: 0.5", "share: 0.6"),
            "share is 0.6",
        ),
        (
            CLASSIFIER.replace("low: \"cold\"", "low: \"long\""),
            "'long' is named twice",
        ),
        (
            CLASSIFIER.replace("samples: 3", "samples: 1"),
            "at least 2 responses",
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
    let model = "Model(\"runs/train/first_letter/reward\")";
    let constants = "normaliser: (mean: 0.0, sd: 1.0)";
    let term =
        |scorer, weight| format!("(scorer: {scorer}, weight: {weight}, cap: 100.0, {constants})");
    let both = format!("Sum([{}, {}])", term(model, 0.5), term("Style", 2.0));
    let raw = |name: &str, scorer: &str| {
        let text = common::EXPERIMENT.replacen("scorer: Style", &format!("scorer: {scorer}"), 1);
        let text = text.replace("OTHER", fixture("qwen3").to_str().unwrap());
        let text = text.replace("MODEL", fixture("llama").to_str().unwrap());
        write(here, &format!("{name}.ron"), &text);
        done(here, &["run", &format!("{name}.ron"), "--out", name]);
        let mut all = BTreeMap::new();
        for entry in std::fs::read_dir(here.join(name).join("scores")).unwrap() {
            let path = entry.unwrap().path();
            for row in rows::scores(&path, &read_parquet(&path).unwrap()).unwrap() {
                all.insert(row.identity, row.dimensions["style"].raw);
            }
        }
        all
    };
    let (first, second, sum) = (
        raw("model", model),
        raw("text", "Style"),
        raw("both", &both),
    );
    let distinct: BTreeSet<u64> = first.values().map(|r| r.to_bits()).collect();
    assert!(distinct.len() > 1 && sum.len() == first.len());
    for (identity, sum) in &sum {
        let expected = 0.5 * first[identity] + 2.0 * second[identity];
        assert!((expected - sum).abs() < 1e-9, "{expected} {sum}");
    }
    // The model's files count among what the run was made from.
    let manifest = std::fs::read_to_string(here.join("both/manifest.json")).unwrap();
    assert!(manifest.contains("dimension style"), "{manifest}");
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
        let summary = json(here, &["train", "pcm.ron", "--out", "whole"]);
        assert_eq!(summary["done"], 3);
        done(
            here,
            &["train", "pcm.ron", "--out", "cut", "--stop-after", "2"],
        );
        let rest = json(here, &["train", "pcm.ron", "--out", "cut"]);
        assert_eq!(rest["last"], summary["last"]);
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
    // Credit for segments and a price on divergence, from the same responses.
    let settings = "settings: (segment: 2, fit: (credit: Segments(lambda: 0.5), kl: 0.1),";
    preference_model(
        here,
        "output: Gates(limit: 2.0), input: (statistics: true),",
    );
    let text = std::fs::read_to_string(here.join("pcm.ron")).unwrap();
    write(here, "pcm.ron", &text.replace("settings: (", settings));
    let made = json(
        here,
        &["train", "pcm.ron", "--set", "seed=1,2", "--out", "segments"],
    );
    let divergence = |i: usize| made["trainings"][i]["last"]["divergence"].as_f64().unwrap();
    assert!(
        divergence(0) > 0.0 && divergence(0) != divergence(1),
        "{made}"
    );
    for (output, more) in [
        (
            "Gates(limit: 2.0)",
            "fit: (credit: Segments(lambda: 0), kl: 0.1)",
        ),
        ("Gates(limit: 2.0)", "kl: 0.1"),
        // What was recorded for gates serves the other outputs, too.
        ("Probabilities", "fit: (epochs: 1)"),
        ("Logs", "fit: (epochs: 1)"),
    ] {
        let recipe = format!("output: {output}, records: [\"segments/seed={{seed}}/rollouts\"],");
        preference_model(here, &recipe);
        let text = std::fs::read_to_string(here.join("pcm.ron")).unwrap();
        let from =
            "settings: (iterations: 3, preferences: 2, prompts: 2, max_new_tokens: 5, kl: 0.1)";
        assert!(text.contains(from));
        let to = format!("settings: (iterations: 0, replay: true, {more})");
        write(here, "again.ron", &text.replace(from, &to));
        done(
            here,
            &["train", "again.ron", "--set", "seed=2", "--out", "again"],
        );
        std::fs::remove_dir_all(here.join("again")).unwrap();
    }
    let error = fails(
        here,
        &["train", "again.ron", "--seed", "7", "--out", "again"],
        2,
    );
    assert!(error.contains("seed=7"), "{error}");
    let wrong = [
        "train",
        "again.ron",
        "--set",
        "recipe.Pcm.setting=1",
        "--out",
        "again",
    ];
    let error = fails(here, &wrong, 2);
    assert!(error.contains("setting"), "{error}");
    // It may begin as a decoder whose vocabulary is the base's.
    let model = fixture("llama");
    preference_model(here, &format!("pretrained: {model:?},"));
    done(here, &["train", "pcm.ron", "--out", "pretrained"]);
    let config = std::fs::read_to_string(here.join("pretrained/pcm/config.json")).unwrap();
    assert!(config.contains("\"vocabulary\": 96"), "{config}");
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
        (
            "iterations: ITERATIONS",
            "fit: (credit: Segments(lambda: 0.5))",
            "segment is 0",
        ),
    ] {
        let wrong = replay.replace(from, to).replace("ITERATIONS", "1");
        write(here, "wrong.ron", &wrong);
        let error = fails(here, &["train", "wrong.ron", "--out", "wrong"], 2);
        assert!(error.contains(message), "{error}");
    }
}

const CLASSIFIER: &str = "Classifier(prompts: \"asked.jsonl\", \
    dimensions: {\"length\": (scorer: Informativeness, low: \"short\", high: \"long\"), \
                 \"style\": (scorer: Readability, low: \"cold\", high: \"warm\")}, \
    samples: 3, max_new_tokens: 12, share: 0.5, settings: (window: 4, held_out: 0.34, steps: 20))";

#[test]
fn a_classifier_trains_resumes_and_guides() {
    let folder = experiment();
    let here = folder.path();
    data(here);
    let plain = fixture("adapter_plain");
    let expert = format!("samples: 2, experts: {{\"plain\": Adapter({plain:?})}}");
    training(
        here,
        "classifier",
        &CLASSIFIER.replace("samples: 3", &expert),
    );
    let summary = json(here, &["train", "classifier.ron"]);
    assert_eq!(
        (&summary["finished"], &summary["done"]),
        (&true.into(), &2.into())
    );
    let cut = ["train", "classifier.ron", "--out", "cut"];
    let part = json(here, &[&cut[..], &["--stop-after", "1"]].concat());
    assert_eq!(
        (&part["finished"], &part["done"]),
        (&false.into(), &1.into())
    );
    assert!(!here.join("cut/classifier").exists());
    let rest = json(here, &cut);
    assert_eq!(rest["dimensions"], summary["dimensions"]);
    let first = here.join("runs/train/classifier");
    for file in ["classifier.json", "classifier.safetensors"] {
        let read = |run: &Path| std::fs::read(run.join("classifier").join(file)).unwrap();
        assert_eq!(read(&first), read(&here.join("cut")), "{file}");
    }
    // It guides in an experiment as any strategy does, alone and inside of others.
    let strategies = "strategies: {
        \"base\": Base(),
        \"none\": Cliper(model: \"runs/train/classifier/classifier\", strength: 0.0),
        \"guided\": Cliper(model: \"runs/train/classifier/classifier\", strength: 30.0),
        \"seen\": TopK(k: 5, of: Cliper(model: \"runs/train/classifier/classifier\", expert: \"informative\")),
    },
    ";
    let text = common::EXPERIMENT
        .replace("concise", "short")
        .replace(
            "low: \"unfriendly\", high: \"friendly\"",
            "low: \"cold\", high: \"warm\"",
        )
        .replace("high: \"informative\"", "high: \"long\"")
        .replace(
            "{\"informative\": 2.0, \"friendly\": 1.0}",
            "{\"long\": 2.0, \"warm\": 1.0}",
        )
        .replace(
            "{\"short\": 1.0, \"friendly\": 1.0}",
            "{\"short\": 1.0, \"cold\": 1.0}",
        );
    let (from, to) = (
        text.find("strategies: {").unwrap(),
        text.find("prompts:").unwrap(),
    );
    let text = format!("{}{strategies}{}", &text[..from], &text[to..]);
    write(here, "guided.ron", &text);
    done(here, &["check", "guided.ron"]);
    done(here, &["run", "guided.ron", "--out", "run"]);
    let quality = std::fs::read_to_string(here.join("run/tables/quality.csv")).unwrap();
    let kl = |strategy: &str| -> f64 {
        let column = quality
            .lines()
            .next()
            .unwrap()
            .split(',')
            .position(|c| c == "kl_per_token")
            .unwrap();
        let row = quality
            .lines()
            .find(|l| l.starts_with(&format!("{strategy},")))
            .unwrap();
        row.split(',').nth(column).unwrap().parse().unwrap()
    };
    assert!(kl("none").abs() < 1e-6 && kl("guided") > 1e-3, "{quality}");
    // Other numbers are another classifier: its responses are not found again.
    let generated = || {
        let all = std::fs::read_dir(here.join("run/generations")).unwrap();
        let names = all.map(|f| f.unwrap().file_name().into_string().unwrap());
        let mut names: Vec<String> = names.filter(|n| n.starts_with("guided.")).collect();
        names.sort();
        names
    };
    let before = generated();
    training(
        here,
        "classifier",
        &CLASSIFIER
            .replace("samples: 3", &expert)
            .replace("steps: 20", "steps: 21"),
    );
    done(here, &["train", "classifier.ron"]);
    done(here, &["run", "guided.ron", "--out", "run"]);
    assert_ne!(generated(), before);
    let lost = here.join("runs/train/classifier/classifier/classifier.safetensors");
    std::fs::write(&lost, b"nothing").unwrap();
    let error = fails(here, &["run", "guided.ron", "--out", "other"], 1);
    assert!(error.contains("classifier.safetensors"), "{error}");
}
