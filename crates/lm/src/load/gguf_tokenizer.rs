//! The tokenizer inside a GGUF file, as the `tokenizer.json` that Hugging Face would ship.

use std::path::Path;

use serde_json::{Value as Json, json};

use super::gguf::{Header, Numbers, Value};
use crate::{Error, Result};

/// Splits of LLaMA 3 and Qwen 2, from the models' own `tokenizer.json`; they differ in the run of
/// digits that stays together.
fn tiktoken_split(digits: &str) -> Json {
    let regex = format!(
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|{digits}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    );
    json!({"type": "Sequence", "pretokenizers": [
        {"type": "Split", "pattern": {"Regex": regex}, "behavior": "Isolated", "invert": false},
        byte_level(false),
    ]})
}

fn byte_level(use_regex: bool) -> Json {
    json!({
        "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": use_regex
    })
}

struct PreTokenizer {
    normalizer: Json,
    split: Json,
    /// A piece that is a token needs no merges (LLaMA 3).
    ignore_merges: bool,
    /// What a missing `add_bos_token` means.
    add_bos: bool,
}

fn pre_tokenizer(path: &Path, name: &str) -> Result<PreTokenizer> {
    let plain = |split| PreTokenizer {
        normalizer: Json::Null,
        split,
        ignore_merges: false,
        add_bos: false,
    };
    Ok(match name {
        "smollm" | "starcoder" | "refact" | "command-r" => plain(json!({
            "type": "Sequence",
            "pretokenizers": [{"type": "Digits", "individual_digits": true}, byte_level(true)],
        })),
        "gpt-2" | "phi-2" | "olmo" => plain(byte_level(true)),
        "qwen2" | "deepseek-r1-qwen" => PreTokenizer {
            normalizer: json!({"type": "NFC"}),
            ..plain(tiktoken_split(r"\p{N}"))
        },
        "llama-bpe" | "llama3" | "llama-v3" => PreTokenizer {
            ignore_merges: true,
            add_bos: true,
            ..plain(tiktoken_split(r"\p{N}{1,3}"))
        },
        other => {
            let supported = "smollm, starcoder, refact, command-r, gpt-2, phi-2, olmo, qwen2, \
                             deepseek-r1-qwen, llama-bpe";
            let what = format!("tokenizer.ggml.pre '{other}'");
            return Err(Error::unsupported(path, what, supported));
        }
    })
}

/// Merges of a SentencePiece vocabulary: every pair of tokens that makes a third, the likeliest
/// result first (as transformers converts them).
fn merges_from_scores(tokens: &[&str], scores: &[f64]) -> Vec<[String; 2]> {
    let ids: std::collections::HashMap<&str, usize> =
        tokens.iter().enumerate().map(|(id, &t)| (t, id)).collect();
    let mut merges = Vec::new();
    for (id, token) in tokens.iter().enumerate() {
        let mut own: Vec<_> = token
            .char_indices()
            .skip(1)
            .map(|(at, _)| token.split_at(at))
            .filter_map(|(l, r)| Some((*ids.get(l)?, *ids.get(r)?, l, r)))
            .collect();
        own.sort();
        merges.extend(own.into_iter().map(|(_, _, l, r)| (id, l, r)));
    }
    merges.sort_by(|a, b| scores[b.0].total_cmp(&scores[a.0]));
    merges
        .into_iter()
        .map(|(_, l, r)| [l.to_string(), r.to_string()])
        .collect()
}

/// Builds `tokenizer.json`.
///
/// # Errors
/// Missing vocabulary or merges, and tokenizer kinds that are not supported.
pub(crate) fn tokenizer_json(path: &Path, header: &Header) -> Result<Json> {
    let missing = |key: &str| {
        let message = format!(
            "metadata '{key}' is missing, empty or of another type; the file's \
                               tokenizer cannot be used: take a complete GGUF or a folder with \
                               tokenizer.json"
        );
        Error::format(path, message)
    };
    let strings = |key: &str| {
        header
            .strings(key)
            .filter(|s| !s.is_empty())
            .ok_or_else(|| missing(key))
    };
    let tokens = strings("tokenizer.ggml.tokens")?;
    let kinds: Vec<i64> = header
        .numbers("tokenizer.ggml.token_type")
        .into_iter()
        .flat_map(Numbers::iter)
        .map(|v| match v {
            Value::Signed(kind) => kind,
            Value::Unsigned(kind) => kind as i64,
            _ => 1,
        })
        .collect();
    let added: Vec<Json> = kinds
        .iter()
        .zip(&tokens)
        .enumerate()
        .filter(|(_, (kind, _))| matches!(kind, 3 | 4))
        .map(|(id, (kind, token))| {
            json!({
                "id": id, "content": token, "single_word": false, "lstrip": false,
                "rstrip": false, "normalized": false, "special": *kind == 3,
            })
        })
        .collect();
    let vocab: serde_json::Map<String, Json> = tokens
        .iter()
        .enumerate()
        .map(|(id, t)| (t.to_string(), json!(id)))
        .collect();
    if vocab.len() != tokens.len() {
        return Err(Error::format(path, "the vocabulary holds a token twice"));
    }
    let model = header.string("tokenizer.ggml.model").unwrap_or("none");
    let unknown = header
        .integer("tokenizer.ggml.unknown_token_id")
        .and_then(|id| tokens.get(id));
    let (add_bos, body) = match model {
        "gpt2" => {
            let pre = header.string("tokenizer.ggml.pre").unwrap_or("default");
            let pre = pre_tokenizer(path, pre)?;
            let merges: Vec<_> = strings("tokenizer.ggml.merges")?;
            let body = json!({
                "normalizer": pre.normalizer,
                "pre_tokenizer": pre.split,
                "decoder": byte_level(true),
                "model": {
                    "type": "BPE", "dropout": null, "unk_token": null, "fuse_unk": false,
                    "byte_fallback": false, "ignore_merges": pre.ignore_merges,
                    "vocab": vocab, "merges": merges,
                },
            });
            (pre.add_bos, body)
        }
        "llama" => {
            let key = "tokenizer.ggml.scores";
            let number = |v: Value| match v {
                Value::Float(v) => Some(v),
                _ => None,
            };
            let scores: Option<Vec<f64>> = header
                .numbers(key)
                .and_then(|a| a.iter().map(number).collect());
            let scores = scores
                .filter(|s| s.len() == tokens.len())
                .ok_or_else(|| missing(key))?;
            let prefix = header
                .bool("tokenizer.ggml.add_space_prefix")
                .unwrap_or(true);
            let mut normalizers = vec![];
            let mut decoders = vec![
                json!({"type": "Replace", "pattern": {"String": "▁"}, "content": " "}),
                json!({"type": "ByteFallback"}),
                json!({"type": "Fuse"}),
            ];
            if prefix {
                normalizers.push(json!({"type": "Prepend", "prepend": "▁"}));
                decoders.push(json!({"type": "Strip", "content": " ", "start": 1, "stop": 0}));
            }
            normalizers
                .push(json!({"type": "Replace", "pattern": {"String": " "}, "content": "▁"}));
            let body = json!({
                "normalizer": {"type": "Sequence", "normalizers": normalizers},
                "pre_tokenizer": null,
                "decoder": {"type": "Sequence", "decoders": decoders},
                "model": {
                    "type": "BPE", "dropout": null, "unk_token": unknown, "fuse_unk": true,
                    "byte_fallback": true, "ignore_merges": false,
                    "vocab": vocab, "merges": merges_from_scores(&tokens, &scores),
                },
            });
            (true, body)
        }
        other => {
            let what = format!("tokenizer.ggml.model '{other}'");
            return Err(Error::unsupported(path, what, "gpt2, llama"));
        }
    };
    let bos = header
        .integer("tokenizer.ggml.bos_token_id")
        .filter(|&id| id < tokens.len());
    let add_bos = header
        .bool("tokenizer.ggml.add_bos_token")
        .unwrap_or(add_bos);
    let post = match bos.filter(|_| add_bos) {
        None => Json::Null,
        Some(id) => json!({
            "type": "TemplateProcessing",
            "single": [
                {"SpecialToken": {"id": tokens[id], "type_id": 0}},
                {"Sequence": {"id": "A", "type_id": 0}},
            ],
            "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
            "special_tokens": {tokens[id]: {"id": tokens[id], "ids": [id], "tokens": [tokens[id]]}},
        }),
    };
    let mut whole = json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": added,
        "post_processor": post,
    });
    if let (Json::Object(whole), Json::Object(body)) = (&mut whole, body) {
        whole.extend(body);
    }
    Ok(whole)
}
