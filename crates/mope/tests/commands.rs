//! The other commands, and mistakes of every kind.
#![allow(clippy::unwrap_used, reason = "tests")]

mod common;

use common::{done, experiment, fails, fixture, stderr, stdout, write};
use serde_json::Value;

fn json(folder: &std::path::Path, arguments: &[&str]) -> Value {
    let mut all = vec!["--json"];
    all.extend(arguments);
    serde_json::from_str(&stdout(&done(folder, &all))).unwrap()
}

#[test]
fn generate_and_score_agree() {
    let folder = experiment();
    let here = folder.path();
    let model = fixture("llama");
    let model = model.to_str().unwrap();
    let adapter = fixture("adapter_plain");
    let selections: [&[&str]; 4] = [
        &["--model", model],
        &["--model", model, "--adapter", adapter.to_str().unwrap()],
        &[
            "--config",
            "pico.ron",
            "--strategy",
            "uniform",
            "--preference",
            "both",
        ],
        &[
            "--config",
            "pico.ron",
            "--strategy",
            "fixed",
            "--preference",
            "informative=0.25,friendly=0.75",
        ],
    ];
    let mut texts = Vec::new();
    for selection in selections {
        let ask = ["--prompt", "Why is it so?"];
        let generate = [
            &["generate"],
            selection,
            &ask,
            &["--max-new-tokens", "9", "--temperature", "0"],
        ];
        let made = json(here, &generate.concat());
        let text = made["text"].as_str().unwrap();
        assert_eq!(made["tokens"].as_array().unwrap().len(), 9, "{made}");
        assert_eq!(
            done(here, &generate.concat()).stdout,
            format!("{text}\n").as_bytes()
        );
        let scored = json(
            here,
            &[&["score"], selection, &ask, &["--response", text]].concat(),
        );
        assert_eq!(scored["tokens"], made["tokens"]);
        let numbers = |v: &Value| -> Vec<f64> {
            v.as_array()
                .unwrap()
                .iter()
                .map(|v| v.as_f64().unwrap())
                .collect()
        };
        let (a, b) = (numbers(&made["log_probs"]), numbers(&scored["log_probs"]));
        assert!(
            a.iter().zip(&b).all(|(a, b)| (a - b).abs() < 1e-5),
            "{a:?} {b:?}"
        );
        assert!((b.iter().sum::<f64>() - scored["total"].as_f64().unwrap()).abs() < 1e-9);
        assert_eq!(made.get("weights").is_some(), selection[0] == "--config");
        texts.push(text.to_string());
    }
    assert_ne!(texts[0], texts[1], "the adapter has an effect");
    let coloured = [
        selections[3],
        &["--prompt", "Why?", "--max-new-tokens", "4"],
    ]
    .concat();
    let show = |flag: &str| done(here, &[&["generate", flag], &coloured[..]].concat());
    let shown = show("--show-weights");
    let text = stdout(&shown);
    assert!(text.contains("friendly  mean weight 0.750"), "{text}");
    assert_eq!(stderr(&shown), "");
    // As the flag was called before.
    let before = show("--weights");
    assert_eq!(stdout(&before), text);
    let notice = stderr(&before);
    assert!(
        notice.contains("`generate --show-weights`") && notice.lines().count() == 1,
        "{notice}"
    );
}

#[test]
fn measurements_are_verbs_and_what_chose_them_before_is_still_known() {
    let folder = experiment();
    let here = folder.path();
    let model = fixture("llama");
    let small = [
        "--model",
        model.to_str().unwrap(),
        "--sequences",
        "2",
        "--prompt-tokens",
        "8",
        "--new-tokens",
        "4",
        "--repeat",
        "1",
    ];
    let rows = |arguments: &[&str]| {
        let all = [&["--json", "bench"], arguments, &small].concat();
        let output = done(here, &all);
        let rows: Value = serde_json::from_str(&stdout(&output)).unwrap();
        (rows, stderr(&output))
    };
    let decode = ["decode", "--experts", "1,2", "--format", "F32,Bf16"];
    let (decoded, said) = rows(&decode);
    let keys: Vec<(&Value, &Value)> = decoded
        .as_array()
        .unwrap()
        .iter()
        .map(|row| (&row["format"], &row["experts"]))
        .collect();
    let format = |name: &str| Value::from(name);
    let (exact, half) = (format("F32"), format("Bf16"));
    let (one, two) = (Value::from(1), Value::from(2));
    let expected = [(&exact, &one), (&exact, &two), (&half, &one), (&half, &two)];
    assert_eq!(keys, expected);
    assert!(!said.contains("is called"), "{said}");
    let (before, said) = rows(&["--experts", "2", "--weights", "Bf16"]);
    assert_eq!((&before[0]["format"], &before[0]["experts"]), (&half, &two));
    for new in ["`bench --format`", "`bench decode`"] {
        assert!(said.contains(new), "{said}");
    }
    let (trained, _) = rows(&["train", "--format", "F32", "--out", "measured"]);
    assert_eq!(trained[0]["format"], "F32");
    assert!(trained[0]["train_tokens_per_s"].as_f64().unwrap() > 0.0);
    assert!(here.join("measured/training.csv").is_file());
    let (recorded, said) = rows(&["--records", "--experts", "2"]);
    assert!(recorded[0]["ratio"].as_f64().unwrap() > 0.0);
    assert!(said.contains("`bench records`"), "{said}");
    let error = fails(here, &["--format", "F32,Q8", "devices"], 2);
    assert!(error.contains("only mope bench"), "{error}");
}

#[test]
fn an_error_says_its_cause_once() {
    let folder = experiment();
    let here = folder.path();
    let error = fails(here, &["study", "import", "nowhere", "answers.json"], 1);
    assert_eq!(error.matches("No such file").count(), 1, "{error}");
    assert!(
        error.contains("STUDY, a folder that `mope study export` wrote: nowhere/key.json"),
        "{error}"
    );
    std::fs::create_dir(here.join("none")).unwrap();
    let error = fails(here, &["compare", "none", "none"], 1);
    assert!(error.contains("is this a run folder?"), "{error}");
}

#[test]
fn a_failure_is_a_json_document_where_one_is_asked_for() {
    let folder = experiment();
    let here = folder.path();
    for (arguments, code) in [
        (&["check", "none.ron"][..], 2),
        (&["report", "."], 1),
        (&["check"], 2),
        (&["check", "pico.ron", "--frobnicate"], 2),
    ] {
        let output = common::mope(here, &[&["--json"], arguments].concat())
            .output()
            .unwrap();
        let error = stderr(&output);
        assert_eq!(output.status.code(), Some(code), "{arguments:?}: {error}");
        let document: Value = serde_json::from_str(&stdout(&output)).unwrap();
        let said = document["error"].as_str().unwrap();
        assert_eq!(document.as_object().unwrap().len(), 1, "{document}");
        let (said, error) = (words(said), words(&error));
        assert!(error.contains(&format!("error: {said}")), "{said} {error}");
    }
}

fn words(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

#[test]
fn a_pcm_is_inspected() {
    let folder = experiment();
    let here = folder.path();
    let config = pcm::PcmConfig::tiny(&["concise", "friendly"], 32);
    let model = pcm::Pcm::new(&config, 1).unwrap();
    model.save(&here.join("pcm")).unwrap();
    let document = json(here, &["inspect", "pcm"]);
    assert_eq!(document["parameters"], model.values().len());
    assert_eq!(document["pcm"]["experts"][1], "friendly");
    let shown = stdout(&done(here, &["inspect", "pcm"]));
    assert!(shown.starts_with("pcm "), "{shown}");
    let experts = shown.lines().find(|line| line.starts_with("experts "));
    assert!(experts.unwrap().ends_with(" concise, friendly"), "{shown}");
    std::fs::write(here.join("pcm/model.safetensors"), "damaged").unwrap();
    let error = fails(here, &["inspect", "pcm"], 1);
    assert!(error.contains("pcm/model.safetensors"), "{error}");
}

#[test]
fn a_missing_prompt_set_is_named_with_its_field() {
    let folder = experiment();
    let here = folder.path();
    let missing = "prompts: nowhere.txt: No such file";
    let error = fails(here, &["run", "pico.ron", "--prompts", "nowhere.txt"], 2);
    assert!(error.contains(missing), "{error}");
    let field = "prompts: \"prompts.jsonl\"";
    for name in ["validation", "training"] {
        let file = match name {
            "training" => "[\"nowhere.txt\"]",
            _ => "\"nowhere.txt\"",
        };
        let text = common::EXPERIMENT.replace(field, &format!("{field}, {name}: {file}"));
        write(here, "missing.ron", &text);
        let error = fails(here, &["check", "missing.ron"], 2);
        let expected = format!("{name}: ");
        assert!(
            error.contains(&expected) && error.contains("nowhere.txt: No such file"),
            "{error}"
        );
    }
}

#[test]
fn small_commands() {
    let folder = experiment();
    let here = folder.path();
    let model = fixture("llama");
    let model = model.to_str().unwrap();
    let tokens = json(here, &["tokenize", "--model", model, "--text", "A b"]);
    assert_eq!(tokens["tokens"], serde_json::json!([36, 3, 69]));
    assert_eq!(tokens["pieces"], serde_json::json!(["A", " ", "b"]));
    let listed = stdout(&done(
        here,
        &["tokenize", "--model", model, "--text", "A b"],
    ));
    assert!(listed.contains("      3  \" \"\n"), "{listed}");
    let config = json(here, &["inspect", model]);
    assert_eq!(config["parameters"], 18_592);
    let shown = stdout(&done(here, &["inspect", model]));
    let value = |key: &str| {
        let mut values = shown.lines().filter_map(|line| line.split_once(' '));
        values.find(|(name, _)| *name == key).map(|(_, v)| v.trim())
    };
    assert_eq!(value("parameters"), Some("18592 (0.0 M)"), "{shown}");
    assert_eq!(value("layers"), Some("2"), "{shown}");
    assert_eq!(value("tied_head"), Some("yes"), "{shown}");
    assert!(value("rope.theta").is_some(), "{shown}");
    assert!(!shown.contains(['{', '}']), "{shown}");
    assert_eq!(
        json(
            here,
            &["inspect", fixture("adapter_plain").to_str().unwrap()]
        )["peft_type"],
        "LORA"
    );
    let check = json(here, &["check", "pico.ron"]);
    assert_eq!(check["responses"], 72);
    let devices = json(here, &["devices"]);
    assert_eq!(devices["devices"][0]["device"], "Cpu");
    assert_eq!(devices["devices"][1]["device"], "BurnFlex");
    let conversation = r#"[{"role": "system", "content": "x"}, {"role": "user", "content": "y"}]"#;
    done(
        here,
        &[
            "generate",
            "--model",
            model,
            "--messages",
            conversation,
            "--max-new-tokens",
            "2",
        ],
    );
    done(
        here,
        &[
            "run",
            "pico.ron",
            "--out",
            "lines",
            "--prompts",
            "prompts.jsonl",
        ],
    );
}

#[test]
fn an_exported_model_answers_as_base_and_adapter_do() {
    let folder = experiment();
    let here = folder.path();
    let (model, adapter) = (fixture("llama"), fixture("adapter_plain"));
    let (model, adapter) = (model.to_str().unwrap(), adapter.to_str().unwrap());
    let ask = ["--prompt", "Why is it so?", "--max-new-tokens", "8"];
    let both = ["generate", "--model", model, "--adapter", adapter];
    let export = ["export", "--model", model, "--adapter", adapter, "--out"];
    let written = json(here, &[&export[..], &["merged"]].concat());
    assert_eq!(
        (&written["path"], &written["merged"]),
        (&"merged".into(), &true.into())
    );
    let merged = json(
        here,
        &[&["generate", "--model", "merged"], &ask[..]].concat(),
    );
    let apart = json(here, &[&both[..], &ask].concat());
    assert_eq!(merged["tokens"], apart["tokens"]);
    let again = fails(here, &[&export[..], &["merged"]].concat(), 1);
    assert!(again.contains("merged: the folder is not empty"), "{again}");
}

#[test]
fn mistakes_in_an_experiment_name_their_place() {
    let folder = experiment();
    let here = folder.path();
    let change = |from: &str, to: &str| {
        assert!(common::EXPERIMENT.contains(from));
        write(here, "wrong.ron", &common::EXPERIMENT.replacen(from, to, 1));
        fails(here, &["check", "wrong.ron"], 2)
    };
    for (from, to, expected) in [
        ("seed: 3", "sead: 3", "wrong.ron:3:"),
        ("seed: 3", "sead: 3", "did you mean 'seed'?"),
        ("Uniform()", "Unifrom()", "did you mean 'Uniform'?"),
        (
            "\"friendly\": Prompted",
            "\"informative\": Prompted",
            "'informative' is defined twice",
        ),
        (
            "\"friendly\": Prompted",
            "\"friend ly\": Prompted",
            "names are made of letters",
        ),
        (
            "\"informative\": 2.0",
            "\"informative\": -2.0",
            "not above 0",
        ),
        (
            "\"informative\": 2.0",
            "\"helpful\": 2.0",
            "no dimension has the direction 'helpful'",
        ),
        (
            "\"concise\": Full",
            "\"unfriendly\": Full",
            "asks for 'concise'",
        ),
        ("\"base\": 0.5", "\"bass\": 0.5", "a weight for 'bass'"),
        ("\"base\": 0.5", "\"base\": 0.7", "the weights sum to 1.2"),
        (
            "expert: \"friendly\"",
            "expert: \"kind\"",
            "there is no expert 'kind'",
        ),
        (
            "temperature: 0.9",
            "temperature: -0.9",
            "temperature is -0.9, not a number from 0 on",
        ),
        (
            "Adapter(\"",
            "Adapter(\"nowhere",
            "an adapter is a folder as PEFT saves it",
        ),
        ("samples: 2", "samples: 0", "samples: at least 1"),
        (
            "scorer: Style",
            "scorer: CompleteSentences(Model(\"nowhere\"))",
            "a reward model is a folder",
        ),
        (
            "scorer: Style",
            "scorer: Sum([(scorer: Style, weight: 0.0)])",
            "dimension 'style': a term of weight 0",
        ),
        (
            "low: \"concise\"",
            "low: \"friendly\"",
            "'friendly' is named twice",
        ),
    ] {
        let error = change(from, to);
        assert!(
            error.contains("wrong.ron") && error.contains(expected),
            "{error}"
        );
    }
}

#[test]
fn a_strategy_that_needs_more_than_an_expert_gives_is_refused_by_name() {
    let folder = experiment();
    let here = folder.path();
    let limited = common::EXPERIMENT
        .replace(
            "Prompted(\"be kind\")",
            "Limited(top_k: 5, of: Prompted(\"be kind\"))",
        )
        .replace("\"fixed\": Fixed(space: Log),", "\"fixed\": STRATEGY,");
    let with = |strategy: &str| write(here, "limited.ron", &limited.replace("STRATEGY", strategy));
    for strategy in [
        "Fixed(space: Log)",
        "Mod()",
        "DeRa()",
        "Mato()",
        "PackLlm()",
        "DExperts(anti: {\"informative\": \"base\", \"friendly\": \"base\", \"concise\": \"base\"})",
        "ModelArithmetic(terms: [(weight: 1.0, of: Expert(\"friendly\"))])",
    ] {
        with(strategy);
        let error = fails(here, &["check", "limited.ron"], 2);
        for part in [
            "limited.ron: strategy 'fixed' for preference 'both'",
            "full next-token distributions of expert 'friendly'",
            "the 5 likeliest tokens only",
            "Fixed() in probability space",
        ] {
            assert!(error.contains(part), "{strategy}: {error}");
        }
    }
    with("PackLlm(space: Probability)");
    let error = fails(here, &["check", "limited.ron"], 2);
    assert!(
        error.contains("log-probabilities of the prompt of expert 'friendly'"),
        "{error}"
    );
    with("TopK(k: 3, of: Fixed())");
    done(here, &["run", "limited.ron", "--out", "limited"]);
}

#[test]
fn other_mistakes_end_in_one_clear_error() {
    let folder = experiment();
    let here = folder.path();
    let model = fixture("llama");
    let model = model.to_str().unwrap();
    let expect = |arguments: &[&str], code: i32, message: &str| {
        let error = fails(here, arguments, code);
        assert!(error.contains(message), "{error}");
    };
    expect(&["check", "none.ron"], 2, "none.ron");
    std::fs::write(here.join("empty.txt"), "\n\n").unwrap();
    expect(
        &["run", "pico.ron", "--prompts", "empty.txt"],
        2,
        "no prompt in it",
    );
    std::fs::write(here.join("long.txt"), "x".repeat(300)).unwrap();
    expect(
        &["run", "pico.ron", "--prompts", "long.txt"],
        2,
        "prompt '1' has 3",
    );
    expect(
        &["generate", "--model", "smol", "--prompt", "x"],
        2,
        "did you mean 'smollm2-135m-instruct'?",
    );
    expect(&["fetch", "nothing"], 2, "no registered model 'nothing'");
    expect(
        &["generate", "--model", model, "--prompt", ""],
        2,
        "the prompt is empty",
    );
    expect(
        &[
            "generate", "--model", model, "--prompt", "x", "--top-p", "2",
        ],
        2,
        "top_p is 2, not above 0 and at most 1",
    );
    let long = "y".repeat(200);
    expect(
        &["generate", "--model", model, "--prompt", &long],
        1,
        "do not fit into 128",
    );
    let some = [
        "generate",
        "--config",
        "pico.ron",
        "--prompt",
        "x",
        "--strategy",
    ];
    expect(
        &[&some[..], &["unifrom", "--preference", "both"]].concat(),
        2,
        "did you mean 'uniform'?",
    );
    expect(
        &[&some[..], &["uniform", "--preference", "bath"]].concat(),
        2,
        "the config has: both, short",
    );
    expect(
        &[&some[..], &["uniform"]].concat(),
        2,
        "--preference is needed",
    );
    expect(
        &["--device", "Abacus", "devices"],
        2,
        "unknown device 'Abacus'",
    );
    expect(
        &["--device", "Flex", "devices"],
        2,
        "write Cpu for this program's own kernels (which Flex was), or BurnFlex for burn's",
    );
    expect(&["report", "."], 1, "is this a run folder?");
    expect(&["inspect", "prompts.jsonl"], 1, "prompts.jsonl");
    // A file where the run folder should be cannot be written, whoever one is.
    std::fs::write(here.join("taken"), "").unwrap();
    expect(
        &["run", "pico.ron", "--out", "taken"],
        1,
        "choose another with --out",
    );
}

#[test]
fn models_are_fetched_whole_and_checked_or_not_at_all() {
    let folder = experiment();
    let here = folder.path();
    let source = here.join("source");
    std::fs::create_dir(&source).unwrap();
    let names = ["config.json", "model.safetensors", "tokenizer.json"];
    let mut files = String::new();
    for name in names {
        std::fs::copy(fixture("llama").join(name), source.join(name)).unwrap();
        let hash = lm::source::sha256(&source.join(name)).unwrap();
        files.push_str(&format!("{name:?}: {hash:?}, "));
    }
    let registry = |files: &str| {
        let folder = source.to_str().unwrap();
        let text = format!(
            "{{\"pico\": (description: \"\", files: {{{files}}}, sources: [Path({folder:?})])}}"
        );
        std::fs::write(here.join("models.ron"), text).unwrap();
    };
    let fetch = || {
        let mut command = common::mope(here, &["fetch", "pico"]);
        command.env("MOPE_MODELS", "models.ron").output().unwrap()
    };
    let wrong = files.replacen(|c: char| c.is_ascii_digit(), "x", 1);
    registry(&wrong);
    let output = fetch();
    let error = common::stderr(&output);
    assert!(
        output.status.code() == Some(1) && error.contains("sha256 is"),
        "{error}"
    );
    let cache = here.join("cache/models");
    assert_eq!(std::fs::read_dir(&cache).unwrap().count(), 0);

    registry(&files);
    assert!(fetch().status.success());
    let model = cache.join("pico/model.safetensors");
    std::fs::write(&model, "damaged").unwrap();
    let output = fetch();
    assert_eq!(stdout(&output).trim(), cache.join("pico").to_str().unwrap());
    let hash = lm::source::sha256(&model).unwrap();
    assert!(files.contains(&hash));

    std::fs::remove_dir_all(&source).unwrap();
    assert!(fetch().status.success(), "what is there needs no source");
    std::fs::write(&model, "damaged").unwrap();
    let error = common::stderr(&fetch());
    assert!(
        error.contains("could not be fetched") && error.contains("put config.json"),
        "{error}"
    );
}
