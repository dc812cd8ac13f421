//! Weight matrices, packed in one of the [formats](Format).

use half::{bf16, f16};

use crate::format::{BLOCK, Format, GROUP};
use crate::math::ROUND;
use crate::pages::advise_large;

/// Weights `[rows, columns]` of `y = W x`, packed so that one load holds the same inputs of 16 rows.
#[derive(Debug, Clone)]
pub struct Matrix {
    rows: usize,
    columns: usize,
    pub(crate) data: Data,
}

#[derive(Debug, Clone)]
pub(crate) enum Data {
    /// `[groups][columns][16]`.
    F32(Vec<f32>),
    /// The same, as bits.
    Bf16(Vec<u16>),
    Q8 {
        /// `q + 128`, `[groups][blocks][8][16 rows][4 inputs]`.
        weights: Vec<u8>,
        /// Bits of `d`, `[groups][blocks][16]`.
        scales: Vec<u16>,
    },
    Q4 {
        /// `[groups][blocks][4][16 rows][4 inputs]`; the low halves of the bytes are inputs 0–15 of a
        /// block, the high ones 16–31.
        weights: Vec<u8>,
        /// Bits of `d` and then of `m`, `[groups][blocks][2][16]`.
        scales: Vec<u16>,
    },
}

/// Room for `len` numbers that are read from end to end.
fn room<T>(len: usize) -> Vec<T> {
    let mut out = Vec::with_capacity(len);
    advise_large(out.spare_capacity_mut());
    out
}

fn filled(len: usize, value: u8) -> Vec<u8> {
    let mut out = room(len);
    out.resize(len, value);
    out
}

fn collected<T>(numbers: impl Iterator<Item = T>, len: usize) -> Vec<T> {
    let mut out = room(len);
    out.extend(numbers);
    out
}

/// Where input `k` of a block lies: which load of 64 bytes, which byte of a row's four.
fn position(k: usize) -> (usize, usize) {
    (k / 4, k % 4)
}

impl Matrix {
    /// Packs row-major weights `[rows, columns]`. Rows are padded with zeros to whole groups, and
    /// columns of the 8- and 4-bit formats to whole blocks.
    ///
    /// # Panics
    /// When `weights` has another length.
    pub fn pack(format: Format, rows: usize, columns: usize, weights: &[f32]) -> Self {
        assert_eq!(weights.len(), rows * columns, "weights of another shape");
        let groups = rows.div_ceil(GROUP);
        let blocks = columns.div_ceil(BLOCK);
        let at = |row: usize, column: usize| match row < rows && column < columns {
            true => weights[row * columns + column],
            false => 0.0,
        };
        let interleaved = || {
            (0..groups).flat_map(move |g| {
                (0..columns).flat_map(move |k| (0..GROUP).map(move |r| (g * GROUP + r, k)))
            })
        };
        let block = |row: usize, b: usize| -> [f32; BLOCK] {
            std::array::from_fn(|k| at(row, b * BLOCK + k))
        };
        let data = match format {
            Format::F32 => Data::F32(collected(
                interleaved().map(|(r, k)| at(r, k)),
                groups * columns * GROUP,
            )),
            Format::Bf16 => {
                let bits = |(r, k)| bf16::from_f32(at(r, k)).to_bits();
                Data::Bf16(collected(interleaved().map(bits), groups * columns * GROUP))
            }
            Format::Q8 => {
                let mut packed = filled(groups * blocks * GROUP * BLOCK, 128);
                let mut scales = vec![0; groups * blocks * GROUP];
                for row in 0..rows {
                    for b in 0..blocks {
                        let index = row / GROUP * blocks + b;
                        let (scale, q) = quantise_q8(&block(row, b));
                        scales[index * GROUP + row % GROUP] = scale.to_bits();
                        for (k, q) in q.into_iter().enumerate() {
                            let (load, byte) = position(k);
                            let to = index * 512 + load * 64 + row % GROUP * 4 + byte;
                            packed[to] = (i16::from(q) + 128) as u8;
                        }
                    }
                }
                Data::Q8 {
                    weights: packed,
                    scales,
                }
            }
            Format::Q4 => {
                let mut packed = filled(groups * blocks * GROUP * BLOCK / 2, 0);
                let mut scales = vec![0; groups * blocks * 2 * GROUP];
                for row in 0..rows {
                    for b in 0..blocks {
                        let index = row / GROUP * blocks + b;
                        let (d, m, q) = quantise_q4(&block(row, b));
                        scales[index * 2 * GROUP + row % GROUP] = d.to_bits();
                        scales[(index * 2 + 1) * GROUP + row % GROUP] = m.to_bits();
                        for (k, q) in q.into_iter().enumerate() {
                            let (load, byte) = position(k % 16);
                            let to = index * 256 + load * 64 + row % GROUP * 4 + byte;
                            packed[to] |= q << (k / 16 * 4);
                        }
                    }
                }
                Data::Q4 {
                    weights: packed,
                    scales,
                }
            }
        };
        Self {
            rows,
            columns,
            data,
        }
    }

    /// Number of outputs.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Number of inputs.
    pub fn columns(&self) -> usize {
        self.columns
    }

    /// Number of groups of 16 rows; the last may be padded.
    pub fn groups(&self) -> usize {
        self.rows.div_ceil(GROUP)
    }

    /// Number of blocks of 32 columns; the last may be padded.
    pub fn blocks(&self) -> usize {
        self.columns.div_ceil(BLOCK)
    }

    /// How the weights are stored.
    pub fn format(&self) -> Format {
        match self.data {
            Data::F32(_) => Format::F32,
            Data::Bf16(_) => Format::Bf16,
            Data::Q8 { .. } => Format::Q8,
            Data::Q4 { .. } => Format::Q4,
        }
    }

    /// Bytes of a matrix of this shape, once it is packed in a format.
    pub fn bytes_of(format: Format, rows: usize, columns: usize) -> usize {
        let (groups, blocks) = (rows.div_ceil(GROUP), columns.div_ceil(BLOCK));
        match format {
            Format::F32 => 4 * groups * columns * GROUP,
            Format::Bf16 => 2 * groups * columns * GROUP,
            Format::Q8 => groups * blocks * GROUP * (BLOCK + 2),
            Format::Q4 => groups * blocks * GROUP * (BLOCK / 2 + 4),
        }
    }

    /// Bytes that one multiplication reads.
    pub fn bytes(&self) -> usize {
        match &self.data {
            Data::F32(v) => v.len() * 4,
            Data::Bf16(v) => v.len() * 2,
            Data::Q8 { weights, scales } | Data::Q4 { weights, scales } => {
                weights.len() + scales.len() * 2
            }
        }
    }

    /// Writes one row as floats, `[columns]`.
    ///
    /// # Panics
    /// When there is no such row, or `out` has another length.
    pub fn row(&self, row: usize, out: &mut [f32]) {
        assert!(row < self.rows && out.len() == self.columns, "no such row");
        let (group, r) = (row / GROUP, row % GROUP);
        let blocks = self.blocks();
        let float = |bits: u16| f16::from_bits(bits).to_f32();
        for (k, out) in out.iter_mut().enumerate() {
            let flat = (group * self.columns + k) * GROUP + r;
            let index = group * blocks + k / BLOCK;
            *out = match &self.data {
                Data::F32(v) => v[flat],
                Data::Bf16(v) => bf16::from_bits(v[flat]).to_f32(),
                Data::Q8 { weights, scales } => {
                    let (load, byte) = position(k % BLOCK);
                    let q = i32::from(weights[index * 512 + load * 64 + r * 4 + byte]) - 128;
                    float(scales[index * GROUP + r]) * q as f32
                }
                Data::Q4 { weights, scales } => {
                    let (load, byte) = position(k % 16);
                    let both = weights[index * 256 + load * 64 + r * 4 + byte];
                    let q = both >> (k % BLOCK / 16 * 4) & 15;
                    let scale = |which: usize| float(scales[(index * 2 + which) * GROUP + r]);
                    scale(0) * f32::from(q) + scale(1)
                }
            };
        }
    }
}

/// The nearest integer of a number below 2²², ties to even, without a call.
#[inline(always)]
fn nearest(v: f32) -> f32 {
    (v + ROUND) - ROUND
}

/// The Q8_0 of GGML: `d = max |w| / 127`, to the nearest 16-bit float, then `q` to the nearest.
fn quantise_q8(block: &[f32; BLOCK]) -> (f16, [i8; BLOCK]) {
    let largest = block.iter().fold(0f32, |m, v| m.max(v.abs()));
    let scale = f16::from_f32(largest / 127.0);
    let d = scale.to_f32();
    let q = |v: f32| match d > 0.0 {
        true => nearest(v / d).clamp(-127.0, 127.0) as i8,
        false => 0,
    };
    (scale, block.map(q))
}

/// The Q4_1 of GGML: `m = min w`, `d = (max w − min w) / 15`.
fn quantise_q4(block: &[f32; BLOCK]) -> (f16, f16, [u8; BLOCK]) {
    let low = block.iter().copied().fold(f32::INFINITY, f32::min);
    let high = block.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let (d, m) = (f16::from_f32((high - low) / 15.0), f16::from_f32(low));
    let (scale, base) = (d.to_f32(), m.to_f32());
    let q = |v: f32| match scale > 0.0 {
        true => nearest((v - base) / scale).clamp(0.0, 15.0) as u8,
        false => 0,
    };
    (d, m, block.map(q))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_come_back_within_half_a_step() {
        let (rows, columns) = (21, 70);
        let weights: Vec<f32> = (0..rows * columns)
            .map(|i| ((i * 7919 % 1000) as f32 - 480.0) / 300.0)
            .collect();
        for (format, tolerance) in [
            (Format::F32, 0.0),
            (Format::Bf16, 1.7 / 256.0),
            (Format::Q8, 1.75 / 127.0 * 0.51),
            (Format::Q4, 3.34 / 15.0 * 0.51),
        ] {
            let matrix = Matrix::pack(format, rows, columns, &weights);
            assert_eq!(matrix.bytes(), Matrix::bytes_of(format, rows, columns));
            assert_eq!(
                (matrix.rows(), matrix.columns(), matrix.format()),
                (rows, columns, format)
            );
            let mut out = vec![0.0; columns];
            for row in 0..rows {
                matrix.row(row, &mut out);
                for (a, b) in out.iter().zip(&weights[row * columns..]) {
                    assert!((a - b).abs() <= tolerance, "{format:?} {a} {b}");
                }
            }
        }
    }

    #[test]
    fn blocks_that_were_quantised_before_come_back_exactly() {
        let d = f16::from_f32(0.0123).to_f32();
        let m = f16::from_f32(-0.077).to_f32();
        let mut q8: Vec<f32> = (0..32)
            .map(|i| d * ((i * 37 % 255) as f32 - 127.0))
            .collect();
        q8[5] = d * 127.0;
        let q4: Vec<f32> = (0..32).map(|i| d * (i * 7 % 16) as f32 + m).collect();
        for (format, weights) in [(Format::Q8, q8), (Format::Q4, q4)] {
            let matrix = Matrix::pack(format, 1, 32, &weights);
            let mut out = vec![0.0; 32];
            matrix.row(0, &mut out);
            assert_eq!(out, weights);
        }
    }
}
