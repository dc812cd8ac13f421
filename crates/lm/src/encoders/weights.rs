//! The safetensors of an encoder's folder: every float tensor is read once, or refused.

use std::cell::RefCell;
use std::collections::{HashMap, HashSet};
use std::path::{Path, PathBuf};

use burn::tensor::{Device, Tensor, TensorData};
use safetensors::tensor::{Dtype, Metadata};

use super::layers::{LayerNorm, Linear};
use crate::load::dequant::Format;
use crate::load::hf::shards;
use crate::load::mapped::{Mapped, StoredTensor};
use crate::{Error, Result};

/// Hands out an encoder's tensors on a device.
pub(super) struct Weights {
    folder: PathBuf,
    device: Device,
    files: Vec<Mapped>,
    tensors: HashMap<String, (usize, StoredTensor)>,
    read: RefCell<HashSet<String>>,
}

/// A tensor's name as transformers has it today: old checkpoints call the parts of a norm gamma and beta.
fn today(name: &str) -> String {
    for (old, new) in [
        ("LayerNorm.gamma", "LayerNorm.weight"),
        ("LayerNorm.beta", "LayerNorm.bias"),
    ] {
        if let Some(start) = name.strip_suffix(old) {
            return format!("{start}{new}");
        }
    }
    name.into()
}

/// The float tensors of a file. Integers are constants, such as position ids.
fn tensors(file: &Mapped) -> Result<Vec<(String, StoredTensor)>> {
    let invalid = |e: String| {
        let message = format!("damaged safetensors ({e}); fetch the file again");
        Error::format(file.path(), message)
    };
    let read = safetensors::SafeTensors::read_metadata(file.bytes());
    let (header, metadata): (usize, Metadata) = read.map_err(|e| invalid(e.to_string()))?;
    let data = header + 8;
    let mut tensors = Vec::new();
    for (name, info) in metadata.tensors() {
        let format = match info.dtype {
            Dtype::F32 => Format::F32,
            Dtype::F16 => Format::F16,
            Dtype::BF16 => Format::BF16,
            Dtype::I64 | Dtype::I32 | Dtype::BOOL => continue,
            other => {
                let what = format!("tensor '{name}' of type {other:?}");
                return Err(Error::unsupported(file.path(), what, "F32, F16, BF16"));
            }
        };
        let (start, end) = info.data_offsets;
        let elements = info.shape.iter().try_fold(1usize, |n, &m| n.checked_mul(m));
        let bytes = elements.and_then(|n| format.bytes(n));
        if end > file.bytes().len() - data || bytes != end.checked_sub(start) {
            return Err(invalid(format!("tensor '{name}' lies at {start}..{end}")));
        }
        let stored = StoredTensor {
            shape: info.shape.clone(),
            format,
            range: data + start..data + end,
        };
        tensors.push((today(&name), stored));
    }
    Ok(tensors)
}

impl Weights {
    /// Opens the safetensors of a folder; only their headers are read.
    ///
    /// # Errors
    /// Files that are missing or damaged.
    pub(super) fn open(folder: &Path, device: &Device) -> Result<Self> {
        let mut weights = Self {
            folder: folder.into(),
            device: device.clone(),
            files: Vec::new(),
            tensors: HashMap::new(),
            read: RefCell::default(),
        };
        for path in shards(folder)? {
            let file = Mapped::open(&path)?;
            for (name, tensor) in tensors(&file)? {
                let stored = (weights.files.len(), tensor);
                if weights.tensors.insert(name.clone(), stored).is_some() {
                    let message = format!("tensor '{name}' comes twice");
                    return Err(Error::format(&path, message));
                }
            }
            weights.files.push(file);
        }
        Ok(weights)
    }

    /// Where the tensors go.
    pub(super) fn device(&self) -> &Device {
        &self.device
    }

    /// Whether there is such a tensor.
    pub(super) fn has(&self, name: &str) -> bool {
        self.tensors.contains_key(name)
    }

    fn get(&self, name: &str, expected: &[usize]) -> Result<TensorData> {
        let Some((file, tensor)) = self.tensors.get(name) else {
            return Err(Error::MissingTensor {
                path: self.folder.clone(),
                tensor: name.into(),
            });
        };
        if tensor.shape != expected {
            return Err(Error::Shape {
                path: self.folder.clone(),
                tensor: name.into(),
                expected: expected.into(),
                got: tensor.shape.clone(),
            });
        }
        self.read.borrow_mut().insert(name.into());
        let data = self.files[*file].read(name, tensor)?;
        Ok(TensorData::new(data, expected.to_vec()))
    }

    /// `[n]`.
    pub(super) fn vector(&self, name: &str, n: usize) -> Result<Tensor<1>> {
        Ok(Tensor::from_data(self.get(name, &[n])?, &self.device))
    }

    /// `[rows, columns]`.
    pub(super) fn matrix(&self, name: &str, shape: [usize; 2]) -> Result<Tensor<2>> {
        Ok(Tensor::from_data(self.get(name, &shape)?, &self.device))
    }

    /// The projection called `name`, `[outputs, inputs]`.
    pub(super) fn linear(
        &self,
        name: &str,
        [outputs, inputs]: [usize; 2],
        bias: bool,
    ) -> Result<Linear> {
        let bias = bias.then(|| self.vector(&format!("{name}.bias"), outputs));
        Ok(Linear {
            matrix: self
                .matrix(&format!("{name}.weight"), [outputs, inputs])?
                .transpose(),
            bias: bias.transpose()?,
        })
    }

    /// The norm called `name` over `n` numbers.
    pub(super) fn norm(&self, name: &str, n: usize, bias: bool, eps: f32) -> Result<LayerNorm> {
        let bias = bias.then(|| self.vector(&format!("{name}.bias"), n));
        Ok(LayerNorm {
            weight: self.vector(&format!("{name}.weight"), n)?,
            bias: bias.transpose()?,
            eps,
        })
    }

    /// Refuses a folder that holds tensors which were not read, unless they belong to `others`: starts of the names of
    /// what the model has beside the encoder, such as heads for other tasks.
    ///
    /// # Errors
    /// Names the first of them.
    pub(super) fn finish(self, others: &[&str]) -> Result<()> {
        let read = self.read.borrow();
        let mut left: Vec<&String> = self.tensors.keys().collect();
        left.retain(|name| !read.contains(*name) && !others.iter().any(|o| name.starts_with(o)));
        left.sort();
        match left.first() {
            None => Ok(()),
            Some(first) => Err(Error::unsupported(
                &self.folder,
                format!("{} unknown tensor(s), the first '{first}',", left.len()),
                super::config::FAMILIES,
            )),
        }
    }
}
