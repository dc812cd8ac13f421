//! AVX-512 with VNNI: a register holds 16 rows; each lane has one accumulator.

use std::arch::x86_64::*;

use super::Tile;
use crate::input::{BLOCK, Lane};
use crate::matrix::{Data, GROUP, Matrix};

/// Bytes between a load and the prefetch beside it: memory answers after about 100 ns.
const AHEAD: usize = 4096;

#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni,f16c,fma,avx2")]
pub(super) fn product<const M: usize>(matrix: &Matrix, group: usize, x: &[Lane<'_>; M]) -> Tile<M> {
    let (columns, blocks) = (matrix.columns(), matrix.blocks());
    let mut acc = [_mm512_setzero_ps(); M];
    match &matrix.data {
        Data::F32(w) => {
            let w = &w[group * columns * GROUP..(group + 1) * columns * GROUP];
            for k in 0..columns {
                // SAFETY: `w` has 16 values for each column, checked above.
                let w = unsafe { ahead(w.as_ptr().wrapping_add(k * GROUP).cast()) };
                let w = _mm512_castsi512_ps(w);
                for (acc, x) in acc.iter_mut().zip(x) {
                    *acc = _mm512_fmadd_ps(w, _mm512_set1_ps(x.floats[k]), *acc);
                }
            }
        }
        Data::Bf16(w) => {
            let w = &w[group * columns * GROUP..(group + 1) * columns * GROUP];
            for k in 0..columns {
                let from = w.as_ptr().wrapping_add(k * GROUP);
                _mm_prefetch::<_MM_HINT_T0>(from.wrapping_byte_add(AHEAD).cast());
                // SAFETY: as above.
                let bits = unsafe { _mm256_loadu_si256(from.cast()) };
                let w = _mm512_castsi512_ps(_mm512_slli_epi32::<16>(_mm512_cvtepu16_epi32(bits)));
                for (acc, x) in acc.iter_mut().zip(x) {
                    *acc = _mm512_fmadd_ps(w, _mm512_set1_ps(x.floats[k]), *acc);
                }
            }
        }
        Data::Q8 { weights, scales } => {
            let w = &weights[group * blocks * 512..(group + 1) * blocks * 512];
            let scales = &scales[group * blocks * GROUP..(group + 1) * blocks * GROUP];
            for b in 0..blocks {
                let mut dot = [_mm512_setzero_si512(); M];
                for (dot, x) in dot.iter_mut().zip(x) {
                    *dot = _mm512_set1_epi32(x.offsets[b]);
                }
                for k in 0..8 {
                    // SAFETY: `w` has 512 bytes for each block.
                    let w = unsafe { ahead(w.as_ptr().wrapping_add(b * 512 + k * 64)) };
                    for (dot, x) in dot.iter_mut().zip(x) {
                        *dot = _mm512_dpbusd_epi32(*dot, w, four(x, b * BLOCK + k * 4));
                    }
                }
                // SAFETY: 16 scales for each block.
                let d = unsafe { halves(scales.as_ptr().add(b * GROUP)) };
                for ((acc, dot), x) in acc.iter_mut().zip(dot).zip(x) {
                    let scale = _mm512_mul_ps(d, _mm512_set1_ps(x.scales[b]));
                    *acc = _mm512_fmadd_ps(_mm512_cvtepi32_ps(dot), scale, *acc);
                }
            }
        }
        Data::Q4 { weights, scales } => {
            let w = &weights[group * blocks * 256..(group + 1) * blocks * 256];
            let scales = &scales[group * blocks * 2 * GROUP..(group + 1) * blocks * 2 * GROUP];
            let low = _mm512_set1_epi8(15);
            for b in 0..blocks {
                let mut dot = [_mm512_setzero_si512(); M];
                for k in 0..4 {
                    // SAFETY: `w` has 256 bytes for each block.
                    let both = unsafe { ahead(w.as_ptr().wrapping_add(b * 256 + k * 64)) };
                    let first = _mm512_and_si512(both, low);
                    let second = _mm512_and_si512(_mm512_srli_epi16::<4>(both), low);
                    for (dot, x) in dot.iter_mut().zip(x) {
                        let at = b * BLOCK + k * 4;
                        *dot = _mm512_dpbusd_epi32(*dot, first, four(x, at));
                        *dot = _mm512_dpbusd_epi32(*dot, second, four(x, at + 16));
                    }
                }
                // SAFETY: 32 scales for each block.
                let d = unsafe { halves(scales.as_ptr().add(b * 2 * GROUP)) };
                // SAFETY: as above.
                let m = unsafe { halves(scales.as_ptr().add((b * 2 + 1) * GROUP)) };
                for ((acc, dot), x) in acc.iter_mut().zip(dot).zip(x) {
                    let scale = _mm512_mul_ps(d, _mm512_set1_ps(x.scales[b]));
                    *acc = _mm512_fmadd_ps(_mm512_cvtepi32_ps(dot), scale, *acc);
                    *acc = _mm512_fmadd_ps(m, _mm512_set1_ps(x.sums[b]), *acc);
                }
            }
        }
    }
    let mut out = [[0.0; GROUP]; M];
    for (out, acc) in out.iter_mut().zip(acc) {
        // SAFETY: 16 floats.
        unsafe { _mm512_storeu_ps(out.as_mut_ptr(), acc) };
    }
    out
}

/// 64 bytes of weights, asking for those that come [`AHEAD`] later.
///
/// # Safety
/// The 64 bytes can be read.
#[inline]
#[target_feature(enable = "avx512f")]
unsafe fn ahead(from: *const u8) -> __m512i {
    _mm_prefetch::<_MM_HINT_T0>(from.wrapping_add(AHEAD).cast());
    // SAFETY: the caller's.
    unsafe { _mm512_loadu_si512(from.cast()) }
}

/// Four inputs for every row.
#[inline]
#[target_feature(enable = "avx512f")]
fn four(x: &Lane<'_>, at: usize) -> __m512i {
    debug_assert!(at + 4 <= x.quantised.len());
    // SAFETY: a lane has 32 inputs for each block of the matrix, and `at` lies in one of them.
    _mm512_set1_epi32(unsafe { x.quantised.as_ptr().add(at).cast::<i32>().read_unaligned() })
}

/// 16 half-precision floats.
///
/// # Safety
/// They can be read.
#[inline]
#[target_feature(enable = "avx512f")]
unsafe fn halves(from: *const u16) -> __m512 {
    // SAFETY: the caller's.
    _mm512_cvtph_ps(unsafe { _mm256_loadu_si256(from.cast()) })
}
