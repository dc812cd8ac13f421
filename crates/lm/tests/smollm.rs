//! SmolLM2-135M-Instruct against the reference implementations. Fetches the model on first use.
#![allow(clippy::unwrap_used, reason = "tests")]

mod common;

use std::sync::OnceLock;

use common::{close, expected, fixture, full_logits};
use lm::sampling::argmax;
use lm::source::Registry;
use lm::{DeviceSpec, LanguageModel, to_host};
use serde::Deserialize;

fn model() -> &'static LanguageModel {
    static MODEL: OnceLock<LanguageModel> = OnceLock::new();
    MODEL.get_or_init(|| {
        let path = Registry::load()
            .unwrap()
            .resolve("smollm2-135m-instruct", &mut |_, _, _| {});
        LanguageModel::open(&path.unwrap(), &DeviceSpec::Flex.open().unwrap()).unwrap()
    })
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
        let whole = model().tokenizer.decode(&ids).unwrap();
        assert_eq!(joined, whole.trim_end_matches('\u{fffd}'), "{text:?}");
        count += 1;
    }
    assert_eq!(count, 10_000);
}

#[test]
fn logits_equal_transformers_over_200_positions() {
    let file = "smollm_logits.safetensors";
    let ids: Vec<u32> = expected(file, "ids").iter().map(|&id| id as u32).collect();
    let columns: Vec<usize> = expected(file, "columns")
        .iter()
        .map(|&c| c as usize)
        .collect();
    let logits = full_logits(&model().decoder, &[&ids], None).remove(0);
    let vocab = model().decoder.config().vocab_size;
    let row = |i: usize| &logits[i / 128 * vocab..][..vocab];
    let picked: Vec<f32> = columns
        .iter()
        .enumerate()
        .map(|(i, &c)| row(i)[c])
        .collect();
    close("logits", &picked, &expected(file, "logits"), 2e-3);
    let sums: Vec<f32> = logits
        .chunks(vocab)
        .map(|row| row.iter().map(|&x| f64::from(x).exp()).sum::<f64>().ln() as f32)
        .collect();
    close("log-sum-exp", &sums, &expected(file, "log_sum_exp"), 2e-3);
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
    let decoder = &model().decoder;
    for row in &rows {
        assert_eq!(
            model().tokenizer.encode(&row.prompt, false).unwrap(),
            row.ids
        );
    }
    let prompts: Vec<&[u32]> = rows.iter().map(|r| r.ids.as_slice()).collect();
    let longest = prompts.iter().map(|p| p.len()).max().unwrap();
    let mut cache = decoder.cache(rows.len(), longest + 100);
    let mut next: Vec<Vec<u32>> = prompts.iter().map(|p| p.to_vec()).collect();
    let mut same = vec![true; rows.len()];
    for step in 0..100 {
        let lanes: Vec<&[u32]> = next.iter().map(Vec::as_slice).collect();
        let logits = to_host(decoder.next_logits(&lanes, &mut cache, None).unwrap()).unwrap();
        let vocab = decoder.config().vocab_size;
        for (lane, row) in rows.iter().enumerate() {
            // The reference kept its end token out of the first 100.
            let mut logits = logits[lane * vocab..][..vocab].to_vec();
            logits[2] = f32::NEG_INFINITY;
            let token = argmax(&logits) as u32;
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
        let whole = [prompt.clone(), response.clone()].concat();
        let vocab = model.decoder.config().vocab_size;
        let mut logits = full_logits(&model.decoder, &[&whole], None).remove(0);
        let mut by_hand = Vec::new();
        for (t, &token) in response.iter().enumerate() {
            let row = &mut logits[(prompt.len() - 1 + t) * vocab..][..vocab];
            lm::sampling::log_softmax(row);
            by_hand.push(row[token as usize]);
        }
        close("log-probs", &scores, &by_hand, 1e-3);
    }
}
