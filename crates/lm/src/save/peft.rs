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
    /// #     qkv_bias: false, output_bias: false, mlp_bias: false, qk_norm: false, sliding_window: None };
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
        let rank = usual_rank(self);
        let Some(rank) = rank else {
            return Err(Error::format(folder, "the adapter has no pairs to write"));
        };
        let module =
            |(layer, target): (usize, Target)| format!("layers.{layer}.{}", target.module());
        let other: BTreeMap<String, usize> = places
            .iter()
            .filter(|p| self.pairs[p].rank != rank)
            .map(|p| (module(*p), self.pairs[p].rank))
            .collect();
        let mut targets: Vec<Target> = places.iter().map(|(_, target)| *target).collect();
        targets.sort();
        targets.dedup();
        // Short names mean "in every layer".
        let everywhere = places.len() == targets.len() * config.layers;
        let modules: Vec<String> = match everywhere {
            true => targets.iter().map(|t| short(*t).to_string()).collect(),
            false => places.iter().map(|p| module(*p)).collect(),
        };
        let document = json!({
            "peft_type": "LORA",
            "task_type": "CAUSAL_LM",
            "base_model_name_or_path": base,
            "r": rank,
            "lora_alpha": rank,
            "rank_pattern": other,
            "alpha_pattern": other,
            "target_modules": modules,
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
            for &(layer, target) in &places {
                let (inputs, outputs) = target.size(config);
                let rank = self.pairs[&(layer, target)].rank;
                let name = format!("base_model.model.model.{}", module((layer, target)));
                tensors.push((format!("{name}.lora_A.weight"), vec![rank, inputs]));
                tensors.push((format!("{name}.lora_B.weight"), vec![outputs, rank]));
            }
            let path = beside.join("adapter_model.safetensors");
            let mut file = SafetensorsWriter::create(&path, &tensors, precision)?;
            for (matrix, names) in places.iter().zip(tensors.chunks(2)) {
                let (inputs, outputs) = matrix.1.size(config);
                let LowRank { rank, a, b } = &self.pairs[matrix];
                file.write(&names[0].0, &transposed(a, inputs, *rank))?;
                file.write(&names[1].0, &transposed(b, *rank, outputs))?;
            }
            file.finish()
        })
    }
}

/// `q_proj` of `self_attn.q_proj`.
fn short(target: Target) -> &'static str {
    let module = target.module();
    module.rsplit_once('.').map_or(module, |(_, name)| name)
}

/// The rank of most pairs, the larger where two are equally frequent.
fn usual_rank(adapter: &Adapter) -> Option<usize> {
    let mut counts: BTreeMap<usize, usize> = BTreeMap::new();
    for pair in adapter.pairs.values() {
        *counts.entry(pair.rank).or_default() += 1;
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
