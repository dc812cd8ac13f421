//! Files as other programs write them: read as those programs mean them, or refused by the feature's name.
//! Expectations are those of transformers 5.24, peft 0.21, jinja2 and sentencepiece.
#![allow(clippy::unwrap_used, reason = "tests")]

mod common;

use std::collections::BTreeMap;
use std::path::Path;

use common::fixture;
use common::gguf::{Gguf, number, string, strings};
use mope_lm::chat::{ChatTemplate, Message, Prompt};
use mope_lm::load::Checkpoint;
use mope_lm::{Adapter, DecoderConfig, DeviceSpec, Format, LanguageModel, Tokenizer};
use safetensors::tensor::{Dtype, SafeTensors, TensorView};
use serde_json::{Value, json};
use tempfile::TempDir;

/// A copy of a fixture folder.
fn copy(name: &str) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    for entry in std::fs::read_dir(fixture("pico").join(name)).unwrap() {
        let from = entry.unwrap().path();
        std::fs::copy(&from, folder.path().join(from.file_name().unwrap())).unwrap();
    }
    folder
}

fn json_of(path: &Path) -> Value {
    serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap()
}

/// Changes a JSON file.
fn change(path: &Path, with: impl FnOnce(&mut Value)) {
    let mut value = json_of(path);
    with(&mut value);
    std::fs::write(path, value.to_string()).unwrap();
}

/// Shape and numbers of tensors by name.
type Stored = BTreeMap<String, (Vec<usize>, Vec<f32>)>;

fn stored(path: &Path) -> Stored {
    let bytes = std::fs::read(path).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let tensor = |(name, view): (String, TensorView<'_>)| {
        let four = |b: &[u8]| f32::from_le_bytes(b.try_into().unwrap());
        let values = view.data().chunks(4).map(four).collect();
        (name, (view.shape().to_vec(), values))
    };
    file.tensors().into_iter().map(tensor).collect()
}

fn store(path: &Path, tensors: &Stored) {
    let bytes =
        |values: &[f32]| -> Vec<u8> { values.iter().flat_map(|v| v.to_le_bytes()).collect() };
    let data: Vec<(&String, &Vec<usize>, Vec<u8>)> = tensors
        .iter()
        .map(|(name, (shape, values))| (name, shape, bytes(values)))
        .collect();
    let views = data.iter().map(|(name, shape, bytes)| {
        let view = TensorView::new(Dtype::F32, shape.to_vec(), bytes).unwrap();
        (name.as_str(), view)
    });
    safetensors::serialize_to_file(views, None, path).unwrap();
}

fn base() -> DecoderConfig {
    Checkpoint::open(&fixture("pico/llama"))
        .unwrap()
        .config()
        .clone()
}

/// The plain adapter with one field of its config set.
fn adapter_with(field: &str, value: Value) -> Result<Adapter, String> {
    let folder = copy("adapter_plain");
    let config = folder.path().join("adapter_config.json");
    change(&config, |c| c[field] = value);
    Adapter::load(folder.path(), &base()).map_err(|e| e.to_string())
}

/// The plain adapter with other tensors.
fn adapter_of(with: impl FnOnce(&mut Stored)) -> Result<Adapter, String> {
    let folder = copy("adapter_plain");
    let path = folder.path().join("adapter_model.safetensors");
    let mut tensors = stored(&path);
    with(&mut tensors);
    store(&path, &tensors);
    Adapter::load(folder.path(), &base()).map_err(|e| e.to_string())
}

#[test]
fn an_initialisation_that_changed_the_base_is_refused() {
    let plain = Adapter::load(&fixture("pico/adapter_plain"), &base()).unwrap();
    for init in [
        "pissa",
        "PiSSA",
        "pissa_niter_4",
        "olora",
        "corda",
        "loftq",
        "lora_ga",
        "tomorrow",
    ] {
        let error = adapter_with("init_lora_weights", json!(init)).unwrap_err();
        let expected = format!("init_lora_weights = '{}'", init.to_lowercase());
        assert!(error.contains(&expected), "{error}");
    }
    // What peft writes for adapters that were converted on saving, and for those that leave the base alone.
    for init in [
        json!(true),
        json!(false),
        json!(null),
        json!("gaussian"),
        json!("eva"),
        json!("orthogonal"),
    ] {
        assert_eq!(adapter_with("init_lora_weights", init), Ok(plain.clone()));
    }
}

#[test]
fn fields_that_change_the_meaning_are_refused_by_name_and_others_are_not() {
    for (field, value) in [
        ("alora_invocation_tokens", json!([1, 2])),
        ("arrow_config", json!({"top_k": 2})),
        ("bias", json!("lora_only")),
        ("enable_lora", json!([true, false])),
        ("fan_in_fan_out", json!(true)),
        ("kasa_config", json!({"beta": 1e-4})),
        ("layer_replication", json!([[0, 2], [1, 2]])),
        ("lora_bias", json!(true)),
        ("megatron_config", json!({"hidden_size": 32})),
        ("modules_to_save", json!(["norm"])),
        ("monteclora_config", json!({"num_samples": 8})),
        ("target_parameters", json!(["experts.down_proj"])),
        ("task_type", json!("SEQ_CLS")),
        ("trainable_token_indices", json!({"embed_tokens": [3]})),
        ("use_bdlora", json!({"nblocks": 2})),
        ("use_dora", json!(true)),
        ("use_qalora", json!(true)),
        // Of peft versions to come.
        ("sideways", json!(true)),
        ("spin", json!(0.5)),
        ("merge_kind", json!({"a": 1})),
    ] {
        let error = adapter_with(field, value).unwrap_err();
        assert!(error.contains(field), "{field}: {error}");
        for unset in [json!(null), json!([]), json!({}), json!(false)] {
            let typed = ["bias", "task_type"].contains(&field) && !unset.is_null();
            if !typed {
                assert!(
                    adapter_with(field, unset.clone()).is_ok(),
                    "{field}: {unset}"
                );
            }
        }
    }
    for (field, value) in [
        ("revision", json!("main")),
        ("task_type", json!("CAUSAL_LM")),
        ("lora_dropout", json!(0.1)),
        ("inference_mode", json!(false)),
        ("loftq_config", json!({"loftq_bits": 4})),
        ("eva_config", json!({"rho": 2.0})),
        ("runtime_config", json!({"ephemeral_gpu_offload": false})),
        ("ensure_weight_tying", json!(true)),
        ("target_modules", json!("all-linear")),
        ("target_modules", json!(r".*\.(q|v|o|down)_proj")),
        ("layers_to_transform", json!([0, 1])),
        ("exclude_modules", json!(["lm_head"])),
    ] {
        let loaded = adapter_with(field, value.clone());
        assert!(loaded.is_ok(), "{field} = {value}: {loaded:?}");
    }
}

#[test]
fn other_methods_are_refused_by_their_name() {
    let methods = "ADALORA ADAPTION_PROMPT BEFT BOFT C3A CPT DELORA FOURIERFT FROD GRALORA HIRA HRA IA3 LILY LN_TUNING LOHA \
                   LOKR MISS MULTITASK_PROMPT_TUNING OFT OSF POLY PREFIX_TUNING PROMPT_TUNING PSOFT PVERA P_TUNING RANDLORA \
                   ROAD SHIRA TRAINABLE_TOKENS VBLORA VERA WAVEFT XLORA";
    for method in methods.split_whitespace() {
        let folder = tempfile::tempdir().unwrap();
        let config =
            json!({"peft_type": method, "task_type": "CAUSAL_LM", "num_virtual_tokens": 8});
        std::fs::write(
            folder.path().join("adapter_config.json"),
            config.to_string(),
        )
        .unwrap();
        let load = Adapter::load(folder.path(), &base())
            .unwrap_err()
            .to_string();
        let describe = Adapter::describe(folder.path()).unwrap_err().to_string();
        for error in [load, describe] {
            assert!(error.contains(&format!("peft_type '{method}'")), "{error}");
        }
    }
    let folder = tempfile::tempdir().unwrap();
    let mlx = json!({"fine_tune_type": "lora", "lora_parameters": {"rank": 8}});
    std::fs::write(folder.path().join("adapter_config.json"), mlx.to_string()).unwrap();
    let error = Adapter::load(folder.path(), &base())
        .unwrap_err()
        .to_string();
    assert!(error.contains("no peft_type"), "{error}");
}

#[test]
fn tensors_of_other_modules_never_reach_the_language_model() {
    let layer = "base_model.model.model.layers.0.self_attn.q_proj";
    for module in [
        "model.vision_tower.vision_model.encoder.layers.0.self_attn.q_proj",
        "vision_tower.layers.0.self_attn.q_proj",
        "model.visual.layers.0.self_attn.q_proj",
        "audio_tower.layers.0.self_attn.q_proj",
        "model.decoder.layers.0.self_attn.q_proj",
        "model.layers.00.self_attn.q_proj",
        "model.layers.+0.self_attn.q_proj",
        "model.layers.0.encoder.layers.0.self_attn.q_proj",
    ] {
        let error = adapter_of(|tensors| {
            for factor in ["A", "B"] {
                let copied = tensors[&format!("{layer}.lora_{factor}.weight")].clone();
                let name = format!("base_model.model.{module}.lora_{factor}.weight");
                tensors.insert(name, copied);
            }
        })
        .unwrap_err();
        assert!(error.contains(&format!("'{module}'")), "{error}");
    }
    // Two names of one layer.
    let error = adapter_of(|tensors| {
        for factor in ["A", "B"] {
            let copied = tensors[&format!("{layer}.lora_{factor}.weight")].clone();
            let name = format!("base_model.model.layers.0.self_attn.q_proj.lora_{factor}.weight");
            tensors.insert(name, copied);
        }
    })
    .unwrap_err();
    assert!(
        error.contains("two adapters for self_attn.q_proj of layer 0"),
        "{error}"
    );
    // The language model inside of one for pictures.
    let renamed = adapter_of(|tensors| {
        let inner =
            |name: String| name.replace("model.model.layers", "model.model.language_model.layers");
        *tensors = std::mem::take(tensors)
            .into_iter()
            .map(|(n, t)| (inner(n), t))
            .collect();
    });
    let plain = Adapter::load(&fixture("pico/adapter_plain"), &base()).unwrap();
    assert_eq!(renamed, Ok(plain));
}

#[test]
fn layers_and_ranks_are_refused_in_words() {
    let moved = |to: usize| {
        adapter_of(|tensors| {
            let inner = |name: String| name.replace("layers.1.", &format!("layers.{to}."));
            *tensors = std::mem::take(tensors)
                .into_iter()
                .map(|(n, t)| (inner(n), t))
                .collect();
        })
    };
    let error = moved(7).unwrap_err();
    assert!(
        error.contains("layers.7.") && error.contains("has 2 layers"),
        "{error}"
    );
    for (field, value, expected) in [
        (
            "r",
            json!(0),
            "the rank for 'model.layers.0.mlp.down_proj' is 0",
        ),
        ("rank_pattern", json!({"o_proj": 0}), "o_proj' is 0"),
        (
            "rank_pattern",
            json!({"o_proj": 2}),
            "expected shape [2, 32], got [4, 32]",
        ),
        ("rank_pattern", json!({"(": 2}), "pattern '('"),
        (
            "exclude_modules",
            json!(["o_proj"]),
            "exclude_modules leaves out",
        ),
        (
            "exclude_modules",
            json!(r".*\.1\..*"),
            "exclude_modules leaves out",
        ),
        (
            "target_modules",
            json!(["q_proj"]),
            "target_modules leaves out",
        ),
        (
            "layers_to_transform",
            json!(1),
            "layers_to_transform leaves out",
        ),
        (
            "layers_to_transform",
            json!([0]),
            "layers_to_transform leaves out",
        ),
    ] {
        let error = adapter_with(field, value.clone()).unwrap_err();
        assert!(error.contains(expected), "{field} = {value}: {error}");
    }
}

#[test]
fn the_first_pattern_of_the_file_counts() {
    // As peft: re.match(rf"(.*\.)?({key})$", module), keys in the order of the file.
    let query = (0, mope_lm::adapter::Target::Query);
    let scaled = |patterns: &str| {
        let folder = copy("adapter_plain");
        let path = folder.path().join("adapter_config.json");
        let text = std::fs::read_to_string(&path).unwrap();
        let changed = text.replace(
            "\"alpha_pattern\": {}",
            &format!("\"alpha_pattern\": {patterns}"),
        );
        assert!(changed.contains(patterns));
        std::fs::write(&path, changed).unwrap();
        let adapter = Adapter::load(folder.path(), &base()).unwrap();
        adapter.pairs[&query].b.clone()
    };
    let plain = scaled("{}");
    let times = |factor: f32| -> Vec<f32> { plain.iter().map(|v| v * factor).collect() };
    // lora_alpha is 8.
    for (patterns, factor) in [
        (r#"{"q_proj": 16, "layers.0.self_attn.q_proj": 4}"#, 2.0),
        (r#"{"layers.0.self_attn.q_proj": 4, "q_proj": 16}"#, 0.5),
        (
            r#"{"self_attn\\.[qk]_proj": 32, "layers\\.\\d+\\.self_attn\\.q_proj": 4}"#,
            4.0,
        ),
        (r#"{"proj": 64, "attn.q_proj": 64, "q_proj": 16}"#, 2.0),
        (r#"{"z.*": 64, "model.layers.0.*": 2}"#, 0.25),
        (r#"{"q_proj": 2, "v_proj": 3, "q_proj": 16}"#, 2.0),
    ] {
        assert_eq!(scaled(patterns), times(factor), "{patterns}");
    }
}

#[test]
fn other_families_are_refused_before_their_fields() {
    for family in [
        "gpt2",
        "gemma3",
        "llama4",
        "mistral3",
        "qwen2_vl",
        "phi",
        "olmo",
        "stablelm",
        "falcon",
        "cohere",
        "starcoder2",
        "mamba",
        "gemma",
        "gemma3n",
        "gpt_oss",
        "granitemoe",
        "olmoe",
        "phimoe",
        "qwen3_next",
        "cohere2",
        "glm4_moe",
        "gpt_neox",
        "bert",
        "t5",
        "deepseek_v3",
    ] {
        let folder = tempfile::tempdir().unwrap();
        let config = json!({"model_type": family, "n_embd": 768});
        std::fs::write(folder.path().join("config.json"), config.to_string()).unwrap();
        let error = Checkpoint::open(folder.path()).unwrap_err().to_string();
        assert!(error.contains(&format!("model_type '{family}'")), "{error}");
    }
    // A family that can be read has all fields by default.
    for family in [
        "llama",
        "mistral",
        "qwen2",
        "qwen3",
        "gemma2",
        "gemma3_text",
        "phi3",
        "smollm3",
        "olmo2",
        "olmo3",
        "qwen2_moe",
        "qwen3_moe",
        "mixtral",
        "granite",
        "glm",
        "glm4",
    ] {
        let folder = tempfile::tempdir().unwrap();
        let config = json!({"model_type": family});
        std::fs::write(folder.path().join("config.json"), config.to_string()).unwrap();
        let error = Checkpoint::open(folder.path()).unwrap_err().to_string();
        assert!(
            error.contains("neither model.safetensors nor"),
            "{family}: {error}"
        );
        for (field, value) in [("hidden_size", json!("wide")), ("rms_norm_eps", json!([1]))] {
            let config = json!({"model_type": family, field: value});
            std::fs::write(folder.path().join("config.json"), config.to_string()).unwrap();
            let error = Checkpoint::open(folder.path()).unwrap_err().to_string();
            assert!(
                error.contains(&format!("field '{field}' is {value}, not")),
                "{error}"
            );
        }
    }
    let folder = tempfile::tempdir().unwrap();
    let config = json!({"architectures": ["MambaForCausalLM"], "d_model": 768});
    std::fs::write(folder.path().join("config.json"), config.to_string()).unwrap();
    let error = Checkpoint::open(folder.path()).unwrap_err().to_string();
    assert!(
        error.contains("no model_type in it (of class MambaForCausalLM)"),
        "{error}"
    );
    for (field, value, expected) in [
        (
            "quantization_config",
            json!({"quant_method": "gptq", "bits": 4}),
            "quantization_config of 'gptq'",
        ),
        (
            "quantization_config",
            json!({"quant_method": "awq", "bits": 4}),
            "quantization_config of 'awq'",
        ),
        (
            "rope_scaling",
            json!({"rope_type": "axial", "factor": 2.0}),
            "rope_scaling of type 'axial'",
        ),
        (
            "rope_scaling",
            json!({"type": "longrope", "factor": 2.0, "short_factor": [1.0, 1.0, 1.0, 1.0]}),
            "rope_scaling has no list of numbers 'long_factor'",
        ),
        ("hidden_act", json!("relu2"), "hidden_act 'relu2'"),
        (
            "partial_rotary_factor",
            json!(0.5),
            "partial_rotary_factor 0.5",
        ),
        (
            "rope_parameters",
            json!({"full_attention": {"rope_theta": 1e6}, "sliding_attention": {"rope_theta": 1e4}}),
            "rope_parameters of their own for 'full_attention' layers",
        ),
    ] {
        let folder = copy("llama");
        change(&folder.path().join("config.json"), |c| c[field] = value);
        let error = Checkpoint::open(folder.path()).unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
    }
}

#[test]
fn absent_fields_mean_what_the_class_says() {
    let without = |name: &str, fields: &[&str], null: Option<&str>| {
        let folder = copy(name);
        change(&folder.path().join("config.json"), |config| {
            let config = config.as_object_mut().unwrap();
            for field in fields {
                config.remove(*field);
            }
            if let Some(field) = null {
                config.insert(field.into(), Value::Null);
            }
        });
        Checkpoint::open(folder.path()).unwrap().config().clone()
    };
    let llama = without("llama", &["max_position_embeddings", "rms_norm_eps"], None);
    assert_eq!((llama.context_length, llama.norm_eps), (2048, 1e-6));
    let mistral = without(
        "mistral_window",
        &["sliding_window", "max_position_embeddings"],
        None,
    );
    assert_eq!(
        (mistral.sliding_window, mistral.context_length),
        (Some(4096), 131_072)
    );
    let mistral = without("mistral_window", &[], Some("sliding_window"));
    assert_eq!(mistral.sliding_window, None);
    let qwen = without("qwen2", &["max_position_embeddings"], None);
    assert_eq!((qwen.context_length, qwen.sliding_window), (32_768, None));
}

fn logits(folder: &Path) -> Vec<f32> {
    let model = LanguageModel::open(folder, &DeviceSpec::Cpu, Format::F32).unwrap();
    let mut out = Vec::new();
    let ids = [5, 9, 14, 70];
    let lanes: [&[u32]; 1] = [&ids];
    model
        .engine
        .all_logits(&lanes, None, |_, _, row| out.extend_from_slice(row))
        .unwrap();
    out
}

#[test]
fn weights_of_eight_bits_are_multiplied_by_their_scales() {
    use mope_lm::load::dequant;
    let name = "model.layers.0.self_attn.q_proj.weight";
    let bits: Vec<u8> = (0..32 * 32)
        .map(|i| (i * 37 % 120 + i % 2 * 128) as u8)
        .collect();
    let scales = [0.01f32, 0.02, 0.03, 0.04];
    let mut values = vec![0.0; bits.len()];
    dequant::Format::F8_E4M3.decode(&bits, &mut values);
    for (i, value) in values.iter_mut().enumerate() {
        *value *= scales[i / 32 / 16 * 2 + i % 32 / 16];
    }
    let plain = copy("llama");
    let path = plain.path().join("model.safetensors");
    let mut tensors = stored(&path);
    tensors.get_mut(name).unwrap().1 = values;
    store(&path, &tensors);

    let written = |scale: Option<&str>, shape: Vec<usize>, scheme: &str| {
        let folder = copy("llama");
        let mut tensors = stored(&folder.path().join("model.safetensors"));
        tensors.remove(name);
        if let Some(scale) = scale {
            let numbers = scales[..shape.iter().product()].to_vec();
            tensors.insert(scale.into(), (shape, numbers));
        }
        let data: Vec<(String, Vec<usize>, Vec<u8>)> = tensors
            .into_iter()
            .map(|(n, (shape, v))| (n, shape, v.iter().flat_map(|v| v.to_le_bytes()).collect()))
            .collect();
        let views = data.iter().map(|(n, shape, bytes)| {
            (
                n.as_str(),
                TensorView::new(Dtype::F32, shape.clone(), bytes).unwrap(),
            )
        });
        let small = TensorView::new(Dtype::F8_E4M3, vec![32, 32], &bits).unwrap();
        let views = views.chain([(name, small)]);
        let path = folder.path().join("model.safetensors");
        safetensors::serialize_to_file(views, None, &path).unwrap();
        change(&folder.path().join("config.json"), |c| {
            c["quantization_config"] = json!({
                "quant_method": "fp8", "activation_scheme": scheme, "weight_block_size": [16, 16]
            });
        });
        folder
    };
    let scale = format!("{name}_scale_inv");
    let small = written(Some(&scale), vec![2, 2], "dynamic");
    Checkpoint::open(small.path()).unwrap().check().unwrap();
    assert_eq!(logits(small.path()), logits(plain.path()));
    let error = |folder: &TempDir| {
        let opened = LanguageModel::open(folder.path(), &DeviceSpec::Cpu, Format::F32);
        opened.err().unwrap().to_string()
    };
    let missing = error(&written(None, vec![], "dynamic"));
    assert!(missing.contains(&scale), "{missing}");
    let few = error(&written(Some(&scale), vec![1, 2], "dynamic"));
    assert!(few.contains("expected shape [2, 2], got [1, 2]"), "{few}");
    let fixed = error(&written(Some(&scale), vec![2, 2], "static"));
    assert!(
        fixed.contains("'fp8' with activation_scheme 'static'"),
        "{fixed}"
    );
    let lost = error(&written(
        Some("model.layers.7.x_scale_inv"),
        vec![2, 2],
        "dynamic",
    ));
    assert!(lost.contains(&scale), "{lost}");
}

#[test]
fn the_language_model_of_a_model_for_pictures_is_read_alone() {
    let families = fixture("families/gemma3");
    let text = json_of(&families.join("config.json"));
    let bytes = std::fs::read(families.join("model.safetensors")).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    // As older versions of transformers name the parts, and as version 5 does.
    for (body, tower) in [
        ("language_model.model.", "vision_tower."),
        ("model.language_model.", "model.vision_tower."),
    ] {
        let folder = tempfile::tempdir().unwrap();
        let mut config = json!({"model_type": "gemma3", "text_config": text.clone()});
        config["vision_config"] = json!({"model_type": "siglip_vision_model"});
        std::fs::write(folder.path().join("config.json"), config.to_string()).unwrap();
        let mut views: Vec<(String, TensorView<'_>)> = file
            .tensors()
            .into_iter()
            .map(|(name, view)| (name.replacen("model.", body, 1), view))
            .collect();
        let norm = file.tensor("model.norm.weight").unwrap();
        views.push((
            format!("{tower}encoder.layers.0.self_attn.q_proj.weight"),
            norm,
        ));
        let path = folder.path().join("model.safetensors");
        safetensors::serialize_to_file(views, None, &path).unwrap();
        let checkpoint = Checkpoint::open(folder.path()).unwrap();
        checkpoint.check().unwrap();
        assert_eq!(checkpoint.family(), "gemma3");
        let inner = Checkpoint::open(&families).unwrap();
        assert_eq!(checkpoint.config(), inner.config());
        // What is exported is the language model, by its own name.
        let out = tempfile::tempdir().unwrap();
        let exported = out.path().join("exported");
        checkpoint
            .export(&exported, mope_lm::save::Precision::F32, None)
            .unwrap();
        let written = json_of(&exported.join("config.json"));
        assert_eq!(written["model_type"], "gemma3_text");
        assert_eq!(written["architectures"], json!(["Gemma3ForCausalLM"]));
        assert_eq!(
            Checkpoint::open(&exported).unwrap().config(),
            inner.config()
        );
    }
}

#[test]
fn a_head_that_differs_from_the_embedding_is_used_whatever_the_config_says() {
    let with_head = |tied: bool, head: &dyn Fn(&[f32]) -> Vec<f32>| {
        let folder = copy("llama");
        change(&folder.path().join("config.json"), |c| {
            c["tie_word_embeddings"] = json!(tied)
        });
        let path = folder.path().join("model.safetensors");
        let mut tensors = stored(&path);
        let (shape, embedding) = tensors["model.embed_tokens.weight"].clone();
        tensors.insert("lm_head.weight".into(), (shape, head(&embedding)));
        store(&path, &tensors);
        folder
    };
    let other = |e: &[f32]| e.iter().rev().copied().collect::<Vec<f32>>();
    let (said_tied, said_untied) = (with_head(true, &other), with_head(false, &other));
    assert!(
        !Checkpoint::open(said_tied.path())
            .unwrap()
            .config()
            .tied_head
    );
    let got = logits(said_tied.path());
    assert_eq!(got, logits(said_untied.path()));
    let plain = logits(&fixture("pico/llama"));
    assert_ne!(got, plain);
    // One number is enough.
    let nearly = with_head(true, &|e| [&[e[0] + 0.5], &e[1..]].concat());
    assert!(!Checkpoint::open(nearly.path()).unwrap().config().tied_head);
    let same = with_head(true, &|e| e.to_vec());
    assert!(Checkpoint::open(same.path()).unwrap().config().tied_head);
    assert_eq!(logits(same.path()), plain);
    // What is exported says of itself how it is.
    let out = tempfile::tempdir().unwrap();
    let exported = out.path().join("exported");
    let checkpoint = Checkpoint::open(said_tied.path()).unwrap();
    checkpoint
        .export(&exported, mope_lm::save::Precision::F32, None)
        .unwrap();
    assert_eq!(
        json_of(&exported.join("config.json"))["tie_word_embeddings"],
        json!(false)
    );
    assert_eq!(logits(&exported), got);
}

#[test]
fn a_tensor_that_nobody_reads_is_an_error_unless_it_is_a_known_constant() {
    let with = |name: &str| {
        let folder = copy("llama");
        let path = folder.path().join("model.safetensors");
        let mut tensors = stored(&path);
        tensors.insert(name.into(), (vec![4], vec![1.0; 4]));
        store(&path, &tensors);
        Checkpoint::open(folder.path())
            .unwrap()
            .check()
            .map_err(|e| e.to_string())
    };
    for constant in [
        "model.layers.0.self_attn.rotary_emb.inv_freq",
        "model.rotary_emb.inv_freq",
        "model.layers.1.self_attn.rotary_emb.cos_cached",
        "model.layers.1.self_attn.masked_bias",
    ] {
        assert_eq!(with(constant), Ok(()));
    }
    for name in [
        "model.layers.0.self_attn.q_proj.bias",
        "score.weight",
        "model.layers.2.mlp.up_proj.weight",
    ] {
        let error = with(name).unwrap_err();
        assert!(error.contains(name), "{error}");
    }
}

fn rendered(folder: &Path) -> String {
    let checkpoint = Checkpoint::open(folder).unwrap();
    let template = ChatTemplate::load(&checkpoint).unwrap();
    template.render(&[Message::user("Why?\r\n")], true).unwrap()
}

#[test]
fn line_ends_of_a_template_are_those_of_jinja() {
    let template = "{{ bos_token }}{% for m in messages %}\n[{{ m.role }}]\n{{ m.content }}\n{% endfor %}\nend\n";
    // jinja2: what the template holds is normalised and its last line end dropped; what is put in stays.
    let expected = "<s>[user]\nWhy?\r\n\nend";
    for ends in ["\n", "\r\n", "\r"] {
        let source = template.replace('\n', ends);
        for mark in ["", "\u{feff}"] {
            let folder = copy("llama");
            std::fs::write(
                folder.path().join("chat_template.jinja"),
                format!("{mark}{source}"),
            )
            .unwrap();
            assert_eq!(rendered(folder.path()), expected, "{ends:?}");
        }
        let folder = copy("llama");
        let config = folder.path().join("tokenizer_config.json");
        change(&config, |c| c["chat_template"] = json!(source));
        assert_eq!(rendered(folder.path()), expected, "{ends:?}");
        change(&config, |c| {
            c["chat_template"] = json!([{"name": "default", "template": source}])
        });
        assert_eq!(rendered(folder.path()), expected, "{ends:?}");
        let mut gguf = Gguf::pico();
        gguf.metadata
            .push(("tokenizer.chat_template".into(), string(&source)));
        gguf.metadata
            .push(("tokenizer.ggml.bos_token_id".into(), number(0)));
        std::fs::write(folder.path().join("m.gguf"), gguf.bytes()).unwrap();
        let expected = expected.replace("<s>", "a");
        assert_eq!(
            rendered(&folder.path().join("m.gguf")),
            expected,
            "{ends:?}"
        );
    }
}

#[test]
fn special_tokens_come_from_where_transformers_takes_them() {
    // The token of the map, that of tokenizer_config.json, what else stands there, and the result.
    let cases = [
        (json!("<s>"), None, json!({}), "<s>"),
        (
            json!({"content": "<s>", "lstrip": false}),
            None,
            json!({}),
            "<s>",
        ),
        (json!("<m>"), Some("<s>"), json!({}), "<m>"),
        (
            json!("<m>"),
            Some("<s>"),
            json!({"added_tokens_decoder": {}}),
            "<s>",
        ),
        (
            json!(null),
            Some("<s>"),
            json!({"added_tokens_decoder": {}}),
            "<s>",
        ),
        (
            json!(null),
            None,
            json!({"tokenizer_class": "LlamaTokenizer"}),
            "",
        ),
        (json!("<m>"), None, json!({"added_tokens_decoder": {}}), ""),
        (
            json!("<m>"),
            None,
            json!({"added_tokens_decoder": {}, "tokenizer_class": "LlamaTokenizerFast"}),
            "<s>",
        ),
    ];
    for (map, config, more, expected) in cases {
        let folder = copy("llama");
        let of = |name: &str| folder.path().join(name);
        std::fs::write(
            of("special_tokens_map.json"),
            json!({"bos_token": map}).to_string(),
        )
        .unwrap();
        change(&of("tokenizer_config.json"), |c| {
            let fields = c.as_object_mut().unwrap();
            fields.remove("bos_token");
            fields.extend(more.as_object().unwrap().clone());
            if let Some(token) = config {
                fields.insert("bos_token".into(), json!(token));
            }
            fields.insert("chat_template".into(), json!("{{ bos_token }}!"));
        });
        assert_eq!(
            rendered(folder.path()),
            format!("{expected}!"),
            "{map} {config:?} {more}"
        );
    }
}

#[test]
fn a_byte_order_mark_is_no_part_of_a_text() {
    let folder = copy("llama");
    for name in [
        "config.json",
        "tokenizer_config.json",
        "generation_config.json",
        "tokenizer.json",
    ] {
        let path = folder.path().join(name);
        let text = std::fs::read_to_string(&path).unwrap();
        std::fs::write(&path, format!("\u{feff}{text}")).unwrap();
    }
    assert_eq!(logits(folder.path()), logits(&fixture("pico/llama")));
    let folder = copy("adapter_plain");
    let path = folder.path().join("adapter_config.json");
    let text = std::fs::read_to_string(&path).unwrap();
    std::fs::write(&path, format!("\u{feff}{text}")).unwrap();
    assert!(Adapter::load(folder.path(), &base()).is_ok());
}

#[test]
fn a_tokenizer_may_have_more_ids_than_the_embedding_has_rows() {
    let folder = copy("llama");
    change(&folder.path().join("tokenizer.json"), |t| {
        let mut token = t["added_tokens"][2].clone();
        token["id"] = json!(96);
        token["content"] = json!("<late>");
        t["added_tokens"].as_array_mut().unwrap().push(token);
    });
    let model = LanguageModel::open(folder.path(), &DeviceSpec::Cpu, Format::F32).unwrap();
    let score = |text: &str| {
        let ids = model.prompt_tokens(&Prompt::Raw(text.into())).unwrap();
        model
            .log_probs(&[&ids], &[&[5]], None)
            .map_err(|e| e.to_string())
    };
    assert!(score("the cat").is_ok());
    let error = score("the <late> cat").unwrap_err();
    assert!(
        error.contains("token 96 is outside of the vocabulary of 96"),
        "{error}"
    );
}

/// A GGUF file in a folder.
fn written(gguf: &Gguf) -> (TempDir, std::path::PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.gguf");
    std::fs::write(&path, gguf.bytes()).unwrap();
    (folder, path)
}

#[test]
fn two_names_of_one_tensor_are_refused() {
    for name in [
        "model.layers.0.self_attn.q_proj.weight",
        "model.embed_tokens.weight",
    ] {
        let mut gguf = Gguf::pico();
        let offset = gguf.data.len() as u64;
        let shape = if name.contains("q_proj") {
            vec![8, 8]
        } else {
            vec![8, 20]
        };
        gguf.data.resize(
            gguf.data.len() + 4 * shape.iter().product::<u64>() as usize,
            0,
        );
        gguf.tensors.push((name.into(), shape, offset));
        let (_folder, path) = written(&gguf);
        let error = Checkpoint::open(&path).unwrap_err().to_string();
        assert!(
            error.contains(&format!("two tensors are '{name}'")),
            "{error}"
        );
    }
}

/// The pico model in parts, as `gguf-split` names and marks them.
fn in_parts(folder: &Path, counts: &[usize]) -> Vec<std::path::PathBuf> {
    let unsplit = Gguf::pico();
    let total = counts.len();
    let short = |v: usize| {
        [
            2u32.to_le_bytes().to_vec(),
            (v as u16).to_le_bytes().to_vec(),
        ]
        .concat()
    };
    let mut tensors = unsplit.tensors.iter();
    counts
        .iter()
        .enumerate()
        .map(|(part, count)| {
            let mut gguf = unsplit.clone();
            gguf.metadata = if part == 0 {
                unsplit.metadata.clone()
            } else {
                vec![]
            };
            gguf.metadata.push(("split.no".into(), short(part)));
            gguf.metadata.push(("split.count".into(), short(total)));
            gguf.data.clear();
            gguf.tensors.clear();
            for (name, shape, offset) in tensors.by_ref().take(*count) {
                let bytes = 4 * shape.iter().product::<u64>() as usize;
                let start = gguf.data.len() as u64;
                gguf.data.extend(&unsplit.data[*offset as usize..][..bytes]);
                gguf.data.resize(gguf.data.len().next_multiple_of(32), 0);
                gguf.tensors.push((name.clone(), shape.clone(), start));
            }
            let path = folder.join(format!("x-{:05}-of-{total:05}.gguf", part + 1));
            std::fs::write(&path, gguf.bytes()).unwrap();
            path
        })
        .collect()
}

#[test]
fn a_model_in_parts_is_read_whole_or_named() {
    let open = |path: &Path| LanguageModel::open(path, &DeviceSpec::Cpu, Format::F32);
    let score = |model: &LanguageModel| model.log_probs(&[&[2, 18]], &[&[19, 4]], None).unwrap();
    let (_whole, path) = written(&Gguf::pico());
    let expected = score(&open(&path).unwrap());
    for counts in [&[4, 7][..], &[1, 9, 1], &[0, 11]] {
        let folder = tempfile::tempdir().unwrap();
        let parts = in_parts(folder.path(), counts);
        assert_eq!(score(&open(&parts[0]).unwrap()), expected);
        assert_eq!(score(&open(folder.path()).unwrap()), expected);
        assert_eq!(mope_lm::load::gguf_files(&parts[0]).unwrap(), parts);
        let error = open(&parts[1]).unwrap_err().to_string();
        let named = format!(
            "part 2 of {} of a model; open the first, x-00001",
            counts.len()
        );
        assert!(error.contains(&named), "{error}");
        std::fs::remove_file(parts.last().unwrap()).unwrap();
        let error = open(&parts[0]).unwrap_err().to_string();
        assert!(error.contains("is missing: fetch it"), "{error}");
        let other = folder.path().join("renamed.gguf");
        std::fs::rename(&parts[0], &other).unwrap();
        let error = open(&other).unwrap_err().to_string();
        assert!(
            error.contains(&format!("part 1 of {}", counts.len())),
            "{error}"
        );
    }
}

/// A SentencePiece vocabulary: unknown, BOS, EOS, two control tokens, letters and words.
fn sentence_piece(open: &str, close: &str, prefix: Option<bool>) -> Tokenizer {
    let words = ["▁", "W", "h", "y", "?", "▁W", "▁Wh", "▁Why", "hy"];
    let tokens: Vec<String> = ["<unk>", "<s>", "</s>", open, close]
        .iter()
        .chain(&words)
        .map(|t| t.to_string())
        .collect();
    let scores = tokens.iter().enumerate().map(|(i, _)| -(i as f32));
    let scores: Vec<u8> = scores.flat_map(f32::to_le_bytes).collect();
    let kinds =
        (0..tokens.len() as i32).map(|i| [2, 3, 3, 3, 3].get(i as usize).copied().unwrap_or(1));
    let kinds: Vec<u8> = kinds.flat_map(i32::to_le_bytes).collect();
    let array = |kind: u32, data: Vec<u8>| {
        let count = (tokens.len() as u64).to_le_bytes();
        [&9u32.to_le_bytes()[..], &kind.to_le_bytes(), &count, &data].concat()
    };
    let mut gguf = Gguf::pico();
    gguf.set("tokenizer.ggml.model", string("llama"));
    gguf.set("tokenizer.ggml.tokens", strings(&tokens));
    gguf.set("tokenizer.ggml.eos_token_id", number(2));
    let mut add = |key: &str, value| gguf.metadata.push((format!("tokenizer.ggml.{key}"), value));
    add("scores", array(6, scores));
    add("token_type", array(5, kinds));
    add("bos_token_id", number(1));
    add("unknown_token_id", number(0));
    if let Some(prefix) = prefix {
        add(
            "add_space_prefix",
            [&7u32.to_le_bytes()[..], &[u8::from(prefix)]].concat(),
        );
    }
    let (_folder, path) = written(&gguf);
    Tokenizer::load(&Checkpoint::open(&path).unwrap()).unwrap()
}

#[test]
fn tokens_of_turns_get_no_space_behind_them() {
    let mistral = sentence_piece("[INST]", "[/INST]", None);
    let ids = |t: &Tokenizer, text: &str| t.encode(text, false).unwrap();
    // mistral-common for v3: the control tokens' ids, then the text with its own space.
    assert_eq!(ids(&mistral, "<s>[INST] Why?[/INST]"), [1, 3, 12, 9, 4]);
    assert_eq!(
        ids(&mistral, "<s>[INST] Why?[/INST] Why?</s>[INST] Why?[/INST]"),
        [1, 3, 12, 9, 4, 12, 9, 2, 3, 12, 9, 4]
    );
    assert_eq!(ids(&mistral, "Why?"), [12, 9]);
    assert_eq!(ids(&mistral, "[INST]Why?"), [3, 6, 13, 9]);
    assert_eq!(mistral.encode("Why?", true).unwrap(), [1, 12, 9]);
    assert_eq!(mistral.decode(&[1, 12, 9]).unwrap(), "Why?");
    let bare = sentence_piece("[INST]", "[/INST]", Some(false));
    assert_eq!(ids(&bare, "Why?[INST] Why?"), [6, 13, 9, 3, 12, 9]);
    // LLaMA 2, whose tokenizer is a legacy one: a space behind every special token.
    let llama = sentence_piece("<x>", "</x>", None);
    assert_eq!(ids(&llama, "<s> Why?"), [1, 5, 12, 9]);
    assert_eq!(ids(&llama, "<s>Why?</s>Why?"), [1, 12, 9, 2, 12, 9]);
    // A token for padding that somebody added makes no Mistral of it.
    let padded = sentence_piece("[PAD]", "<x>", None);
    assert_eq!(ids(&padded, "<s>Why?</s>Why?"), [1, 12, 9, 2, 12, 9]);
}

#[test]
fn how_texts_are_split_must_be_known() {
    let mut gguf = Gguf::pico();
    gguf.set("tokenizer.ggml.pre", string("tomorrow"));
    let (_folder, path) = written(&gguf);
    let tokenizer = |path: &Path| Tokenizer::load(&Checkpoint::open(path).unwrap());
    let error = tokenizer(&path).unwrap_err().to_string();
    assert!(error.contains("tokenizer.ggml.pre 'tomorrow'"), "{error}");
    gguf.metadata.retain(|(key, _)| key != "tokenizer.ggml.pre");
    let (_folder, path) = written(&gguf);
    let error = tokenizer(&path).unwrap_err().to_string();
    assert!(error.contains("no tokenizer.ggml.pre"), "{error}");
}
