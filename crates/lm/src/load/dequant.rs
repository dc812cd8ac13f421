//! Stored number formats to f32: plain floats and the GGUF block formats.
//!
//! A block format packs 32 or 256 weights with a scale (and an offset): `w = d · q` (`_0`, `Q3_K`, `Q6_K`)
//! or `w = d · q + m` (`_1`, `Q2_K`, `Q4_K`, `Q5_K`); in `IQ4_NL`, `IQ4_XS` and `MXFP4` the four bits of a weight say
//! which of sixteen values `q` is. Layouts follow the GGUF specification.

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
    Q2_K,
    Q3_K,
    Q4_K,
    Q5_K,
    Q6_K,
    IQ4_NL,
    IQ4_XS,
    MXFP4,
    /// Floats of 8 bits in safetensors, four of exponent and three of mantissa, without infinities.
    F8_E4M3,
}

impl Format {
    /// Every format of GGUF, for error messages and tests.
    pub const ALL: [Self; 16] = [
        Self::F32,
        Self::F16,
        Self::BF16,
        Self::Q4_0,
        Self::Q4_1,
        Self::Q5_0,
        Self::Q5_1,
        Self::Q8_0,
        Self::Q2_K,
        Self::Q3_K,
        Self::Q4_K,
        Self::Q5_K,
        Self::Q6_K,
        Self::IQ4_NL,
        Self::IQ4_XS,
        Self::MXFP4,
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
            10 => Self::Q2_K,
            11 => Self::Q3_K,
            12 => Self::Q4_K,
            13 => Self::Q5_K,
            14 => Self::Q6_K,
            20 => Self::IQ4_NL,
            23 => Self::IQ4_XS,
            39 => Self::MXFP4,
            30 => Self::BF16,
            _ => return None,
        })
    }

    /// Weights and bytes of one block.
    pub fn block(self) -> (usize, usize) {
        match self {
            Self::F32 => (1, 4),
            Self::F16 | Self::BF16 => (1, 2),
            Self::Q4_0 | Self::IQ4_NL => (32, 18),
            Self::F8_E4M3 => (1, 1),
            Self::MXFP4 => (32, 17),
            Self::Q2_K => (256, 84),
            Self::Q3_K => (256, 110),
            Self::IQ4_XS => (256, 136),
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
            Self::Q2_K => blocks(self, raw, out, k_two),
            Self::Q3_K => blocks(self, raw, out, k_three),
            Self::IQ4_NL => blocks(self, raw, out, |b, w| {
                listed(&b[2..], half_at(b, 0), &NON_LINEAR, w);
            }),
            Self::IQ4_XS => blocks(self, raw, out, non_linear_k),
            Self::F8_E4M3 => blocks(self, raw, out, |b, w| w[0] = eight_bits(b[0])),
            Self::MXFP4 => blocks(self, raw, out, |b, w| {
                listed(&b[1..], power_of_two(b[0]), &FLOATS, w);
            }),
        }
    }
}

/// Values of `IQ4_NL` and `IQ4_XS`.
const NON_LINEAR: [i8; 16] = [
    -127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113,
];
/// Twice the values of a four-bit float with two bits of exponent and one of mantissa (OCP microscaling).
const FLOATS: [i8; 16] = [0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12];

/// A float of 8 bits: sign, four bits of exponent, three of mantissa; NaN where these seven are all set.
fn eight_bits(bits: u8) -> f32 {
    let (exponent, mantissa) = (i32::from(bits >> 3 & 15), f32::from(bits & 7));
    let size = match (exponent, bits & 127) {
        (_, 127) => f32::NAN,
        (0, _) => mantissa * 2f32.powi(-9),
        _ => (8.0 + mantissa) * 2f32.powi(exponent - 10),
    };
    if bits > 127 { -size } else { size }
}

/// Half of `2^(e - 127)`, exactly.
fn power_of_two(e: u8) -> f32 {
    let e = u32::from(e);
    // The smallest two are no normal numbers.
    f32::from_bits(if e < 2 {
        0x0020_0000 << e
    } else {
        (e - 1) << 23
    })
}

/// 32 weights whose halves of bytes are places in a list.
fn listed(quants: &[u8], scale: f32, values: &[i8; 16], out: &mut [f32]) {
    for j in 0..16 {
        out[j] = scale * f32::from(values[usize::from(quants[j] & 15)]);
        out[j + 16] = scale * f32::from(values[usize::from(quants[j] >> 4)]);
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

/// `Q2_K`: 16 scales and minima of four bits, then two bits for each weight.
fn k_two(block: &[u8], out: &mut [f32]) {
    let (scales, quants) = (&block[..16], &block[16..80]);
    let (d, d_min) = (half_at(block, 80), half_at(block, 82));
    for (j, out) in out.iter_mut().enumerate() {
        // Each 32 bytes hold four runs of 32 weights.
        let (part, run, byte) = (j / 128, j % 128 / 32, j % 32);
        let q = (quants[part * 32 + byte] >> (2 * run)) & 3;
        let scale = scales[j / 16];
        *out = d * f32::from(scale & 15) * f32::from(q) - d_min * f32::from(scale >> 4);
    }
}

/// `Q3_K`: the highest bit of each weight, then its two lower ones, then 16 scales of six bits.
fn k_three(block: &[u8], out: &mut [f32]) {
    let (high, low, packed) = (&block[..32], &block[32..96], &block[96..108]);
    let d = half_at(block, 108);
    let scale = |j: usize| {
        let four = (packed[j % 8] >> (4 * (j / 8))) & 15;
        let two = (packed[8 + j % 4] >> (2 * (j / 4))) & 3;
        f32::from((four | (two << 4)) as i8 - 32)
    };
    for (j, out) in out.iter_mut().enumerate() {
        let (part, run, byte) = (j / 128, j % 128 / 32, j % 32);
        let two = (low[part * 32 + byte] >> (2 * run)) & 3;
        let is_high = (high[byte] >> (j / 32)) & 1;
        let q = two as i8 - if is_high == 1 { 0 } else { 4 };
        *out = d * scale(j / 16) * f32::from(q);
    }
}

/// `IQ4_XS`: eight runs of 32 weights, each with a scale of six bits.
fn non_linear_k(block: &[u8], out: &mut [f32]) {
    let d = half_at(block, 0);
    let high = u16::from_le_bytes([block[2], block[3]]);
    for (run, out) in out.chunks_exact_mut(32).enumerate() {
        let four = (block[4 + run / 2] >> (4 * (run % 2))) & 15;
        let two = (high >> (2 * run)) & 3;
        let scale = f32::from((four | ((two as u8) << 4)) as i8 - 32);
        let quants = &block[8 + 16 * run..8 + 16 * (run + 1)];
        listed(quants, d * scale, &NON_LINEAR, out);
    }
}
