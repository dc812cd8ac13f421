//! Writing models and adapters so that Python's `transformers` and `peft` read them.
//!
//! Everything is written beside its place and renamed into it, tensor by tensor: a killed process
//! leaves nothing that looks valid, and a model needs memory for one tensor.

pub mod hf;
pub mod peft;

use std::collections::HashMap;
use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

use half::{bf16, f16};
use safetensors::tensor::{Dtype, Metadata, TensorInfo};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::{Error, Result};

/// Number format of written tensors.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Precision {
    /// 32-bit floats: exactly what was computed (default).
    #[default]
    F32,
    /// 16-bit floats, rounded to nearest.
    F16,
    /// 16-bit floats with the exponent of 32-bit ones, rounded to nearest.
    Bf16,
}

impl Precision {
    fn dtype(self) -> Dtype {
        match self {
            Self::F32 => Dtype::F32,
            Self::F16 => Dtype::F16,
            Self::Bf16 => Dtype::BF16,
        }
    }

    /// The name that `config.json` uses.
    fn torch(self) -> &'static str {
        match self {
            Self::F32 => "float32",
            Self::F16 => "float16",
            Self::Bf16 => "bfloat16",
        }
    }

    fn bytes(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::F16 | Self::Bf16 => 2,
        }
    }

    fn largest(self) -> f32 {
        match self {
            Self::F32 => f32::MAX,
            Self::F16 => f16::MAX.to_f32(),
            Self::Bf16 => bf16::MAX.to_f32(),
        }
    }

    fn encode(self, data: &[f32]) -> Vec<u8> {
        match self {
            Self::F32 => data.iter().flat_map(|v| v.to_le_bytes()).collect(),
            Self::F16 => data
                .iter()
                .flat_map(|v| f16::from_f32(*v).to_le_bytes())
                .collect(),
            Self::Bf16 => data
                .iter()
                .flat_map(|v| bf16::from_f32(*v).to_le_bytes())
                .collect(),
        }
    }
}

/// Makes the folder `out` whole or not at all: `fill` writes into a folder beside it, which is
/// renamed at the end.
///
/// # Errors
/// When `out` is a file or holds anything already, or what `fill` reports.
pub fn new_folder(out: &Path, fill: impl FnOnce(&Path) -> Result<()>) -> Result<()> {
    let taken = |message: &str| Err(Error::format(out, message));
    if let Ok(metadata) = fs::metadata(out) {
        if !metadata.is_dir() {
            return taken("there is a file of that name; choose another folder");
        }
        if fs::read_dir(out).map_err(Error::io(out))?.next().is_some() {
            return taken("the folder is not empty; choose another or remove it");
        }
    }
    let Some(name) = out.file_name() else {
        return taken("not the name of a folder");
    };
    let beside = out.with_file_name(format!(".{}.part", name.to_string_lossy()));
    if beside.exists() {
        // Left by a process that was killed.
        fs::remove_dir_all(&beside).map_err(Error::io(&beside))?;
    }
    fs::create_dir_all(&beside).map_err(Error::io(&beside))?;
    let written = fill(&beside).and_then(|()| {
        if out.exists() {
            fs::remove_dir(out).map_err(Error::io(out))?;
        }
        fs::rename(&beside, out).map_err(Error::io(out))
    });
    if written.is_err() {
        // The first error is the one to report; a left-over `.part` is never read.
        drop(fs::remove_dir_all(&beside));
    }
    written
}

/// A safetensors file that is written tensor by tensor.
pub(crate) struct SafetensorsWriter {
    path: PathBuf,
    file: BufWriter<File>,
    precision: Precision,
    /// What is still to come, last first.
    waiting: Vec<(String, usize)>,
}

impl SafetensorsWriter {
    /// Writes the header for tensors of these names and shapes.
    pub(crate) fn create(
        path: &Path,
        tensors: &[(String, Vec<usize>)],
        precision: Precision,
    ) -> Result<Self> {
        let mut at = 0;
        let mut waiting = Vec::new();
        let mut infos = Vec::new();
        for (name, shape) in tensors {
            let numbers: usize = shape.iter().product();
            let end = at + numbers * precision.bytes();
            let info = TensorInfo {
                dtype: precision.dtype(),
                shape: shape.clone(),
                data_offsets: (at, end),
            };
            infos.push((name.clone(), info));
            waiting.push((name.clone(), numbers));
            at = end;
        }
        waiting.reverse();
        let invalid = |e: &dyn std::fmt::Display| Error::format(path, format!("header: {e}"));
        // transformers refuses a file that does not say this.
        let says = HashMap::from([("format".to_string(), "pt".to_string())]);
        let header = Metadata::new(Some(says), infos).map_err(|e| invalid(&e))?;
        let mut header = serde_json::to_vec(&header).map_err(|e| invalid(&e))?;
        header.resize(header.len().next_multiple_of(8), b' ');
        let mut file = BufWriter::new(File::create(path).map_err(Error::io(path))?);
        file.write_all(&(header.len() as u64).to_le_bytes())
            .and_then(|()| file.write_all(&header))
            .map_err(Error::io(path))?;
        Ok(Self {
            path: path.into(),
            file,
            precision,
            waiting,
        })
    }

    /// Writes the next tensor.
    pub(crate) fn write(&mut self, name: &str, data: &[f32]) -> Result<()> {
        let next = self.waiting.pop();
        if next.as_ref() != Some(&(name.to_string(), data.len())) {
            let message = format!(
                "tensor '{name}' of {} numbers where {next:?} was to come",
                data.len()
            );
            return Err(Error::format(&self.path, message));
        }
        let largest = self.precision.largest();
        if let Some(v) = data.iter().find(|v| v.is_nan() || v.abs() > largest) {
            let precision = self.precision;
            let message = format!("tensor '{name}': {v} does not fit into {precision:?}");
            return Err(Error::format(&self.path, message));
        }
        // In pieces: a second copy of a large tensor is not needed.
        for piece in data.chunks(1 << 20) {
            let bytes = self.precision.encode(piece);
            self.file.write_all(&bytes).map_err(Error::io(&self.path))?;
        }
        Ok(())
    }

    /// Brings everything to the disk.
    pub(crate) fn finish(self) -> Result<()> {
        if let Some((name, _)) = self.waiting.last() {
            return Err(Error::format(
                &self.path,
                format!("tensor '{name}' was not written"),
            ));
        }
        let file = self.file.into_inner().map_err(|e| e.into_error());
        file.and_then(|f| f.sync_all())
            .map_err(Error::io(&self.path))
    }
}

/// Writes a JSON document.
fn write_json(path: &Path, document: &Value) -> Result<()> {
    let text = format!("{document:#}\n");
    fs::write(path, text).map_err(Error::io(path))
}
