//! Weights in 8-bit floats with scales, as transformers' `fp8` has them (DeepSeek-V3, arXiv 2412.19437): beside
//! `NAME.weight` stands `NAME.weight_scale_inv`, a factor for each block of the matrix, or one for all of it.

use std::collections::HashMap;
use std::path::Path;

use serde_json::Value;

use super::dequant::Format;
use super::mapped::{Mapped, StoredTensor};
use crate::{Error, Result};

/// Ends the name of a scale.
const SUFFIX: &str = "_scale_inv";

/// Scales by the names of their weights.
#[derive(Default)]
pub(crate) struct Scales {
    /// Rows and columns that share a factor, `weight_block_size`; `None`: all of a matrix.
    block: Option<[usize; 2]>,
    tensors: HashMap<String, (usize, StoredTensor)>,
}

/// Checks that a `quantization_config` is one that [`Scales`] undo.
///
/// # Errors
/// Another method, by its name; scales of activations.
pub(super) fn check(path: &Path, config: &Value) -> Result<()> {
    let text = |name: &str| config.get(name).and_then(Value::as_str);
    let method = text("quant_method").unwrap_or("no method");
    let what = match (method, text("activation_scheme")) {
        ("fp8", None | Some("dynamic")) => return Ok(()),
        ("fp8", Some(scheme)) => {
            format!("quantization_config of 'fp8' with activation_scheme '{scheme}'")
        }
        _ => format!("quantization_config of '{method}'"),
    };
    let supported = "F32, F16, BF16 and fp8 with scales of weights in safetensors, and GGUF";
    Err(Error::unsupported(path, what, supported))
}

impl Scales {
    /// Takes the scales out of a file's tensors.
    ///
    /// # Errors
    /// A scale without its weight, a weight in 8 bits without its scale, blocks that are no two sizes.
    pub fn take(
        path: &Path,
        config: Option<&Value>,
        tensors: &mut HashMap<String, (usize, StoredTensor)>,
    ) -> Result<Self> {
        let block = match config.and_then(|c| c.get("weight_block_size")) {
            None | Some(Value::Null) => None,
            Some(value) => {
                let size = |i: usize| value.get(i)?.as_u64().filter(|n| (1..1 << 30).contains(n));
                let sizes = size(0)
                    .zip(size(1))
                    .map(|(rows, columns)| [rows as usize, columns as usize]);
                let message = || format!("weight_block_size is {value}, not two sizes");
                Some(sizes.ok_or_else(|| Error::format(path, message()))?)
            }
        };
        let names: Vec<String> = tensors
            .keys()
            .filter(|n| n.ends_with(SUFFIX))
            .cloned()
            .collect();
        let mut scales = HashMap::new();
        for name in names {
            let weight = name.trim_end_matches(SUFFIX);
            if tensors.contains_key(weight)
                && let Some(scale) = tensors.remove(&name)
            {
                scales.insert(weight.to_string(), scale);
            }
        }
        let mut small = tensors
            .iter()
            .filter(|(_, (_, t))| t.format == Format::F8_E4M3);
        match small.find(|(name, _)| !scales.contains_key(*name)) {
            None => Ok(Self {
                block,
                tensors: scales,
            }),
            Some((name, _)) => Err(Error::MissingTensor {
                path: path.into(),
                tensor: format!("{name}{SUFFIX}"),
            }),
        }
    }

    /// Multiplies the numbers of a weight by its scales.
    ///
    /// # Errors
    /// Scales of another number than the weight has blocks, or that are not finite.
    pub fn apply(
        &self,
        files: &[Mapped],
        name: &str,
        shape: &[usize],
        data: &mut [f32],
    ) -> Result<()> {
        let Some((file, scale)) = self.tensors.get(name) else {
            return Ok(());
        };
        let factors = files[*file].read(&format!("{name}{SUFFIX}"), scale)?;
        let (&[rows, columns], false) = (shape, data.is_empty()) else {
            return Ok(());
        };
        let [high, wide] = self.block.unwrap_or([rows, columns]);
        let blocks = [rows.div_ceil(high), columns.div_ceil(wide)];
        if factors.len() != blocks[0] * blocks[1] {
            return Err(Error::Shape {
                path: files[*file].path().into(),
                tensor: format!("{name}{SUFFIX}"),
                expected: blocks.into(),
                got: scale.shape.clone(),
            });
        }
        for (row, numbers) in data.chunks_exact_mut(columns).enumerate() {
            let factors = &factors[row / high * blocks[1]..];
            for (numbers, factor) in numbers.chunks_mut(wide).zip(factors) {
                numbers.iter_mut().for_each(|v| *v *= factor);
            }
        }
        Ok(())
    }
}
