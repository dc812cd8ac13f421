//! An adapter as a PEFT folder: `adapter_config.json` and `adapter_model.safetensors`.
//!
//! Inside, the scale `α / r` is folded into `B`; it stays there, and the folder says `α = r`, so peft
//! multiplies by 1 and gets the same product.

use std::collections::BTreeMap;
use std::path::Path;

use serde_json::json;

use super::{Precision, SafetensorsWriter, new_folder, write_json};
use crate::adapter::{Adapter, LowRank, Target, transposed};
use crate::config::DecoderConfig;
use crate::load::layout::half_split;
use crate::{Error, Result};

impl Adapter {
    /// Writes a PEFT folder for a model of shape `config`; `base` names that model to whoever reads it.
    /// Modules of another rank than most get their own `rank_pattern`; an adapter that has some modules in
    /// some layers only lists each by its full name.
    ///
    /// # Errors
    /// A folder that is not empty, an adapter without pairs or of another shape, numbers that are not
    /// finite, and what the system says.
    ///
    /// ```
    /// use mope_lm::adapter::{Adapter, LowRank, Target};
    /// # use mope_lm::{DecoderConfig, config::{Rope, RopeScaling}, save::Precision};
    /// # let rope = Rope { theta: 1e4, scaling: RopeScaling::Plain };
    /// # let config = DecoderConfig { vocab_size: 8, hidden_size: 2, intermediate_size: 4, layers: 1,
    /// #     heads: 1, kv_heads: 1, head_dim: 2, context_length: 8, norm_eps: 1e-5, rope, tied_head: true,
    /// #     qkv_bias: false, output_bias: false, mlp_bias: false, qk_norm: false, sliding_window: None,
    /// #     family: Default::default() };
    /// let pair = LowRank { rank: 1, a: vec![1.0, 2.0], b: vec![0.5, 0.25] };
    /// let adapter = Adapter { pairs: [((0, Target::Query), pair)].into() };
    /// let folder = std::env::temp_dir().join(format!("adapter-{}", std::process::id()));
    /// adapter.save(&folder, &config, Some("my/base"), Precision::F32)?;
    /// assert_eq!(Adapter::load(&folder, &config)?, adapter);
    /// # std::fs::remove_dir_all(&folder).map_err(|e| mope_lm::Error::Io { path: folder.clone(), source: e })?;
    /// # Ok::<(), mope_lm::Error>(())
    /// ```
    pub fn save(
        &self,
        folder: &Path,
        config: &DecoderConfig,
        base: Option<&str>,
        precision: Precision,
    ) -> Result<()> {
        let mut places: Vec<(usize, Target)> = self.pairs.keys().copied().collect();
        places.sort();
        for matrix in &places {
            check(folder, *matrix, &self.pairs[matrix], config)?;
        }
        let modules = modules(self, config);
        let Some(rank) = usual_rank(&modules) else {
            return Err(Error::format(folder, "the adapter has no pairs to write"));
        };
        let other: BTreeMap<String, usize> = modules
            .iter()
            .filter(|m| m.rank != rank)
            .map(|m| (m.name.clone(), m.rank))
            .collect();
        let mut short: Vec<&str> = modules.iter().map(Module::short).collect();
        short.sort_by_key(|name| modules.iter().position(|m| m.short() == *name));
        short.dedup();
        // Short names mean "in every layer".
        let everywhere = modules.len() == short.len() * config.layers;
        let targets: Vec<String> = match everywhere {
            true => short.iter().map(ToString::to_string).collect(),
            false => modules.iter().map(|m| m.name.clone()).collect(),
        };
        let document = json!({
            "peft_type": "LORA",
            "task_type": "CAUSAL_LM",
            "base_model_name_or_path": base,
            "r": rank,
            "lora_alpha": rank,
            "rank_pattern": other,
            "alpha_pattern": other,
            "target_modules": targets,
            "lora_dropout": 0.0,
            "bias": "none",
            "fan_in_fan_out": false,
            "use_rslora": false,
            "use_dora": false,
            "inference_mode": true,
            "init_lora_weights": true,
            "modules_to_save": null,
        });
        new_folder(folder, |beside| {
            write_json(&beside.join("adapter_config.json"), &document)?;
            let mut tensors = Vec::new();
            for module in &modules {
                let name = format!("base_model.model.model.{}", module.name);
                let [inputs, outputs] = [&module.a, &module.b].map(|f| f.len() / module.rank);
                tensors.push((format!("{name}.lora_A.weight"), vec![module.rank, inputs]));
                tensors.push((format!("{name}.lora_B.weight"), vec![outputs, module.rank]));
            }
            let path = beside.join("adapter_model.safetensors");
            let mut file = SafetensorsWriter::create(&path, &tensors, precision)?;
            for (module, names) in modules.iter().zip(tensors.chunks(2)) {
                file.write(&names[0].0, &module.a)?;
                file.write(&names[1].0, &module.b)?;
            }
            file.finish()
        })
    }
}

/// A module of the model as its files have it, with a pair in their conventions.
struct Module {
    /// `layers.0.self_attn.q_proj`.
    name: String,
    rank: usize,
    /// `[rank, inputs]`.
    a: Vec<f32>,
    /// `[outputs, rank]`.
    b: Vec<f32>,
}

impl Module {
    /// `q_proj`.
    fn short(&self) -> &str {
        self.name
            .rsplit_once('.')
            .map_or(&self.name, |(_, name)| name)
    }
}

/// The modules that an adapter changes, in the order of the layers.
fn modules(adapter: &Adapter, config: &DecoderConfig) -> Vec<Module> {
    let layout = config.family.layout;
    let mut groups: Vec<(&str, Vec<Target>)> = Vec::new();
    for target in Target::ALL {
        let name = match target {
            Target::Query | Target::Key | Target::Value if layout.fused_qkv => "self_attn.qkv_proj",
            Target::Gate | Target::Up if layout.fused_gate_up => "mlp.gate_up_proj",
            _ => target.module(),
        };
        match groups.last_mut().filter(|(last, _)| *last == name) {
            Some((_, targets)) => targets.push(target),
            None => groups.push((name, vec![target])),
        }
    }
    let layers = (0..config.layers).flat_map(|layer| groups.iter().map(move |g| (layer, g)));
    let module = |(layer, (name, targets)): (usize, &(&str, Vec<Target>))| {
        let name = format!("layers.{layer}.{name}");
        joined(adapter, config, layer, targets, name)
    };
    layers.filter_map(module).collect()
}

/// The pair of matrices that are one in files. Where they don't read the same `A`, theirs stand below each other, and
/// each matrix's rows of `B` are zero for the others'.
fn joined(
    adapter: &Adapter,
    config: &DecoderConfig,
    layer: usize,
    targets: &[Target],
    name: String,
) -> Option<Module> {
    let pair = |target: &Target| adapter.pairs.get(&(layer, *target));
    let first = targets.iter().find_map(pair)?;
    let shared = targets
        .iter()
        .all(|t| pair(t).is_none_or(|p| p.a == first.a));
    let rank = match shared {
        true => first.rank,
        false => targets.iter().filter_map(pair).map(|p| p.rank).sum(),
    };
    let (mut a, mut b, mut before) = (Vec::new(), Vec::new(), 0);
    for target in targets {
        let (inputs, outputs) = target.size(config);
        let Some(pair) = pair(target) else {
            b.resize(b.len() + outputs * rank, 0.0);
            continue;
        };
        if a.is_empty() || !shared {
            a.extend(transposed(&pair.a, inputs, pair.rank));
        }
        let mut rows = transposed(&pair.b, pair.rank, outputs);
        if config.family.layout.interleaved && matches!(target, Target::Query | Target::Key) {
            half_split(config, pair.rank, &mut rows, false);
        }
        for row in rows.chunks(pair.rank) {
            let start = b.len();
            b.resize(start + rank, 0.0);
            b[start + before..start + before + pair.rank].copy_from_slice(row);
        }
        before += if shared { 0 } else { pair.rank };
    }
    Some(Module { name, rank, a, b })
}

/// The rank of most modules, the larger where two are equally frequent.
fn usual_rank(modules: &[Module]) -> Option<usize> {
    let mut counts: BTreeMap<usize, usize> = BTreeMap::new();
    for module in modules {
        *counts.entry(module.rank).or_default() += 1;
    }
    let most = counts
        .into_iter()
        .max_by_key(|&(rank, count)| (count, rank));
    most.map(|(rank, _)| rank)
}

fn check(
    folder: &Path,
    (layer, target): (usize, Target),
    pair: &LowRank,
    config: &DecoderConfig,
) -> Result<()> {
    let (inputs, outputs) = target.size(config);
    let expected = [inputs * pair.rank, pair.rank * outputs];
    let got = [pair.a.len(), pair.b.len()];
    if target.is_feed_forward() && config.experts(layer).is_some() {
        let what = format!("an adapter on {} of layer {layer}", target.module());
        return Err(Error::unsupported(folder, what, "layers without experts"));
    }
    if layer < config.layers && pair.rank > 0 && got == expected {
        return Ok(());
    }
    Err(Error::Shape {
        path: folder.into(),
        tensor: format!("layers.{layer}.{}", target.module()),
        expected: expected.into(),
        got: got.into(),
    })
}
