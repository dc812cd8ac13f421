//! NEON with dot products of bytes: four registers hold 16 rows. Weights lose their offset when they are
//! loaded, so that both factors are signed.

use std::arch::aarch64::*;
use std::arch::asm;

use half::f16;

use super::Tile;
use crate::element::{Element, store};
use crate::format::GROUP;
use crate::input::{Lane, Rounded};
use crate::matrix::{Data, Matrix};

/// Four numbers of each of 16 rows, or one.
type Rows<T> = [T; 4];

#[inline]
#[target_feature(enable = "neon,dotprod")]
pub(super) fn product<const M: usize>(matrix: &Matrix, group: usize, x: &[Lane<'_>; M]) -> Tile<M> {
    let (columns, blocks) = (matrix.columns(), matrix.blocks());
    let flat = group * columns * GROUP..(group + 1) * columns * GROUP;
    let span = group * blocks..(group + 1) * blocks;
    let acc = match &matrix.data {
        // SAFETY: 16 numbers.
        Data::F32(w) => floats(&w[flat], x, |w| unsafe { f32::load(w.as_ptr()) }),
        Data::Bf16(w) => floats(&w[flat], x, |w| {
            std::array::from_fn(|i| {
                // SAFETY: as above, in fours.
                let bits = unsafe { vld1_u16(w.as_ptr().add(i * 4)) };
                vreinterpretq_f32_u32(vshll_n_u16::<16>(bits))
            })
        }),
        Data::Q8 { weights, scales } => {
            let w = &weights.as_chunks::<512>().0[span.clone()];
            let d = &scales.as_chunks::<GROUP>().0[span];
            let mut acc = [[vdupq_n_f32(0.0); 4]; M];
            for (b, (w, d)) in w.iter().zip(d).enumerate() {
                let (x, d) = (x.map(|x| &x.rounded[b]), halves(d));
                let offset = vdupq_n_u8(128);
                let dot = dots(x, |k| {
                    bytes(w, k).map(|u| vreinterpretq_s8_u8(veorq_u8(u, offset)))
                });
                for ((acc, dot), x) in acc.iter_mut().zip(dot).zip(x) {
                    add(acc, dot, d, x.scale);
                }
            }
            acc
        }
        Data::Q4 { weights, scales } => {
            let w = &weights.as_chunks::<256>().0[span.clone()];
            let scales = &scales.as_chunks::<GROUP>().0[span.start * 2..span.end * 2];
            let mut acc = [[vdupq_n_f32(0.0); 4]; M];
            for (b, (w, [d, m])) in w.iter().zip(scales.as_chunks().0).enumerate() {
                let (x, d, m) = (x.map(|x| &x.rounded[b]), halves(d), halves(m));
                let low = vdupq_n_u8(15);
                let dot = dots(x, |k| {
                    bytes(w, k % 4).map(|both| {
                        vreinterpretq_s8_u8(match k < 4 {
                            true => vandq_u8(both, low),
                            false => vshrq_n_u8::<4>(both),
                        })
                    })
                });
                for ((acc, dot), x) in acc.iter_mut().zip(dot).zip(x) {
                    add(acc, dot, d, x.scale);
                    for (acc, m) in acc.iter_mut().zip(m) {
                        *acc = vfmaq_n_f32(*acc, m, x.sum);
                    }
                }
            }
            acc
        }
    };
    let mut out = [[0.0; GROUP]; M];
    for (out, acc) in out.iter_mut().zip(acc) {
        store(acc, out);
    }
    out
}

#[inline]
#[target_feature(enable = "neon")]
fn floats<const M: usize, W>(
    w: &[W],
    x: &[Lane<'_>; M],
    load: impl Fn(&[W; GROUP]) -> Rows<float32x4_t>,
) -> [Rows<float32x4_t>; M] {
    let mut acc = [[vdupq_n_f32(0.0); 4]; M];
    for (k, w) in w.as_chunks().0.iter().enumerate() {
        let w = load(w);
        for (acc, x) in acc.iter_mut().zip(x) {
            for (acc, w) in acc.iter_mut().zip(w) {
                *acc = vfmaq_n_f32(*acc, w, x.floats[k]);
            }
        }
    }
    acc
}

/// `Σ q p` of a block for each lane's 16 rows; `q` gives the weights of inputs `4 k..4 k + 4`.
#[inline]
#[target_feature(enable = "neon,dotprod")]
fn dots<const M: usize>(
    x: [&Rounded; M],
    q: impl Fn(usize) -> Rows<int8x16_t>,
) -> [Rows<int32x4_t>; M] {
    let mut dot = [[vdupq_n_s32(0); 4]; M];
    for k in 0..8 {
        let q = q(k);
        for (dot, x) in dot.iter_mut().zip(x) {
            let p = four(x, k);
            for (dot, q) in dot.iter_mut().zip(q) {
                // SAFETY: the processor has this instruction; registers are all that it touches.
                unsafe {
                    // Its intrinsic is not stable yet.
                    asm!(
                        "sdot {dot:v}.4s, {q:v}.16b, {p:v}.4b[0]",
                        dot = inout(vreg) *dot,
                        q = in(vreg) q,
                        p = in(vreg) p,
                        options(pure, nomem, nostack, preserves_flags),
                    );
                }
            }
        }
    }
    dot
}

/// Bits of inputs `4 k..4 k + 4` of a block: a float, so that they are loaded into a vector register.
#[inline(always)]
fn four(x: &Rounded, k: usize) -> f32 {
    let p = &x.q[k * 4..k * 4 + 4];
    f32::from_ne_bytes(std::array::from_fn(|i| p[i] as u8))
}

/// Load `k` of a block's weights, four bytes for each row.
#[inline]
#[target_feature(enable = "neon")]
fn bytes(w: &[u8], k: usize) -> Rows<uint8x16_t> {
    let w = &w[k * 64..(k + 1) * 64];
    // SAFETY: 64 bytes.
    std::array::from_fn(|i| unsafe { vld1q_u8(w.as_ptr().add(i * 16)) })
}

/// 16 half-precision floats.
#[inline]
#[target_feature(enable = "neon")]
fn halves(from: &[u16; GROUP]) -> Rows<float32x4_t> {
    // SAFETY: 16 numbers.
    unsafe { f16::load(from.as_ptr().cast()) }
}

/// `acc + dot · d s` for 16 rows.
#[inline]
#[target_feature(enable = "neon")]
fn add(acc: &mut Rows<float32x4_t>, dot: Rows<int32x4_t>, d: Rows<float32x4_t>, s: f32) {
    for ((acc, dot), d) in acc.iter_mut().zip(dot).zip(d) {
        *acc = vfmaq_f32(*acc, vcvtq_f32_s32(dot), vmulq_n_f32(d, s));
    }
}
