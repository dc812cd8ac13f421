//! Where a training stands, in one safetensors file: parameters, both moments of the optimiser, and as
//! metadata whatever else the recipe needs to go on.

use std::collections::HashMap;
use std::path::Path;

use lm::tuning::AdamWState;
use safetensors::tensor::{Dtype, SafeTensors, TensorView};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::{Error, Result};

/// A training's state; `T` is the recipe's own part.
#[derive(Debug, Clone, PartialEq)]
pub struct Checkpoint<T> {
    /// The adapter's parameters.
    pub values: Vec<f32>,
    /// The optimiser's memory.
    pub adam: AdamWState,
    /// The rest.
    pub progress: T,
}

const PROGRESS: &str = "progress";
const STEP: &str = "step";
/// Most steps that a checkpoint may have made (ours).
const STEPS: u64 = 1 << 40;

impl<T: Serialize + DeserializeOwned> Checkpoint<T> {
    /// Writes the file beside its place and renames it, so that a killed process leaves the old one.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn save(&self, path: &Path) -> Result<()> {
        let failed = |e: &dyn std::fmt::Display| Error::Checkpoint {
            path: path.to_path_buf(),
            message: e.to_string(),
        };
        let bytes =
            |values: &[f32]| -> Vec<u8> { values.iter().flat_map(|v| v.to_le_bytes()).collect() };
        let named = [
            ("values", &self.values),
            ("mean", &self.adam.mean),
            ("square", &self.adam.square),
        ];
        let data: Vec<(&str, Vec<u8>)> = named.map(|(n, v)| (n, bytes(v))).into();
        let mut views = Vec::new();
        for (name, data) in &data {
            let view = TensorView::new(Dtype::F32, vec![data.len() / 4], data);
            views.push((*name, view.map_err(|e| failed(&e))?));
        }
        let progress = serde_json::to_string(&self.progress).map_err(|e| failed(&e))?;
        let metadata = HashMap::from([
            (PROGRESS.to_string(), progress),
            (STEP.to_string(), self.adam.step.to_string()),
        ]);
        let file = safetensors::serialize(views, Some(metadata)).map_err(|e| failed(&e))?;
        let beside = path.with_extension("part");
        std::fs::write(&beside, file).map_err(|e| failed(&e))?;
        std::fs::rename(&beside, path).map_err(|e| failed(&e))
    }

    /// Reads a file that [`Self::save`] wrote; `None` where there is none.
    ///
    /// # Errors
    /// A damaged file, one with NaN or infinity, or one that another version or training wrote.
    pub fn load(path: &Path) -> Result<Option<Self>> {
        let failed = |e: &dyn std::fmt::Display| Error::Checkpoint {
            path: path.to_path_buf(),
            message: format!("{e}; remove the file to start anew"),
        };
        match std::fs::metadata(path) {
            Ok(metadata) if !metadata.is_file() => return Err(failed(&"not a regular file")),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            _ => {}
        }
        let file = std::fs::read(path).map_err(|e| failed(&e))?;
        let tensors = SafeTensors::deserialize(&file).map_err(|e| failed(&e))?;
        let (_, header) = SafeTensors::read_metadata(&file).map_err(|e| failed(&e))?;
        let metadata = header.metadata().clone().unwrap_or_default();
        let entry = |name: &str| {
            let missing = || failed(&format!("metadata '{name}' is missing"));
            metadata.get(name).ok_or_else(missing)
        };
        let numbers = |name: &str| -> Result<Vec<f32>> {
            let tensor = tensors.tensor(name).map_err(|e| failed(&e))?;
            if tensor.dtype() != Dtype::F32 {
                return Err(failed(&format!("tensor '{name}' is not F32")));
            }
            let parts = tensor.data().chunks_exact(4);
            let numbers: Vec<f32> = parts
                .map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]]))
                .collect();
            match numbers.iter().position(|v| !v.is_finite()) {
                None => Ok(numbers),
                Some(i) => Err(failed(&format!(
                    "tensor '{name}' holds {} at {i}",
                    numbers[i]
                ))),
            }
        };
        let values = numbers("values")?;
        let adam = AdamWState {
            step: entry(STEP)?.parse().map_err(|e| failed(&e))?,
            mean: numbers("mean")?,
            square: numbers("square")?,
        };
        for (name, moment) in [("mean", &adam.mean), ("square", &adam.square)] {
            // Before the first step there are none.
            if moment.len() != values.len() && !(moment.is_empty() && adam.step == 0) {
                return Err(failed(&format!(
                    "tensor '{name}' has {} numbers, 'values' {}",
                    moment.len(),
                    values.len()
                )));
            }
        }
        if adam.step > STEPS {
            return Err(failed(&format!("step {}, over {STEPS}", adam.step)));
        }
        Ok(Some(Self {
            values,
            adam,
            progress: serde_json::from_str(entry(PROGRESS)?).map_err(|e| failed(&e))?,
        }))
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    #[test]
    fn comes_back_as_it_was() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("checkpoint.safetensors");
        assert!(Checkpoint::<u32>::load(&path).unwrap().is_none());
        let saved = Checkpoint {
            values: vec![1.0, f32::MIN_POSITIVE, -0.0],
            adam: AdamWState {
                step: 7,
                mean: vec![0.1, 0.2, 0.3],
                square: vec![0.0, 1e-30, 2.0],
            },
            progress: vec!["a".to_string()],
        };
        saved.save(&path).unwrap();
        assert_eq!(Checkpoint::load(&path).unwrap(), Some(saved));
        for (mean, square, step) in [(2, 3, 7), (3, 4, 7), (0, 0, 7), (3, 3, u64::MAX)] {
            let (mean, square) = (vec![0.5; mean], vec![0.5; square]);
            let adam = AdamWState { step, mean, square };
            let wrong = Checkpoint {
                values: vec![1.0; 3],
                adam,
                progress: 1u32,
            };
            let other = folder.path().join("wrong.safetensors");
            wrong.save(&other).unwrap();
            let error = Checkpoint::<u32>::load(&other).unwrap_err().to_string();
            assert!(error.contains("wrong.safetensors: "), "{error}");
        }
        let bytes = std::fs::read(&path).unwrap();
        std::fs::write(&path, &bytes[..bytes.len() / 2]).unwrap();
        let error = Checkpoint::<Vec<String>>::load(&path)
            .unwrap_err()
            .to_string();
        assert!(error.contains("checkpoint.safetensors") && error.contains("remove"));
    }
}
