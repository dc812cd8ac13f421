//! SmolLM2-135M-Instruct against the reference implementations. Fetches the model on first use.
#![allow(clippy::unwrap_used, reason = "tests")]

mod common;

use std::path::PathBuf;
use std::sync::OnceLock;

use common::{close, expected, fixture};
use mope_lm::load::Checkpoint;
use mope_lm::sampling::{argmax, log_softmax};
use mope_lm::source::Registry;
use mope_lm::{DeviceSpec, Engine, Format, LanguageModel};
use serde::Deserialize;

fn path() -> PathBuf {
    let registry = Registry::load().unwrap();
    registry
        .resolve("smollm2-135m-instruct", &mut |_, _, _| {})
        .unwrap()
}

fn model() -> &'static LanguageModel {
    static MODEL: OnceLock<LanguageModel> = OnceLock::new();
    MODEL.get_or_init(|| LanguageModel::open(&path(), &DeviceSpec::Cpu, Format::F32).unwrap())
}

/// The same decoder through burn.
fn burn() -> Engine {
    let checkpoint = Checkpoint::open(&path()).unwrap();
    Engine::burn(&checkpoint, &DeviceSpec::Cpu.open().unwrap(), Format::F32).unwrap()
}

/// Logits `[time · vocab]` of one sequence.
fn logits(engine: &Engine, ids: &[u32]) -> Vec<f32> {
    let mut all = Vec::new();
    engine
        .all_logits(&[ids], None, |_, _, row| all.extend_from_slice(row))
        .unwrap();
    all
}

#[test]
fn token_ids_equal_the_reference_on_10_000_strings() {
    let lines = std::fs::read_to_string(fixture("smollm_tokens.jsonl")).unwrap();
    let mut count = 0;
    for line in lines.lines() {
        let (text, ids): (String, Vec<u32>) = serde_json::from_str(line).unwrap();
        assert_eq!(
            model().tokenizer.encode(&text, false).unwrap(),
            ids,
            "{text:?}"
        );
        let joined = model().tokenizer.increments(&ids).unwrap().concat();
        let decoded = model().tokenizer.decode(&ids).unwrap();
        assert_eq!(joined, decoded.trim_end_matches('\u{fffd}'), "{text:?}");
        count += 1;
    }
    assert_eq!(count, 10_000);
}

#[test]
fn logits_equal_transformers_over_200_positions() {
    let file = "smollm_logits.safetensors";
    let ids: Vec<u32> = expected(file, "ids").iter().map(|&id| id as u32).collect();
    let columns = expected(file, "columns");
    for (name, engine) in [("packed", &model().engine), ("burn", &burn())] {
        let logits = logits(engine, &ids);
        let vocab = engine.config().vocab_size;
        let at = |(i, c): (usize, &f32)| logits[i / 128 * vocab + *c as usize];
        let picked: Vec<f32> = columns.iter().enumerate().map(at).collect();
        close(
            &format!("{name} logits"),
            &picked,
            &expected(file, "logits"),
            2e-3,
        );
        let sums: Vec<f32> = logits
            .chunks(vocab)
            .map(|row| row.iter().map(|&x| f64::from(x).exp()).sum::<f64>().ln() as f32)
            .collect();
        close(
            &format!("{name} log-sum-exp"),
            &sums,
            &expected(file, "log_sum_exp"),
            2e-3,
        );
    }
}

#[derive(Deserialize)]
struct Greedy {
    prompt: String,
    ids: Vec<u32>,
    tokens: Vec<u32>,
    gaps: Vec<f32>,
}

#[test]
fn greedy_continuations_equal_transformers() {
    let text = std::fs::read_to_string(fixture("smollm_greedy.json")).unwrap();
    let rows: Vec<Greedy> = serde_json::from_str(&text).unwrap();
    assert_eq!(rows.len(), 20);
    let engine = &model().engine;
    for row in &rows {
        assert_eq!(
            model().tokenizer.encode(&row.prompt, false).unwrap(),
            row.ids
        );
    }
    let prompts: Vec<&[u32]> = rows.iter().map(|r| r.ids.as_slice()).collect();
    let longest = prompts.iter().map(|p| p.len()).max().unwrap();
    let mut cache = engine.cache(rows.len(), longest + 100);
    let mut next: Vec<Vec<u32>> = prompts.iter().map(|p| p.to_vec()).collect();
    let mut same = vec![true; rows.len()];
    for step in 0..100 {
        let lanes: Vec<&[u32]> = next.iter().map(Vec::as_slice).collect();
        let vocab = engine.config().vocab_size;
        let mut logits = vec![0.0; rows.len() * vocab];
        engine
            .next_logits(&lanes, &mut cache, None, &mut logits)
            .unwrap();
        for (lane, row) in rows.iter().enumerate() {
            // The reference kept its end token out of the first 100.
            let mut logits = logits[lane * vocab..][..vocab].to_vec();
            logits[2] = f32::NEG_INFINITY;
            let token = argmax(&logits).unwrap() as u32;
            if same[lane] && token != row.tokens[step] {
                assert!(
                    row.gaps[step] < 4e-3,
                    "prompt {lane} parts at {step}: {:?}",
                    row.gaps[step]
                );
                same[lane] = false;
            }
            next[lane] = vec![row.tokens[step]];
        }
    }
}

#[test]
fn log_probs_of_a_response_equal_the_logits_way() {
    let model = model();
    let prompt = model.tokenizer.encode("The sky is", false).unwrap();
    let short = model.tokenizer.encode(" blue", false).unwrap();
    let long = model
        .tokenizer
        .encode(" blue because of the way light scatters.", false)
        .unwrap();
    let scores = model
        .log_probs(&[&prompt, &prompt], &[&short, &long], None)
        .unwrap();
    for (response, scores) in [short, long].iter().zip(scores) {
        let ids = [prompt.clone(), response.clone()].concat();
        let vocab = model.config().vocab_size;
        let mut logits = logits(&model.engine, &ids);
        let mut by_hand = Vec::new();
        for (t, &token) in response.iter().enumerate() {
            let row = &mut logits[(prompt.len() - 1 + t) * vocab..][..vocab];
            log_softmax(row);
            by_hand.push(row[token as usize]);
        }
        close("log-probs", &scores, &by_hand, 1e-3);
    }
}

/// What each format costs: mean KL from F32 in nats and largest logit difference over 200 positions.
#[test]
fn formats_stay_near_f32() {
    let file = "smollm_logits.safetensors";
    let ids: Vec<u32> = expected(file, "ids").iter().map(|&id| id as u32).collect();
    let vocab = model().config().vocab_size;
    let exact = logits(&model().engine, &ids);
    let checkpoint = Checkpoint::open(&path()).unwrap();
    for (weights, most_kl, most) in [
        (Format::Bf16, 1e-3, 1.0),
        (Format::Q8, 8e-3, 3.0),
        (Format::Q4, 2e-2, 4.0),
    ] {
        let engine = Engine::load(&checkpoint, &DeviceSpec::Cpu, weights).unwrap();
        let got = logits(&engine, &ids);
        let (mut kl, mut largest) = (0.0, 0f32);
        for (exact, got) in exact.chunks(vocab).zip(got.chunks(vocab)) {
            let difference = exact.iter().zip(got).map(|(a, b)| (a - b).abs());
            largest = difference.fold(largest, f32::max);
            let (mut p, mut q) = (exact.to_vec(), got.to_vec());
            log_softmax(&mut p);
            log_softmax(&mut q);
            let terms = p.iter().zip(&q).map(|(p, q)| f64::from(p.exp() * (p - q)));
            kl += terms.sum::<f64>();
        }
        kl /= (exact.len() / vocab) as f64;
        println!("{weights:?}: mean KL {kl:.2e} nats, largest logit difference {largest:.3}");
        assert!(kl < most_kl && largest < most, "{weights:?} {kl} {largest}");
    }
}
