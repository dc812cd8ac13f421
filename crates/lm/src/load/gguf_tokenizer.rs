//! The tokenizer inside a GGUF file, as the `tokenizer.json` that Hugging Face would ship.

use std::path::Path;

use serde_json::{Value as Json, json};

use super::gguf::{Header, Numbers, Value};
use crate::{Error, Result};

/// English endings that stay one piece.
const ENDINGS: &str = "(?i:'s|'t|'re|'ve|'m|'ll|'d)";

/// GPT-2's split; spaces before a word that has one already are what is left between matches.
const GPT2: &str = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)";

/// The end of most splits: runs of other signs with line ends behind them, line ends, spaces.
const OTHERS: &str = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";

/// Words of GPT-4o and Tekken: an upper-case beginning and a lower-case end.
const UPPER: &str = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]";
const LOWER: &str = r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]";

/// Letters with cases, as DeepSeek's tokenizer.json lists them.
const CASED: &str = "A-Za-z\u{b5}\u{c0}-\u{d6}\u{d8}-\u{f6}\u{f8}-\u{1ba}\u{1bc}-\u{1bf}\u{1c4}-\u{293}\u{295}-\u{2af}\
    \u{370}-\u{373}\u{376}\u{377}\u{37b}-\u{37d}\u{37f}\u{386}\u{388}-\u{38a}\u{38c}\u{38e}-\u{3a1}\
    \u{3a3}-\u{3f5}\u{3f7}-\u{481}\u{48a}-\u{52f}\u{531}-\u{556}\u{10a0}-\u{10c5}\u{13a0}-\u{13f5}\
    \u{13f8}-\u{13fd}\u{1c90}-\u{1cba}\u{1cbd}-\u{1cbf}\u{1d00}-\u{1d2b}\u{1d6b}-\u{1d77}\u{1d79}-\u{1d9a}\
    \u{1e00}-\u{1f15}\u{1f18}-\u{1f1d}\u{1f20}-\u{1f45}\u{1f48}-\u{1f4d}\u{1f50}-\u{1f57}\u{1f59}\u{1f5b}\
    \u{1f5d}\u{1f5f}-\u{1f7d}\u{1f80}-\u{1fb4}\u{1fb6}-\u{1fbc}\u{1fbe}\u{1fc2}-\u{1fc4}\u{1fc6}-\u{1fcc}\
    \u{1fd0}-\u{1fd3}\u{1fd6}-\u{1fdb}\u{1fe0}-\u{1fec}\u{1ff2}-\u{1ff4}\u{1ff6}-\u{1ffc}\u{2102}\u{2107}\
    \u{210a}-\u{2113}\u{2115}\u{2119}-\u{211d}\u{2124}\u{2126}\u{2128}\u{212a}-\u{212d}\u{212f}-\u{2134}\u{2139}\
    \u{213c}-\u{213f}\u{2145}-\u{2149}\u{214e}\u{2183}\u{2184}\u{2c00}-\u{2c7b}\u{2c7e}-\u{2ce4}\
    \u{2ceb}-\u{2cee}\u{2cf2}\u{2cf3}\u{a640}-\u{a66d}\u{a680}-\u{a69b}\u{a722}-\u{a76f}\u{a771}-\u{a787}\
    \u{a78b}-\u{a78e}\u{ab70}-\u{abbf}\u{fb00}-\u{fb06}\u{fb13}-\u{fb17}\u{ff21}-\u{ff3a}\u{ff41}-\u{ff5a}\
    \u{10400}-\u{1044f}\u{104b0}-\u{104d3}\u{104d8}-\u{104fb}\u{10c80}-\u{10cb2}\u{10cc0}-\u{10cf2}\
    \u{118a0}-\u{118df}\u{1e900}-\u{1e943}";

/// The split of LLaMA 3 and Qwen 2, from the models' `tokenizer.json`; they differ in the run of digits that
/// stays together.
fn tiktoken_split(digits: &str) -> String {
    format!(r"{ENDINGS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|{digits}|{OTHERS}")
}

/// The split of GPT-4o, with or without English endings, and of Tekken.
fn cased_split(endings: &str, digits: &str) -> String {
    let before = r"[^\r\n\p{L}\p{N}]?";
    format!(
        r"{before}{UPPER}*{LOWER}+{endings}|{before}{UPPER}+{LOWER}*{endings}|{digits}| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    )
}

fn byte_level(use_regex: bool) -> Json {
    json!({
        "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": use_regex
    })
}

/// How a family cuts a text into the pieces inside of which pairs are merged.
struct PreTokenizer {
    normalizer: Json,
    /// Regular expressions, one after the other: what matches becomes a piece, what is left between, too.
    splits: Vec<String>,
    /// A piece that is a token needs no merges (LLaMA 3).
    ignore_merges: bool,
    /// What a missing `add_bos_token` means.
    add_bos: bool,
}

impl PreTokenizer {
    fn new<S: Into<String>>(splits: impl IntoIterator<Item = S>) -> Self {
        Self {
            normalizer: Json::Null,
            splits: splits.into_iter().map(S::into).collect(),
            ignore_merges: false,
            add_bos: false,
        }
    }

    /// As LLaMA 3: whole tokens first, and a BOS.
    fn whole_tokens(self) -> Self {
        Self {
            ignore_merges: true,
            add_bos: true,
            ..self
        }
    }

    /// As the field `pre_tokenizer` of `tokenizer.json`: the library's own steps where it has them.
    fn json(&self) -> Json {
        let (splits, own) = match self.splits.split_last() {
            Some((last, splits)) if last == GPT2 => (splits, true),
            _ => (self.splits.as_slice(), false),
        };
        let split = |regex: &String| match regex.as_str() {
            r"\p{N}" => json!({"type": "Digits", "individual_digits": true}),
            _ => {
                json!({"type": "Split", "pattern": {"Regex": regex}, "behavior": "Isolated", "invert": false})
            }
        };
        let mut all: Vec<Json> = splits.iter().map(split).collect();
        all.push(byte_level(own));
        match all.as_slice() {
            [only] => only.clone(),
            _ => json!({"type": "Sequence", "pretokenizers": all}),
        }
    }
}

/// The family that `tokenizer.ggml.pre` names, as llama.cpp splits it. Where llama.cpp had to rewrite a model's
/// expression for its own engine, the model's is taken.
fn pre_tokenizer(path: &Path, name: &str) -> Result<PreTokenizer> {
    let han = "[\u{4e00}-\u{9fa5}\u{800}-\u{4e00}\u{ac00}-\u{d7ff}]+";
    let bloom = " ?[^(\\s|.,!?…。，、।۔،)]+";
    Ok(match name {
        "default" => {
            PreTokenizer::new([r"[\p{P}\$\+<=>\^~\|]+", GPT2, r"\p{N}+", "[0-9][0-9][0-9]"])
        }
        "gpt-2" | "phi-2" | "jina-es" | "jina-de" | "jina-v2-es" | "jina-v2-de" | "gigachat"
        | "a.x-4.0" | "mellum" | "exaone4" | "mpt" | "olmo" | "jais" | "trillion"
        | "granite-docling" => PreTokenizer::new([GPT2]),
        "smollm" | "starcoder" | "refact" | "command-r" | "codeshell" | "exaone" | "minerva-7b"
        | "mellum2" => PreTokenizer::new([r"\p{N}", GPT2]),
        "falcon" => PreTokenizer::new([r"[\p{P}\$\+<=>\^~\|`]+", GPT2, "[0-9][0-9][0-9]"]),
        "qwen2" | "deepseek-r1-qwen" | "kormo" | "f2llmv2" | "megrez" => PreTokenizer {
            normalizer: json!({"type": "NFC"}),
            ..PreTokenizer::new([tiktoken_split(r"\p{N}")])
        },
        "qwen35" => PreTokenizer {
            normalizer: json!({"type": "NFC"}),
            ..PreTokenizer::new([format!(
                r"{ENDINGS}|[^\r\n\p{{L}}\p{{N}}]?[\p{{L}}\p{{M}}]+|\p{{N}}| ?[^\s\p{{L}}\p{{M}}\p{{N}}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
            )])
        },
        "stablelm2" | "hunyuan" | "solar-open" | "grok-2" => {
            PreTokenizer::new([tiktoken_split(r"\p{N}")])
        }
        "llama-bpe" | "llama3" | "llama-v3" | "falcon3" | "falcon-h1" | "pixtral" | "midm-2.0"
        | "lfm2" | "jina-v5-nano" => {
            PreTokenizer::new([tiktoken_split(r"\p{N}{1,3}")]).whole_tokens()
        }
        "dbrx" | "smaug-bpe" | "glm4" | "chatglm-bpe" => {
            PreTokenizer::new([tiktoken_split(r"\p{N}{1,3}")])
        }
        "tekken" => PreTokenizer::new([cased_split("", r"\p{N}")]).whole_tokens(),
        "gpt-4o" | "llama4" | "kanana2" | "minimax-m2" => {
            PreTokenizer::new([cased_split(&format!("{ENDINGS}?"), r"\p{N}{1,3}")])
        }
        "deepseek-llm" => PreTokenizer::new([
            "[\r\n]".to_string(),
            format!(r"\s?[{CASED}]+"),
            "\\s?[!-/:-~\u{ff01}-\u{ff0f}\u{ff1a}-\u{ff5e}\u{2018}-\u{201f}\u{3000}-\u{3002}]+"
                .to_string(),
            r"\s+$".to_string(),
            han.to_string(),
            r"\p{N}+".to_string(),
        ]),
        "deepseek-coder" => {
            PreTokenizer::new(["[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", han, r"\p{N}"])
        }
        "deepseek-v3" | "hunyuan-dense" | "joyai-llm" => PreTokenizer::new([
            r"\p{N}{1,3}",
            "[\u{4e00}-\u{9fa5}\u{3040}-\u{309f}\u{30a0}-\u{30ff}]+",
            r##"[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"##,
        ]),
        "seed-coder" => PreTokenizer::new([format!(
            r"{ENDINGS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}| ?[^\s\p{{L}}\p{{N}}\r\n]+|\s*[\r\n]+|\s+(?!\S)|\s+"
        )]),
        "bailingmoe" | "bailingmoe2" | "llada-moe" => PreTokenizer::new([
            r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+",
        ]),
        "bloom" | "poro-chat" | "gpt3-finnish" => PreTokenizer::new([bloom]),
        "viking" => PreTokenizer::new([bloom, r"\p{N}"]),
        other => {
            let supported = "default, gpt-2 and its like, smollm, starcoder, refact, command-r, falcon, falcon3, \
                             qwen2, qwen35, llama-bpe, smaug-bpe, tekken, gpt-4o, deepseek-llm, deepseek-coder, \
                             deepseek-v3, bloom, viking";
            let what = format!("tokenizer.ggml.pre '{other}'");
            return Err(Error::unsupported(path, what, supported));
        }
    })
}

/// `[INST]` is a token (Mistral from 0.3 on): texts of such a vocabulary get their `▁` at the very beginning
/// only. Others, LLaMA 2 first, keep the old rule: behind every special token there is one.
fn has_turn_tokens(tokens: &[&str], kinds: &[i64]) -> bool {
    let mut all = tokens.iter().zip(kinds);
    all.any(|(token, kind)| matches!(kind, 3 | 4) && ["[INST]", "[/INST]"].contains(token))
}

/// What surrounds the merges of a SentencePiece model: normalizer, pre-tokenizer and decoder.
fn sentence_piece(prefix: bool, first_only: bool) -> [(&'static str, Json); 3] {
    let mut normalizers = vec![];
    let mut decoders = vec![
        json!({"type": "Replace", "pattern": {"String": "▁"}, "content": " "}),
        json!({"type": "ByteFallback"}),
        json!({"type": "Fuse"}),
    ];
    if prefix {
        decoders.push(json!({"type": "Strip", "content": " ", "start": 1, "stop": 0}));
    }
    let mut split = Json::Null;
    if prefix && first_only {
        split = json!({"type": "Metaspace", "replacement": "▁", "prepend_scheme": "first", "split": false});
    } else {
        if prefix {
            normalizers.push(json!({"type": "Prepend", "prepend": "▁"}));
        }
        normalizers.push(json!({"type": "Replace", "pattern": {"String": " "}, "content": "▁"}));
    }
    [
        (
            "normalizer",
            json!({"type": "Sequence", "normalizers": normalizers}),
        ),
        ("pre_tokenizer", split),
        ("decoder", json!({"type": "Sequence", "decoders": decoders})),
    ]
}

/// Merges of a SentencePiece vocabulary: every pair of tokens that makes a third, the likeliest
/// result first (as transformers converts them).
fn merges_from_scores(tokens: &[&str], scores: &[f64]) -> Vec<[String; 2]> {
    let ids: std::collections::HashMap<&str, usize> =
        tokens.iter().enumerate().map(|(id, &t)| (t, id)).collect();
    let mut merges = Vec::new();
    for (id, token) in tokens.iter().enumerate() {
        let mut splits: Vec<_> = token
            .char_indices()
            .skip(1)
            .map(|(at, _)| token.split_at(at))
            .filter_map(|(l, r)| Some((*ids.get(l)?, *ids.get(r)?, l, r)))
            .collect();
        splits.sort();
        merges.extend(splits.into_iter().map(|(_, _, l, r)| (id, l, r)));
    }
    merges.sort_by(|a, b| scores[b.0].total_cmp(&scores[a.0]));
    merges
        .into_iter()
        .map(|(_, l, r)| [l.to_string(), r.to_string()])
        .collect()
}

/// What a missing `add_bos_token` means, and the parts of `tokenizer.json` for merges of bytes.
fn byte_pairs(
    path: &Path,
    header: &Header,
    vocab: serde_json::Map<String, Json>,
    merges: &[&str],
) -> Result<(bool, Json)> {
    let Some(pre) = header.string("tokenizer.ggml.pre") else {
        let message = "no tokenizer.ggml.pre: the file does not say how its texts are split, as those made before \
                       May 2024; convert the model again, or take a newer file";
        return Err(Error::format(path, message));
    };
    let pre = pre_tokenizer(path, pre)?;
    let body = json!({
        "normalizer": pre.normalizer,
        "pre_tokenizer": pre.json(),
        "decoder": byte_level(true),
        "model": {
            "type": "BPE", "dropout": null, "unk_token": null, "fuse_unk": false,
            "byte_fallback": false, "ignore_merges": pre.ignore_merges,
            "vocab": vocab, "merges": merges,
        },
    });
    Ok((pre.add_bos, body))
}

/// Builds `tokenizer.json`. In one piece, because it is one document, filled in from top to bottom.
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
        "gpt2" => byte_pairs(path, header, vocab, &strings("tokenizer.ggml.merges")?)?,
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
            let mut body = json!({
                "model": {
                    "type": "BPE", "dropout": null, "unk_token": unknown, "fuse_unk": true,
                    "byte_fallback": true, "ignore_merges": false,
                    "vocab": vocab, "merges": merges_from_scores(&tokens, &scores),
                },
            });
            for (key, value) in sentence_piece(prefix, has_turn_tokens(&tokens, &kinds)) {
                body[key] = value;
            }
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
    let mut document = json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": added,
        "post_processor": post,
    });
    if let (Json::Object(document), Json::Object(body)) = (&mut document, body) {
        document.extend(body);
    }
    Ok(document)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use serde::Deserialize;
    use tokenizers::tokenizer::{
        OffsetReferential, OffsetType, PreTokenizedString, PreTokenizer as _,
    };

    use super::*;

    /// What `scripts/fixtures/pre_tokenizers.py` wrote.
    #[derive(Deserialize)]
    struct Vectors {
        texts: Vec<String>,
        pieces: std::collections::BTreeMap<String, Vec<Vec<String>>>,
    }

    #[test]
    fn texts_are_split_as_each_family_does() {
        let vectors = include_str!("../../tests/fixtures/pre_tokenizers.json");
        let vectors: Vectors = serde_json::from_str(vectors).unwrap();
        assert!(vectors.pieces.len() > 10);
        for (family, expected) in &vectors.pieces {
            let json = pre_tokenizer(Path::new("m.gguf"), family).unwrap().json();
            let split: tokenizers::PreTokenizerWrapper = serde_json::from_value(json).unwrap();
            for (text, expected) in vectors.texts.iter().zip(expected) {
                let mut cut = PreTokenizedString::from(text.as_str());
                split.pre_tokenize(&mut cut).unwrap();
                let splits = cut.get_splits(OffsetReferential::Original, OffsetType::Byte);
                let pieces: Vec<&str> = splits.iter().map(|(_, at, _)| &text[at.0..at.1]).collect();
                assert_eq!(&pieces, expected, "{family}");
            }
        }
    }
}
