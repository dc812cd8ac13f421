//! AVX2: two registers hold 16 rows. Products of bytes come as `|p| · sign(p) q`, whose pairs cannot
//! overflow 16 bits because `q` and `p` are at most 127.

use std::arch::x86_64::*;

use super::Tile;
use crate::format::GROUP;
use crate::input::Lane;
use crate::matrix::{Data, Matrix};

type Pair = [__m256; 2];

/// The products of a group, for every format; long because each has an inner loop of its own over the same
/// accumulators, which have to stay in registers.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
pub(super) fn product<const M: usize>(matrix: &Matrix, group: usize, x: &[Lane<'_>; M]) -> Tile<M> {
    let (columns, blocks) = (matrix.columns(), matrix.blocks());
    let mut acc: [Pair; M] = [[_mm256_setzero_ps(); 2]; M];
    match &matrix.data {
        Data::F32(w) => {
            let w = &w[group * columns * GROUP..(group + 1) * columns * GROUP];
            for k in 0..columns {
                for half in 0..2 {
                    // SAFETY: `w` has 16 values for each column, checked above.
                    let w = unsafe { _mm256_loadu_ps(w.as_ptr().add(k * GROUP + half * 8)) };
                    for (acc, x) in acc.iter_mut().zip(x) {
                        acc[half] = _mm256_fmadd_ps(w, _mm256_set1_ps(x.floats[k]), acc[half]);
                    }
                }
            }
        }
        Data::Bf16(w) => {
            let w = &w[group * columns * GROUP..(group + 1) * columns * GROUP];
            for k in 0..columns {
                for half in 0..2 {
                    // SAFETY: as above.
                    let bits =
                        unsafe { _mm_loadu_si128(w.as_ptr().add(k * GROUP + half * 8).cast()) };
                    let wide = _mm256_slli_epi32::<16>(_mm256_cvtepu16_epi32(bits));
                    let w = _mm256_castsi256_ps(wide);
                    for (acc, x) in acc.iter_mut().zip(x) {
                        acc[half] = _mm256_fmadd_ps(w, _mm256_set1_ps(x.floats[k]), acc[half]);
                    }
                }
            }
        }
        Data::Q8 { weights, scales } => {
            let w = &weights[group * blocks * 512..(group + 1) * blocks * 512];
            let scales = &scales[group * blocks * GROUP..(group + 1) * blocks * GROUP];
            let bias = _mm256_set1_epi8(-128);
            for b in 0..blocks {
                let mut dot = [[_mm256_setzero_si256(); 2]; M];
                for k in 0..8 {
                    for half in 0..2 {
                        let at = b * 512 + k * 64 + half * 32;
                        // SAFETY: `w` has 512 bytes for each block.
                        let u = unsafe { _mm256_loadu_si256(w.as_ptr().add(at).cast()) };
                        let q = _mm256_xor_si256(u, bias);
                        for (dot, x) in dot.iter_mut().zip(x) {
                            dot[half] = add(dot[half], q, four(x, b, k * 4));
                        }
                    }
                }
                for half in 0..2 {
                    // SAFETY: 16 scales for each block.
                    let d = unsafe { halves(scales.as_ptr().add(b * GROUP + half * 8)) };
                    for ((acc, dot), x) in acc.iter_mut().zip(dot).zip(x) {
                        let scale = _mm256_mul_ps(d, _mm256_set1_ps(x.rounded[b].scale));
                        acc[half] =
                            _mm256_fmadd_ps(_mm256_cvtepi32_ps(dot[half]), scale, acc[half]);
                    }
                }
            }
        }
        Data::Q4 { weights, scales } => {
            let w = &weights[group * blocks * 256..(group + 1) * blocks * 256];
            let scales = &scales[group * blocks * 2 * GROUP..(group + 1) * blocks * 2 * GROUP];
            let low = _mm256_set1_epi8(15);
            for b in 0..blocks {
                let mut dot = [[_mm256_setzero_si256(); 2]; M];
                for k in 0..4 {
                    for half in 0..2 {
                        let at = b * 256 + k * 64 + half * 32;
                        // SAFETY: `w` has 256 bytes for each block.
                        let both = unsafe { _mm256_loadu_si256(w.as_ptr().add(at).cast()) };
                        let first = _mm256_and_si256(both, low);
                        let second = _mm256_and_si256(_mm256_srli_epi16::<4>(both), low);
                        for (dot, x) in dot.iter_mut().zip(x) {
                            let at = k * 4;
                            dot[half] = add(dot[half], first, four(x, b, at));
                            dot[half] = add(dot[half], second, four(x, b, at + 16));
                        }
                    }
                }
                for half in 0..2 {
                    // SAFETY: 32 scales for each block.
                    let d = unsafe { halves(scales.as_ptr().add(b * 2 * GROUP + half * 8)) };
                    // SAFETY: as above.
                    let m = unsafe { halves(scales.as_ptr().add((b * 2 + 1) * GROUP + half * 8)) };
                    for ((acc, dot), x) in acc.iter_mut().zip(dot).zip(x) {
                        let scale = _mm256_mul_ps(d, _mm256_set1_ps(x.rounded[b].scale));
                        let sum = _mm256_fmadd_ps(_mm256_cvtepi32_ps(dot[half]), scale, acc[half]);
                        acc[half] = _mm256_fmadd_ps(m, _mm256_set1_ps(x.rounded[b].sum), sum);
                    }
                }
            }
        }
    }
    let mut out = [[0.0; GROUP]; M];
    for (out, acc) in out.iter_mut().zip(acc) {
        for (half, acc) in acc.into_iter().enumerate() {
            // SAFETY: 16 floats, eight for each half.
            unsafe { _mm256_storeu_ps(out.as_mut_ptr().add(half * 8), acc) };
        }
    }
    out
}

/// `dot + Σ q p` over each row's four bytes.
#[inline]
#[target_feature(enable = "avx2")]
fn add(dot: __m256i, q: __m256i, p: __m256i) -> __m256i {
    let pairs = _mm256_maddubs_epi16(_mm256_abs_epi8(p), _mm256_sign_epi8(q, p));
    _mm256_add_epi32(dot, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)))
}

/// Four inputs of a block for every row.
#[inline]
#[target_feature(enable = "avx2")]
fn four(x: &Lane<'_>, block: usize, at: usize) -> __m256i {
    // SAFETY: four of a block's 32 bytes.
    _mm256_set1_epi32(unsafe {
        x.rounded[block]
            .q
            .as_ptr()
            .add(at)
            .cast::<i32>()
            .read_unaligned()
    })
}

/// Eight half-precision floats.
///
/// # Safety
/// They can be read.
#[inline]
#[target_feature(enable = "f16c")]
unsafe fn halves(from: *const u16) -> __m256 {
    // SAFETY: the caller's.
    _mm256_cvtph_ps(unsafe { _mm_loadu_si128(from.cast()) })
}
