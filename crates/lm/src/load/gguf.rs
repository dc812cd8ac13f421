//! GGUF reader: header, metadata and the positions of the tensors, from a mapped file.
//!
//! Every length in the header is checked against the bytes that are left before anything is
//! allocated, so a hostile file costs no more than its own size.

use std::collections::HashMap;
use std::path::Path;

use super::dequant::Format;
use super::mapped::{Mapped, StoredTensor};
use crate::{Error, Result};

/// A metadata value.
#[allow(missing_docs, reason = "the variants say it")]
#[derive(Debug, Clone, PartialEq)]
pub enum Value {
    Unsigned(u64),
    Signed(i64),
    Float(f64),
    Bool(bool),
    String(String),
    Array(Vec<Value>),
    Numbers(Numbers),
}

/// An array of numbers or truth values, as the file stores it.
#[derive(Debug, Clone, PartialEq)]
pub struct Numbers {
    kind: u32,
    bytes: Vec<u8>,
}

impl Numbers {
    /// The elements, one after the other.
    pub fn iter(&self) -> impl Iterator<Item = Value> + '_ {
        self.bytes.chunks_exact(width(self.kind)).map(|bytes| {
            let mut eight = [0; 8];
            eight[..bytes.len()].copy_from_slice(bytes);
            let (unsigned, shift) = (u64::from_le_bytes(eight), 64 - 8 * bytes.len());
            let signed = ((unsigned << shift) as i64) >> shift;
            match self.kind {
                1 | 3 | 5 | 11 => Value::Signed(signed),
                6 => Value::Float(f32::from_bits(unsigned as u32).into()),
                12 => Value::Float(f64::from_bits(unsigned)),
                7 => Value::Bool(unsigned != 0),
                _ => Value::Unsigned(unsigned),
            }
        })
    }
}

/// Bytes of a number of this type; 8 at least of a text or an array.
fn width(kind: u32) -> usize {
    match kind {
        0 | 1 | 7 => 1,
        2 | 3 => 2,
        4..=6 => 4,
        _ => 8,
    }
}

/// Parsed header of a GGUF file (versions 2 and 3, little-endian).
#[derive(Debug)]
pub struct Header {
    /// Metadata by key.
    pub metadata: HashMap<String, Value>,
    /// Tensors by name; shapes are row-major (reversed from the file), `[out, in]` for a matrix.
    pub tensors: HashMap<String, StoredTensor>,
}

struct Cursor<'a> {
    bytes: &'a [u8],
    at: usize,
    path: &'a Path,
}

impl<'a> Cursor<'a> {
    fn fail<T>(&self, message: impl Into<String>) -> Result<T> {
        Err(Error::Format {
            path: self.path.into(),
            offset: Some(self.at as u64),
            message: message.into(),
        })
    }

    fn take(&mut self, n: usize) -> Result<&'a [u8]> {
        let left = self.bytes.len() - self.at;
        if n > left {
            return self.fail(format!(
                "the header needs {n} bytes more, the file has {left}: it is truncated or damaged; \
                 fetch it again"
            ));
        }
        self.at += n;
        Ok(&self.bytes[self.at - n..self.at])
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N]> {
        let mut out = [0; N];
        out.copy_from_slice(self.take(N)?);
        Ok(out)
    }

    fn u32(&mut self) -> Result<u32> {
        Ok(u32::from_le_bytes(self.array()?))
    }

    fn u64(&mut self) -> Result<u64> {
        Ok(u64::from_le_bytes(self.array()?))
    }

    /// A count of things of at least `size` bytes, which must fit into the rest of the file.
    fn count(&mut self, size: usize, what: &str) -> Result<usize> {
        let (count, left) = (self.u64()?, self.bytes.len() - self.at);
        match usize::try_from(count)
            .ok()
            .and_then(|n| n.checked_mul(size))
        {
            Some(bytes) if bytes <= left => Ok(count as usize),
            _ => self.fail(format!(
                "the header claims {count} {what}, more than the {left} bytes left can hold: the \
                 file is truncated or damaged; fetch it again"
            )),
        }
    }

    fn string(&mut self) -> Result<String> {
        let n = self.count(1, "bytes of text")?;
        let bytes = self.take(n)?.to_vec();
        String::from_utf8(bytes).or_else(|_| self.fail("a text that is not UTF-8"))
    }

    fn value(&mut self, kind: u32, depth: usize) -> Result<Value> {
        Ok(match kind {
            0 => Value::Unsigned(self.array::<1>()?[0].into()),
            1 => Value::Signed(i64::from(self.array::<1>()?[0] as i8)),
            2 => Value::Unsigned(u16::from_le_bytes(self.array()?).into()),
            3 => Value::Signed(i16::from_le_bytes(self.array()?).into()),
            4 => Value::Unsigned(self.u32()?.into()),
            5 => Value::Signed(i32::from_le_bytes(self.array()?).into()),
            6 => Value::Float(f32::from_le_bytes(self.array()?).into()),
            7 => Value::Bool(self.array::<1>()?[0] != 0),
            8 => Value::String(self.string()?),
            9 if depth < 4 => {
                let kind = self.u32()?;
                let count = self.count(width(kind), "array elements")?;
                if matches!(kind, 0..=7 | 10..=12) {
                    let bytes = self.take(count * width(kind))?.to_vec();
                    return Ok(Value::Numbers(Numbers { kind, bytes }));
                }
                let values = (0..count).map(|_| self.value(kind, depth + 1));
                Value::Array(values.collect::<Result<_>>()?)
            }
            10 => Value::Unsigned(self.u64()?),
            11 => Value::Signed(i64::from_le_bytes(self.array()?)),
            12 => Value::Float(f64::from_le_bytes(self.array()?)),
            _ => return self.fail(format!("unknown metadata type {kind}")),
        })
    }

    /// A tensor's entry in the header.
    fn entry(&mut self) -> Result<Entry> {
        let name = self.string()?;
        let dims = self.u32()?;
        if !(1..=4).contains(&dims) {
            return self.fail(format!("tensor '{name}' has {dims} dimensions"));
        }
        let mut shape = (0..dims).map(|_| self.u64()).collect::<Result<Vec<_>>>()?;
        shape.reverse();
        let kind = self.u32()?;
        let Some(format) = Format::from_ggml(kind) else {
            let supported = Format::ALL.map(|f| format!("{f:?}")).join(", ");
            let what = format!("tensor '{name}' in GGML type {kind}");
            return Err(Error::unsupported(self.path, what, &supported));
        };
        let elements = shape.iter().try_fold(1usize, |product, &n| {
            product.checked_mul(usize::try_from(n).ok()?)
        });
        let row_fits = shape
            .last()
            .is_some_and(|&n| n > 0 && usize::try_from(n).is_ok_and(|n| format.bytes(n).is_some()));
        let Some(bytes) = elements.filter(|_| row_fits).and_then(|n| format.bytes(n)) else {
            return self.fail(format!(
                "tensor '{name}': shape {shape:?} is impossible in {format:?}"
            ));
        };
        Ok(Entry {
            name,
            shape,
            format,
            bytes,
            offset: self.u64()?,
        })
    }
}

/// A tensor as the header lists it.
struct Entry {
    name: String,
    /// Slowest dimension first, as safetensors has it.
    shape: Vec<u64>,
    format: Format,
    /// Length of its data.
    bytes: usize,
    /// Where its data begins, from the end of the header on.
    offset: u64,
}

impl Header {
    /// Parses the header of `file`.
    ///
    /// # Errors
    /// [`Error::Format`] with the position, for anything that the format forbids;
    /// [`Error::Unsupported`] for a tensor in a quantisation that [`Format`] lacks.
    pub fn parse(file: &Mapped) -> Result<Self> {
        let mut c = Cursor {
            bytes: file.bytes(),
            at: 0,
            path: file.path(),
        };
        if c.array()? != *b"GGUF" {
            c.at = 0;
            return c.fail("not a GGUF file (it does not begin with 'GGUF')");
        }
        let version = c.u32()?;
        if !(2..=3).contains(&version) {
            return c.fail(format!(
                "GGUF version {version}; versions 2 and 3 can be read"
            ));
        }
        let tensor_count = c.count(24, "tensors")?;
        let metadata_count = c.count(13, "metadata entries")?;
        let mut metadata = HashMap::new();
        for _ in 0..metadata_count {
            let key = c.string()?;
            let kind = c.u32()?;
            let value = c.value(kind, 0)?;
            if metadata.insert(key.clone(), value).is_some() {
                return c.fail(format!("metadata key '{key}' appears twice"));
            }
        }
        let alignment = match metadata.get("general.alignment") {
            None => 32,
            Some(Value::Unsigned(a)) if a.is_power_of_two() && *a <= 1 << 20 => *a as usize,
            Some(other) => return c.fail(format!("general.alignment is {other:?}")),
        };
        let entries = (0..tensor_count).map(|_| c.entry());
        let entries = entries.collect::<Result<Vec<_>>>()?;
        let data = c.at.next_multiple_of(alignment);
        let mut tensors = HashMap::new();
        let mut spans = Vec::with_capacity(entries.len());
        for entry in entries {
            let Entry {
                name,
                shape,
                format,
                bytes,
                offset,
            } = entry;
            let start = usize::try_from(offset)
                .ok()
                .and_then(|o| o.checked_add(data));
            let end = start.and_then(|s| s.checked_add(bytes));
            let (Some(start), Some(end)) = (start, end) else {
                return c.fail(format!("tensor '{name}': its offset {offset} overflows"));
            };
            if end > c.bytes.len() {
                return c.fail(format!(
                    "tensor '{name}' ends at byte {end}, the file has {}: it is truncated; fetch it \
                     again",
                    c.bytes.len()
                ));
            }
            spans.push((start, end, name.clone()));
            let shape = shape.into_iter().map(|n| n as usize).collect();
            let tensor = StoredTensor {
                shape,
                format,
                range: start..end,
            };
            if tensors.insert(name.clone(), tensor).is_some() {
                return c.fail(format!("tensor '{name}' appears twice"));
            }
        }
        super::mapped::refuse_overlaps(file.path(), spans)?;
        Ok(Self { metadata, tensors })
    }

    /// Number at `key`, if there is one.
    pub fn number(&self, key: &str) -> Option<f64> {
        match self.metadata.get(key)? {
            Value::Unsigned(v) => Some(*v as f64),
            Value::Signed(v) => Some(*v as f64),
            Value::Float(v) => Some(*v),
            _ => None,
        }
    }

    /// Non-negative integer at `key`, if there is one.
    pub fn integer(&self, key: &str) -> Option<usize> {
        match self.metadata.get(key)? {
            Value::Unsigned(v) => usize::try_from(*v).ok(),
            Value::Signed(v) => usize::try_from(*v).ok(),
            _ => None,
        }
    }

    /// Text at `key`, if there is one.
    pub fn string(&self, key: &str) -> Option<&str> {
        match self.metadata.get(key)? {
            Value::String(v) => Some(v),
            _ => None,
        }
    }

    /// Truth value at `key`, if there is one.
    pub fn bool(&self, key: &str) -> Option<bool> {
        match self.metadata.get(key)? {
            Value::Bool(v) => Some(*v),
            _ => None,
        }
    }

    /// Array of numbers or truth values at `key`, if there is one.
    pub fn numbers(&self, key: &str) -> Option<&Numbers> {
        match self.metadata.get(key)? {
            Value::Numbers(v) => Some(v),
            _ => None,
        }
    }

    /// Array of texts or arrays at `key`, if there is one.
    pub fn array(&self, key: &str) -> Option<&[Value]> {
        match self.metadata.get(key)? {
            Value::Array(v) => Some(v),
            _ => None,
        }
    }

    /// Array of texts at `key`; `None` where it is missing or holds something else.
    pub fn strings(&self, key: &str) -> Option<Vec<&str>> {
        let text = |v: &'_ Value| matches!(v, Value::String(_));
        let array = self.array(key).filter(|a| a.iter().all(text))?;
        Some(
            array
                .iter()
                .filter_map(|v| {
                    if let Value::String(s) = v {
                        Some(&**s)
                    } else {
                        None
                    }
                })
                .collect(),
        )
    }
}
