//! Names and shapes of a decoder's tensors: those they have inside, and how files of Hugging Face hold them.
//!
//! Inside, every projection stands alone, also where files join several ([`Layout`]); so does every expert.

use std::collections::HashMap;
use std::path::Path;

use super::mapped::StoredTensor;
use crate::adapter::Target;
use crate::config::{DecoderConfig, Layout, Names, Norms};
use crate::{Error, Result};

/// Names of the norms of a block, without `.weight`.
pub(crate) struct NormNames {
    pub attention: &'static str,
    /// Behind the attention, where there is one before it, too.
    pub attention_post: Option<&'static str>,
    pub feed_forward: &'static str,
    pub feed_forward_post: Option<&'static str>,
}

/// A tensor as a file of Hugging Face holds it: these tensors of the inside, one below the other.
pub(crate) struct FileTensor {
    pub name: String,
    pub shape: Vec<usize>,
    /// Name and shape.
    pub parts: Vec<(String, Vec<usize>)>,
}

impl DecoderConfig {
    pub(crate) fn norm_names(&self) -> NormNames {
        let names = |attention, attention_post, feed_forward, feed_forward_post| NormNames {
            attention,
            attention_post,
            feed_forward,
            feed_forward_post,
        };
        match (self.family.norms, self.family.layout.names) {
            (Norms::Before, _) => names("input_layernorm", None, "post_attention_layernorm", None),
            (Norms::After, _) => names(
                "post_attention_layernorm",
                None,
                "post_feedforward_layernorm",
                None,
            ),
            (Norms::Around, Names::Glm) => names(
                "input_layernorm",
                Some("post_self_attn_layernorm"),
                "post_attention_layernorm",
                Some("post_mlp_layernorm"),
            ),
            (Norms::Around, _) => names(
                "input_layernorm",
                Some("post_attention_layernorm"),
                "pre_feedforward_layernorm",
                Some("post_feedforward_layernorm"),
            ),
        }
    }

    /// Widths of the norms of q and k, where there are some.
    pub(crate) fn qk_norm_widths(&self) -> Option<[usize; 2]> {
        let heads = match self.family.wide_qk_norm {
            true => [self.heads, self.kv_heads],
            false => [1, 1],
        };
        self.qk_norm
            .then(|| heads.map(|heads| heads * self.head_dim))
    }

    /// A projection has a bias.
    pub(crate) fn has_bias(&self, target: Target) -> bool {
        match target {
            Target::Query | Target::Key | Target::Value => self.qkv_bias,
            Target::Output => self.output_bias,
            Target::Gate | Target::Up | Target::Down => self.mlp_bias,
        }
    }

    /// Names and shapes of a decoder's tensors, in the order of a forward pass. Names are Hugging Face's, but what
    /// files of some families join stands alone here: `q_proj`, `k_proj` and `v_proj`, `gate_proj` and `up_proj`, and
    /// every expert, `mlp.experts.0.gate_proj`.
    pub fn tensors(&self) -> Vec<(String, Vec<usize>)> {
        let mut all = vec![(
            "model.embed_tokens.weight".to_string(),
            vec![self.vocab_size, self.hidden_size],
        )];
        let norms = self.norm_names();
        for layer in 0..self.layers {
            let mut add = |part: &str, shape: Vec<usize>| {
                all.push((format!("model.layers.{layer}.{part}"), shape));
            };
            let around = [
                Some(norms.attention),
                norms.attention_post,
                Some(norms.feed_forward),
                norms.feed_forward_post,
            ];
            for norm in around.into_iter().flatten() {
                add(&format!("{norm}.weight"), vec![self.hidden_size]);
            }
            if let Some([query, key]) = self.qk_norm_widths() {
                add("self_attn.q_norm.weight", vec![query]);
                add("self_attn.k_norm.weight", vec![key]);
            }
            for target in Target::ALL {
                if self.experts(layer).is_some() && target.is_feed_forward() {
                    continue;
                }
                let (inputs, outputs) = target.size(self);
                add(
                    &format!("{}.weight", target.module()),
                    vec![outputs, inputs],
                );
                if self.has_bias(target) {
                    add(&format!("{}.bias", target.module()), vec![outputs]);
                }
            }
            self.expert_tensors(layer, &mut add);
        }
        all.push(("model.norm.weight".into(), vec![self.hidden_size]));
        if !self.tied_head {
            let shape = vec![self.vocab_size, self.hidden_size];
            all.push(("lm_head.weight".into(), shape));
        }
        all
    }

    fn expert_tensors(&self, layer: usize, add: &mut impl FnMut(&str, Vec<usize>)) {
        let Some(experts) = self.experts(layer) else {
            return;
        };
        let hidden = self.hidden_size;
        let mut feed = |module: &str, width: usize| {
            add(&format!("{module}.gate_proj.weight"), vec![width, hidden]);
            add(&format!("{module}.up_proj.weight"), vec![width, hidden]);
            add(&format!("{module}.down_proj.weight"), vec![hidden, width]);
        };
        for expert in 0..experts.count {
            feed(&format!("mlp.experts.{expert}"), experts.intermediate_size);
        }
        if let Some(width) = experts.shared {
            feed("mlp.shared_expert", width);
            add("mlp.shared_expert_gate.weight", vec![1, hidden]);
        }
        add("mlp.gate.weight", vec![experts.count, hidden]);
    }

    /// The same as a file of Hugging Face holds them.
    pub(crate) fn file_tensors(&self) -> Vec<FileTensor> {
        let layout = self.family.layout;
        let mut all: Vec<FileTensor> = Vec::new();
        for (name, shape) in self.tensors() {
            let file_name = file_name(layout, &name);
            match all.last_mut().filter(|last| last.name == file_name) {
                Some(last) => {
                    last.shape[0] += shape[0];
                    last.parts.push((name, shape));
                }
                None => all.push(FileTensor {
                    name: file_name,
                    shape: shape.clone(),
                    parts: vec![(name, shape)],
                }),
            }
        }
        all
    }

    /// [`half_split`] for a weight or a bias whose rows are rotated; others stay as they are.
    pub(crate) fn half_split(&self, name: &str, data: &mut [f32], forward: bool) {
        if !name.contains(".q_proj.") && !name.contains(".k_proj.") {
            return;
        }
        let bias = name.ends_with(".bias");
        let columns = if bias { 1 } else { self.hidden_size };
        half_split(self, columns, data, forward);
    }

    /// Brings the numbers of a tensor from a file's conventions to the inside's.
    pub(crate) fn inward(&self, name: &str, data: &mut [f32]) {
        let layout = self.family.layout;
        if layout.interleaved {
            self.half_split(name, data, true);
        }
        if layout.norm_offset && name.ends_with("norm.weight") {
            data.iter_mut().for_each(|v| *v += 1.0);
        }
    }

    /// Takes [`Self::inward`] back.
    pub(crate) fn outward(&self, name: &str, data: &mut [f32]) {
        let layout = self.family.layout;
        if layout.interleaved {
            self.half_split(name, data, false);
        }
        if layout.norm_offset && name.ends_with("norm.weight") {
            data.iter_mut().for_each(|v| *v -= 1.0);
        }
    }
}

/// Brings rows that are rotated from the interleaved layout, row `2 j + half` of a head, to the half-split one, row
/// `half · rotated / 2 + j`; or back.
pub(crate) fn half_split(c: &DecoderConfig, columns: usize, data: &mut [f32], forward: bool) {
    let rotated = c.rotated();
    let mut turned = vec![0.0; rotated * columns];
    for rows in data.chunks_exact_mut(c.head_dim * columns) {
        for row in 0..rotated {
            let split = row % 2 * (rotated / 2) + row / 2;
            let (from, to) = if forward { (row, split) } else { (split, row) };
            let source = &rows[from * columns..(from + 1) * columns];
            turned[to * columns..(to + 1) * columns].copy_from_slice(source);
        }
        rows[..rotated * columns].copy_from_slice(&turned);
    }
}

/// What a file calls the tensor that holds the inside's `name`.
fn file_name(layout: Layout, name: &str) -> String {
    let replaced = |from: &[&str], to: &str| {
        let part = from.iter().find(|part| name.contains(**part))?;
        Some(name.replace(part, to))
    };
    let joined = [
        (
            layout.fused_qkv,
            &[".q_proj.", ".k_proj.", ".v_proj."][..],
            ".qkv_proj.",
        ),
        (
            layout.fused_gate_up,
            &[".gate_proj.", ".up_proj."][..],
            ".gate_up_proj.",
        ),
    ];
    let mut joined = joined.into_iter().filter(|(joins, ..)| *joins);
    let fused = joined.find_map(|(_, parts, fused)| replaced(parts, fused));
    if let Some(fused) = fused {
        return fused;
    }
    if layout.names == Names::Mixtral && name.contains(".mlp.") {
        return name
            .replace(".mlp.", ".block_sparse_moe.")
            .replace(".gate_proj.", ".w1.")
            .replace(".down_proj.", ".w2.")
            .replace(".up_proj.", ".w3.");
    }
    name.into()
}

/// A file's tensors by the inside's names: what is joined there is cut into its parts, which share its bytes.
///
/// # Errors
/// A joined tensor of another size than its parts together; two tensors of one name.
pub(super) fn apart(
    path: &Path,
    config: &DecoderConfig,
    tensors: HashMap<String, (usize, StoredTensor)>,
) -> Result<HashMap<String, (usize, StoredTensor)>> {
    let layout = config.family.layout;
    let joins = layout.fused_qkv || layout.fused_gate_up || config.family.experts.is_some();
    if !joins {
        return Ok(tensors);
    }
    let mut all = HashMap::new();
    for (name, (file, tensor)) in tensors {
        for (part, tensor) in parts(path, config, name, tensor)? {
            if all.insert(part.clone(), (file, tensor)).is_some() {
                let message = format!("two tensors hold '{part}'");
                return Err(Error::format(path, message));
            }
        }
    }
    Ok(all)
}

fn parts(
    path: &Path,
    config: &DecoderConfig,
    name: String,
    tensor: StoredTensor,
) -> Result<Vec<(String, StoredTensor)>> {
    let layout = config.family.layout;
    let named = |from: &str, to: &[&str]| -> Vec<String> {
        to.iter().map(|to| name.replace(from, to)).collect()
    };
    let size = |target: Target| target.size(config).1;
    if layout.fused_qkv && name.contains(".qkv_proj.") {
        let names = named(".qkv_proj.", &[".q_proj.", ".k_proj.", ".v_proj."]);
        let rows = [Target::Query, Target::Key, Target::Value].map(size);
        return cut(path, &name, &tensor, names, &rows);
    }
    if layout.fused_gate_up && name.contains(".mlp.gate_up_proj.") {
        let names = named(".gate_up_proj.", &[".gate_proj.", ".up_proj."]);
        return cut(path, &name, &tensor, names, &[config.intermediate_size; 2]);
    }
    let Some(experts) = &config.family.experts else {
        return Ok(vec![(name, tensor)]);
    };
    let Some((before, part)) = name.split_once(".mlp.experts.") else {
        let name = match layout.names {
            Names::Mixtral => name
                .replace(".block_sparse_moe.", ".mlp.")
                .replace(".w1.", ".gate_proj.")
                .replace(".w2.", ".down_proj.")
                .replace(".w3.", ".up_proj."),
            _ => name,
        };
        return Ok(vec![(name, tensor)]);
    };
    // All experts of a layer in one tensor, by transformers' names and by those made of GGUF's.
    let width = experts.intermediate_size;
    let (projections, rows): (&[&str], usize) = match part.trim_end_matches(".weight") {
        "gate_up_proj" => (&["gate_proj", "up_proj"], width),
        "gate_proj" => (&["gate_proj"], width),
        "up_proj" => (&["up_proj"], width),
        "down_proj" => (&["down_proj"], config.hidden_size),
        _ => return Ok(vec![(name, tensor)]),
    };
    let names = (0..experts.count).flat_map(|expert| {
        let of = move |p: &&str| format!("{before}.mlp.experts.{expert}.{p}.weight");
        projections.iter().map(of)
    });
    let names: Vec<String> = names.collect();
    let rows = vec![rows; names.len()];
    cut(path, &name, &tensor, names, &rows)
}

/// Cuts a tensor into parts of some rows each.
fn cut(
    path: &Path,
    name: &str,
    tensor: &StoredTensor,
    names: Vec<String>,
    rows: &[usize],
) -> Result<Vec<(String, StoredTensor)>> {
    let (columns, total) = match tensor.shape.as_slice() {
        [total] => (None, *total),
        shape => (
            shape.last().copied(),
            shape[..shape.len() - 1].iter().product(),
        ),
    };
    let wrong = || Error::Shape {
        path: path.into(),
        tensor: name.into(),
        expected: [rows.iter().sum()].into_iter().chain(columns).collect(),
        got: tensor.shape.clone(),
    };
    let bytes = tensor
        .format
        .bytes(columns.unwrap_or(1))
        .ok_or_else(wrong)?;
    if rows.iter().sum::<usize>() != total {
        return Err(wrong());
    }
    let mut start = tensor.range.start;
    let part = |(name, rows): (String, &usize)| {
        let range = start..start + rows * bytes;
        start = range.end;
        let part = StoredTensor {
            shape: [*rows].into_iter().chain(columns).collect(),
            format: tensor.format,
            range,
        };
        (name, part)
    };
    Ok(names.into_iter().zip(rows).map(part).collect())
}
