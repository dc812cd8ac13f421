//! A mapped file and the tensors in it.

use std::ops::Range;
use std::path::{Path, PathBuf};

use kernels::{Isa, math};
use memmap2::Mmap;

use super::dequant::Format;
use crate::{Error, Result};

/// A file in the address space; its pages are read on demand and can be given back.
#[derive(Debug)]
pub struct Mapped {
    path: PathBuf,
    map: Option<Mmap>,
}

/// Where a tensor lies in its file.
#[derive(Debug, Clone, PartialEq)]
pub struct StoredTensor {
    /// Row-major shape, `[out, in]` for a matrix.
    pub shape: Vec<usize>,
    /// Number format.
    pub format: Format,
    /// Bytes in the file.
    pub range: Range<usize>,
}

impl Mapped {
    /// Maps `path` for reading.
    ///
    /// # Errors
    /// [`Error::Io`] when it cannot be opened.
    pub fn open(path: &Path) -> Result<Self> {
        let file = std::fs::File::open(path).map_err(Error::io(path))?;
        let metadata = file.metadata().map_err(Error::io(path))?;
        if !metadata.is_file() {
            return Err(Error::format(path, "not a regular file"));
        }
        // SAFETY: model files are replaced by rename, not written in place, while they are in use.
        let map = (metadata.len() > 0).then(|| unsafe { Mmap::map(&file) });
        let map = map.transpose().map_err(Error::io(path))?;
        Ok(Self {
            path: path.into(),
            map,
        })
    }

    /// No file, under the name of one: all tensors in it are zeros.
    pub(crate) fn empty(path: &Path) -> Self {
        Self {
            path: path.into(),
            map: None,
        }
    }

    /// The file's path.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The file's content.
    pub fn bytes(&self) -> &[u8] {
        self.map.as_deref().unwrap_or_default()
    }

    /// A tensor's bytes.
    pub(super) fn raw(&self, tensor: &StoredTensor) -> &[u8] {
        &self.bytes()[tensor.range.clone()]
    }

    /// Decodes the tensor `name` to f32 and gives its pages back, so that file and weights are not both
    /// resident.
    ///
    /// # Errors
    /// [`Error::NotFinite`] when one of its numbers is NaN or infinite.
    pub fn read(&self, name: &str, tensor: &StoredTensor) -> Result<Vec<f32>> {
        /// Numbers that are decoded and then looked at while they are in a core's cache; whole blocks.
        const PART: usize = 8192;
        let mut out = vec![0.0; tensor.shape.iter().product()];
        let (weights, bytes) = tensor.format.block();
        let raw = self.bytes()[tensor.range.clone()].chunks(PART / weights * bytes);
        let mut finite = true;
        for (raw, out) in raw.zip(out.chunks_mut(PART)) {
            tensor.format.decode(raw, out);
            finite &= math::all_finite(Isa::best(), out);
        }
        self.release(&tensor.range);
        if !finite {
            all_finite(&self.path, name, &tensor.shape, &out)?;
        }
        Ok(out)
    }

    #[cfg(unix)]
    fn release(&self, range: &Range<usize>) {
        if let Some(map) = &self.map {
            // SAFETY: the mapping is read-only and backed by the file: dropped pages are read again.
            // Advice is only a hint, so a refusal changes nothing.
            let _hint = unsafe {
                map.unchecked_advise_range(
                    memmap2::UncheckedAdvice::DontNeed,
                    range.start,
                    range.len(),
                )
            };
        }
    }

    #[cfg(not(unix))]
    fn release(&self, _range: &Range<usize>) {}
}

/// Refuses values of the tensor `name`, row-major in `shape`, of which one is NaN or infinite.
///
/// # Errors
/// [`Error::NotFinite`] with the first of them.
pub fn all_finite(path: &Path, name: &str, shape: &[usize], values: &[f32]) -> Result<()> {
    if math::all_finite(Isa::best(), values) {
        return Ok(());
    }
    let mut numbers = values.iter().copied().enumerate();
    let Some((mut at, value)) = numbers.find(|(_, v)| !v.is_finite()) else {
        return Ok(());
    };
    let mut position = vec![0; shape.len()];
    for (index, &size) in position.iter_mut().zip(shape).rev() {
        (*index, at) = (at % size.max(1), at / size.max(1));
    }
    Err(Error::NotFinite {
        path: path.into(),
        tensor: name.into(),
        value,
        position,
    })
}

/// Refuses a file in which two tensors share bytes. `spans` are `(start, end, name)`.
pub(super) fn refuse_overlaps(path: &Path, mut spans: Vec<(usize, usize, String)>) -> Result<()> {
    spans.sort();
    for pair in spans.windows(2) {
        if let [(_, end, first), (start, _, second)] = pair
            && start < end
        {
            return Err(Error::Format {
                path: path.into(),
                offset: Some(*start as u64),
                message: format!(
                    "tensors '{first}' and '{second}' overlap: the file is damaged; fetch it again"
                ),
            });
        }
    }
    Ok(())
}
