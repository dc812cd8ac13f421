//! Stored number formats to f32: plain floats and the GGUF block formats.
//!
//! A block format packs 32 or 256 weights with a scale (and an offset): `w = d · q` (`_0`, `Q6_K`)
//! or `w = d · q + m` (`_1`, `Q4_K`, `Q5_K`). Layouts follow the GGUF specification.

use half::{bf16, f16};

/// Number format of a stored tensor.
#[allow(missing_docs, reason = "the names are the formats' own")]
#[allow(non_camel_case_types, reason = "the names are the formats' own")]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    F32,
    F16,
    BF16,
    Q4_0,
    Q4_1,
    Q5_0,
    Q5_1,
    Q8_0,
    Q4_K,
    Q5_K,
    Q6_K,
}

impl Format {
    /// Every format, for error messages and tests.
    pub const ALL: [Self; 11] = [
        Self::F32,
        Self::F16,
        Self::BF16,
        Self::Q4_0,
        Self::Q4_1,
        Self::Q5_0,
        Self::Q5_1,
        Self::Q8_0,
        Self::Q4_K,
        Self::Q5_K,
        Self::Q6_K,
    ];

    /// From GGUF's `ggml_type` number.
    pub fn from_ggml(id: u32) -> Option<Self> {
        Some(match id {
            0 => Self::F32,
            1 => Self::F16,
            2 => Self::Q4_0,
            3 => Self::Q4_1,
            6 => Self::Q5_0,
            7 => Self::Q5_1,
            8 => Self::Q8_0,
            12 => Self::Q4_K,
            13 => Self::Q5_K,
            14 => Self::Q6_K,
            30 => Self::BF16,
            _ => return None,
        })
    }

    /// Weights and bytes of one block.
    pub fn block(self) -> (usize, usize) {
        match self {
            Self::F32 => (1, 4),
            Self::F16 | Self::BF16 => (1, 2),
            Self::Q4_0 => (32, 18),
            Self::Q4_1 => (32, 20),
            Self::Q5_0 => (32, 22),
            Self::Q5_1 => (32, 24),
            Self::Q8_0 => (32, 34),
            Self::Q4_K => (256, 144),
            Self::Q5_K => (256, 176),
            Self::Q6_K => (256, 210),
        }
    }

    /// Bytes of `elements` weights; `None` where they don't fill whole blocks or overflow.
    pub fn bytes(self, elements: usize) -> Option<usize> {
        let (weights, bytes) = self.block();
        elements
            .is_multiple_of(weights)
            .then(|| (elements / weights).checked_mul(bytes))?
    }

    /// Decodes `raw` into `out`.
    ///
    /// # Panics
    /// When `raw` is not exactly the bytes of `out.len()` weights.
    pub fn decode(self, raw: &[u8], out: &mut [f32]) {
        assert_eq!(
            self.bytes(out.len()),
            Some(raw.len()),
            "{self:?}: bytes and weights disagree"
        );
        match self {
            Self::F32 => blocks(self, raw, out, |b, w| {
                w[0] = f32::from_le_bytes([b[0], b[1], b[2], b[3]]);
            }),
            Self::F16 => blocks(self, raw, out, |b, w| w[0] = half_at(b, 0)),
            Self::BF16 => blocks(self, raw, out, |b, w| {
                w[0] = bf16::from_le_bytes([b[0], b[1]]).to_f32();
            }),
            Self::Q4_0 => blocks(self, raw, out, |b, w| {
                nibbles(&b[2..], half_at(b, 0), -8.0 * half_at(b, 0), w);
            }),
            Self::Q4_1 => blocks(self, raw, out, |b, w| {
                nibbles(&b[4..], half_at(b, 0), half_at(b, 2), w);
            }),
            Self::Q5_0 => blocks(self, raw, out, |b, w| {
                five_bits(&b[2..], half_at(b, 0), -16.0 * half_at(b, 0), w);
            }),
            Self::Q5_1 => blocks(self, raw, out, |b, w| {
                five_bits(&b[4..], half_at(b, 0), half_at(b, 2), w);
            }),
            Self::Q8_0 => blocks(self, raw, out, |b, w| {
                let d = half_at(b, 0);
                for (w, &q) in w.iter_mut().zip(&b[2..]) {
                    *w = d * f32::from(q as i8);
                }
            }),
            Self::Q4_K => blocks(self, raw, out, |b, w| k_four_five(b, None, &b[16..], w)),
            Self::Q5_K => {
                blocks(self, raw, out, |b, w| {
                    k_four_five(b, Some(&b[16..48]), &b[48..], w)
                });
            }
            Self::Q6_K => blocks(self, raw, out, k_six),
        }
    }
}

/// Runs `decode` on every block.
#[inline]
fn blocks(format: Format, raw: &[u8], out: &mut [f32], decode: impl Fn(&[u8], &mut [f32])) {
    let (weights, bytes) = format.block();
    for (raw, out) in raw.chunks_exact(bytes).zip(out.chunks_exact_mut(weights)) {
        decode(raw, out);
    }
}

fn half_at(bytes: &[u8], at: usize) -> f32 {
    f16::from_le_bytes([bytes[at], bytes[at + 1]]).to_f32()
}

fn nibbles(quants: &[u8], scale: f32, offset: f32, out: &mut [f32]) {
    for j in 0..16 {
        out[j] = scale * f32::from(quants[j] & 15) + offset;
        out[j + 16] = scale * f32::from(quants[j] >> 4) + offset;
    }
}

fn five_bits(bytes: &[u8], scale: f32, offset: f32, out: &mut [f32]) {
    let high = u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
    for (j, &q) in bytes[4..20].iter().enumerate() {
        let bit = |i: usize| ((high >> i) & 1) as u8 * 16;
        out[j] = scale * f32::from((q & 15) | bit(j)) + offset;
        out[j + 16] = scale * f32::from((q >> 4) | bit(j + 16)) + offset;
    }
}

/// The six-bit scale and minimum of sub-block `j` of a 256-weight block.
fn k_scale_min(j: usize, packed: &[u8]) -> (f32, f32) {
    let (scale, min) = if j < 4 {
        (packed[j] & 63, packed[j + 4] & 63)
    } else {
        (
            (packed[j + 4] & 15) | ((packed[j - 4] >> 6) << 4),
            (packed[j + 4] >> 4) | ((packed[j] >> 6) << 4),
        )
    };
    (f32::from(scale), f32::from(min))
}

fn k_four_five(block: &[u8], high: Option<&[u8]>, quants: &[u8], out: &mut [f32]) {
    let (d, d_min, scales) = (half_at(block, 0), half_at(block, 2), &block[4..16]);
    for sub in 0..8 {
        let (scale, min) = k_scale_min(sub, scales);
        let (scale, min) = (d * scale, d_min * min);
        let shift = 4 * (sub % 2);
        for j in 0..32 {
            let low = (quants[sub / 2 * 32 + j] >> shift) & 15;
            let top = high.map_or(0, |h| ((h[j] >> sub) & 1) * 16);
            out[sub * 32 + j] = scale * f32::from(low + top) - min;
        }
    }
}

fn k_six(block: &[u8], out: &mut [f32]) {
    let (low, high, scales, d) = (
        &block[..128],
        &block[128..192],
        &block[192..208],
        half_at(block, 208),
    );
    for half in 0..2 {
        let (low, high) = (&low[half * 64..], &high[half * 32..]);
        for quarter in 0..4 {
            for j in 0..32 {
                let four = (low[quarter % 2 * 32 + j] >> (quarter / 2 * 4)) & 15;
                let two = (high[j] >> (2 * quarter)) & 3;
                let scale = scales[half * 8 + quarter * 2 + j / 16] as i8;
                out[half * 128 + quarter * 32 + j] =
                    d * f32::from(scale) * (f32::from(four | (two << 4)) - 32.0);
            }
        }
    }
}
