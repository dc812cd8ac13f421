//! What runs and trainings take, shapes without files, and whether experts change anything.
#![allow(clippy::unwrap_used, reason = "tests")]

mod common;

use common::{done, experiment, fails, stdout};
use serde_json::Value;

fn json(folder: &std::path::Path, arguments: &[&str]) -> Value {
    serde_json::from_str(&stdout(&done(folder, &[&["--json"], arguments].concat()))).unwrap()
}

#[test]
fn check_plans_the_memory_of_a_large_model_and_refuses_what_cannot_fit() {
    let folder = experiment();
    let here = folder.path();
    let large = |shape: &str| {
        let text = common::EXPERIMENT
            .replace("\"MODEL\"", &format!("\"shape://{shape}\""))
            .replace(
                "\"informative\": Adapter(\"PLAIN\"),",
                "\"informative\": Prompted(\"Say much.\"),",
            )
            .replace(
                "\"concise\": Full(\"OTHER\"),",
                "\"concise\": Prompted(\"Say little.\"),",
            );
        common::write(here, "large.ron", &text);
    };
    large("llama-3.1-8b");
    let checked = json(here, &["--format", "Q4", "check", "large.ron"]);
    let memory = &checked["memory"];
    let part = |name: &str| memory["parts"][name].as_u64().unwrap();
    // 6.98 billion parameters of projections at 5 bits, two vocabularies of 525 million at 8.5.
    let expected = 6_979_321_856.0 * 5.0 / 8.0 + 2.0 * 525_336_576.0 * 8.5 / 8.0;
    let weights = part("base model") as f64;
    assert!(
        (weights / expected - 1.0).abs() < 1e-3,
        "{weights} {expected}"
    );
    assert!(memory["bytes"].as_u64().unwrap() > part("base model") + part("logits"));
    large("llama-3.1-70b");
    let error = fails(here, &["check", "large.ron"], 2);
    assert!(
        error.contains("does not fit: memory: about 2") && error.contains("base model 282.2 GB"),
        "{error}"
    );
    // Nothing is read before it is refused.
    let error = fails(here, &["run", "large.ron"], 2);
    assert!(
        error.contains("shape://llama-3.1-70b in F32 on Cpu does not fit"),
        "{error}"
    );
    let error = fails(
        here,
        &["generate", "--model", "shape://llama-9", "--prompt", "x"],
        1,
    );
    assert!(
        error.contains("no such shape") && error.contains("qwen3-4b"),
        "{error}"
    );
}

#[test]
fn a_dry_run_says_what_a_training_takes_and_trains_nothing() {
    let folder = experiment();
    let here = folder.path();
    std::fs::write(
        here.join("data.jsonl"),
        r#"{"prompt": "Why?", "response": "So."}"#,
    )
    .unwrap();
    let training = |model: &str| {
        let text = format!(
            "(name: \"big\", model: {model:?}, format: Bf16, recipe: Sft(data: \"data.jsonl\"))"
        );
        std::fs::write(here.join("big.ron"), text).unwrap();
    };
    training("shape://llama-3.2-1b");
    let planned = json(here, &["train", "big.ron", "--dry-run"]);
    let parts = &planned["memory"]["parts"];
    let weights = parts["model that learns, Bf16"].as_u64().unwrap();
    assert!(
        (2_471_000_000..2_473_000_000).contains(&weights),
        "{weights}"
    );
    // Rank 8 on q, v, o and down of 16 blocks: 1,900,544 numbers, two moments in 32 bits each.
    let numbers = 16 * 8 * ((2048 + 2048) + (2048 + 512) + (2048 + 2048) + (8192 + 2048));
    assert_eq!(parts["optimiser"].as_u64().unwrap(), 8 * numbers);
    assert_eq!(parts["adapter"].as_u64().unwrap(), 4 * numbers);
    assert!(!here.join("runs").exists());
    training("shape://llama-3.1-70b");
    let error = fails(here, &["train", "big.ron", "--dry-run"], 2);
    assert!(
        error.contains("training 'big' does not fit") && error.contains("sampling_format: Q8"),
        "{error}"
    );
}

#[test]
fn a_shape_runs_like_any_model() {
    let folder = experiment();
    let here = folder.path();
    let arguments = [
        "--format",
        "Q4",
        "bench",
        "decode",
        "--shape",
        "smollm2-135m",
        "--experts",
        "2",
        "--sequences",
        "1",
        "--prompt-tokens",
        "4",
        "--new-tokens",
        "2",
        "--repeat",
        "1",
    ];
    let measured = json(here, &arguments);
    assert!(measured[0]["decode_steps_per_s"].as_f64().unwrap() > 0.0);
    // In 32 bits all of it would be 538 MB; 268 MB are what the bandwidth is measured with.
    let peak = measured[0]["peak_bytes"].as_u64().unwrap();
    assert!(peak < 450_000_000, "{peak}");
    let response = |name: &str| {
        let model = format!("shape://smollm2-135m{name}");
        let arguments = [
            "--format",
            "Q8",
            "generate",
            "--model",
            &model,
            "--prompt",
            "Why?",
            "--max-new-tokens",
            "3",
        ];
        json(here, &arguments)["tokens"].clone()
    };
    assert_eq!(response(""), response("@0"));
    assert_ne!(response(""), response("@1"));
    let error = fails(here, &["bench", "decode", "--shape", "llama-9"], 2);
    assert!(error.contains("known: smollm2-135m"), "{error}");
}

#[test]
fn a_probe_tells_experts_that_change_nothing() {
    let folder = experiment();
    let here = folder.path();
    // An adapter whose second factor is zero.
    let config = pico::checkpoint(pico::BASE).config().clone();
    let mut adapter = pico::adapter("plain");
    adapter.pairs.values_mut().for_each(|pair| pair.b.fill(0.0));
    adapter
        .save(&here.join("nothing"), &config, None, Default::default())
        .unwrap();
    let text = common::EXPERIMENT.replace(
        "experts: {",
        "experts: {\n        \"nothing\": Adapter(\"nothing\"),\n        \"base\": Base,",
    );
    common::write(here, "probe.ron", &text);
    let checked = json(here, &["check", "probe.ron", "--probe"]);
    let probes = checked["probes"].as_array().unwrap();
    assert_eq!(probes.len(), 4);
    for probe in probes {
        let name = probe["expert"].as_str().unwrap();
        let (kl, change) = (
            probe["kl"].as_f64().unwrap(),
            probe["change"].as_f64().unwrap(),
        );
        assert_eq!(kl > 1e-9 && change > 0.0, name != "nothing", "{probe}");
        assert!((0.0..=1.0).contains(&change) && kl >= 0.0, "{probe}");
    }
    let said = stdout(&done(here, &["check", "probe.ron", "--probe"]));
    assert!(said.contains("expert 'nothing' changes nothing"), "{said}");
    assert!(said.contains("expert 'informative': KL "), "{said}");
}

#[test]
fn a_trained_adapter_has_a_model_card() {
    let folder = experiment();
    let here = folder.path();
    std::fs::write(
        here.join("data.jsonl"),
        r#"{"prompt": "Why?", "response": "So."}"#,
    )
    .unwrap();
    let text = format!(
        "(name: \"carded\", seed: 5, model: {:?}, recipe: Sft(data: \"data.jsonl\", settings: (epochs: 2)))",
        common::fixture("llama").to_str().unwrap()
    );
    std::fs::write(here.join("carded.ron"), text).unwrap();
    done(here, &["train", "carded.ron", "--out", "out"]);
    let card = std::fs::read_to_string(here.join("out/adapter/README.md")).unwrap();
    let data = lm::source::sha256(&here.join("data.jsonl")).unwrap();
    for part in [
        "---\nbase_model: \"/".into(),
        "library_name: peft\n".into(),
        "# carded\n".into(),
        "A LoRA adapter of rank 8".into(),
        format!("- data: `data.jsonl` (SHA-256 `{data}`)"),
        "- command: `mope train carded.ron`".into(),
        "seed 5\n".into(),
        "| loss | ".into(),
    ] as [String; 8]
    {
        assert!(card.contains(&part), "{part}\n{card}");
    }
}
