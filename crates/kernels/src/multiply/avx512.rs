//! AVX-512 with VNNI: a register holds 16 rows; a tile is up to two groups of rows by six lanes, so that a
//! load of weights serves six dot products and a load of inputs two.

use std::arch::x86_64::*;

use super::{Ahead, Output, write};
use crate::format::{BLOCK, GROUP};
use crate::input::{Lanes, Rounded};
use crate::matrix::{Data, Matrix};

/// Multiplies `G` groups from `group` on with `M` lanes and writes the results of lanes `lane..lane + M`.
///
/// # Safety
/// The caller has these outputs alone.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni,f16c,fma,avx2")]
pub(super) unsafe fn tile<const G: usize, const M: usize>(
    matrix: &Matrix,
    group: usize,
    x: Lanes<'_, M>,
    lane: usize,
    output: &Output<'_>,
    ahead: Ahead,
) {
    assert!(group + G <= matrix.groups(), "no such group");
    let (columns, blocks) = (matrix.columns(), matrix.blocks());
    let (floats, rounded) = x.starts();
    // SAFETY: the matrix holds these groups, as asserted, and every lane has as many inputs as it has columns.
    let acc = unsafe {
        match &matrix.data {
            Data::F32(w) => float(
                w.as_ptr().add(group * columns * GROUP),
                columns,
                &floats,
                ahead,
                |at| _mm512_loadu_ps(at),
            ),
            Data::Bf16(w) => float(
                w.as_ptr().add(group * columns * GROUP),
                columns,
                &floats,
                ahead,
                |at| {
                    let bits = _mm256_loadu_si256(at.cast());
                    _mm512_castsi512_ps(_mm512_slli_epi32::<16>(_mm512_cvtepu16_epi32(bits)))
                },
            ),
            Data::Q8 { weights, scales } => q8::<G, M>(
                weights.as_ptr().add(group * blocks * 512),
                scales.as_ptr().add(group * blocks * GROUP),
                blocks,
                &rounded,
                ahead,
            ),
            Data::Q4 { weights, scales } => q4::<G, M>(
                weights.as_ptr().add(group * blocks * 256),
                scales.as_ptr().add(group * blocks * 2 * GROUP),
                blocks,
                &rounded,
                ahead,
            ),
        }
    };
    for (g, acc) in acc.into_iter().enumerate() {
        let group = group + g;
        let is_full = (group + 1) * GROUP <= matrix.rows();
        for (i, acc) in acc.into_iter().enumerate() {
            if !is_full {
                let mut values = [0.0; GROUP];
                // SAFETY: 16 floats; the outputs are the caller's.
                unsafe {
                    _mm512_storeu_ps(values.as_mut_ptr(), acc);
                    write(matrix, group, lane + i, &values, output);
                }
                continue;
            }
            let start = (lane + i) * output.width + output.offset + group * GROUP;
            // SAFETY: the outputs are the caller's; 16 floats.
            unsafe {
                let out = output.values.write(start..start + GROUP).as_mut_ptr();
                let sum = if output.add {
                    _mm512_add_ps(_mm512_loadu_ps(out), acc)
                } else {
                    acc
                };
                _mm512_storeu_ps(out, sum);
            }
        }
    }
}

/// # Safety
/// `w` has `G` groups of `columns` columns, which `load` can read; each lane has `columns` inputs.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni,f16c,fma,avx2")]
unsafe fn float<const G: usize, const M: usize, W>(
    w: *const W,
    columns: usize,
    x: &[*const f32; M],
    mut ahead: Ahead,
    load: impl Fn(*const W) -> __m512,
) -> [[__m512; M]; G] {
    let mut acc = [[_mm512_setzero_ps(); M]; G];
    for k in 0..columns {
        let here = w.wrapping_add(k * GROUP);
        if ahead.now() {
            for g in 0..G {
                ahead.ask(here.wrapping_add(g * columns * GROUP).cast());
            }
        }
        let w: [__m512; G] = std::array::from_fn(|g| load(here.wrapping_add(g * columns * GROUP)));
        for (i, x) in x.iter().enumerate() {
            // SAFETY: `k` is one of the lane's columns.
            let x = _mm512_set1_ps(unsafe { *x.add(k) });
            for (acc, w) in acc.iter_mut().zip(w) {
                acc[i] = _mm512_fmadd_ps(w, x, acc[i]);
            }
        }
    }
    acc
}

/// # Safety
/// `w` and `d` have `G` groups of `blocks` blocks, each lane `blocks` blocks.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni,f16c,fma,avx2")]
unsafe fn q8<const G: usize, const M: usize>(
    w: *const u8,
    d: *const u16,
    blocks: usize,
    x: &[*const Rounded; M],
    mut ahead: Ahead,
) -> [[__m512; M]; G] {
    let mut acc = [[_mm512_setzero_ps(); M]; G];
    for b in 0..blocks {
        // SAFETY: block `b` of every lane and group.
        unsafe {
            let x = x.map(|x| x.add(b));
            let w: [*const u8; G] = std::array::from_fn(|g| w.add((g * blocks + b) * 512));
            if ahead.now() {
                for w in w {
                    (0..8).for_each(|k| ahead.ask(w.wrapping_add(k * 64)));
                }
            }
            let start = x.map(|x| _mm512_set1_epi32((*x).offset));
            let mut dot = [start; G];
            for k in 0..8 {
                let w = w.map(|w| _mm512_loadu_si512(w.add(k * 64).cast()));
                for (i, x) in x.iter().enumerate() {
                    let x = four(*x, k * 4);
                    for (dot, w) in dot.iter_mut().zip(w) {
                        dot[i] = _mm512_dpbusd_epi32(dot[i], w, x);
                    }
                }
            }
            for (g, (acc, dot)) in acc.iter_mut().zip(dot).enumerate() {
                let d = halves(d.add((g * blocks + b) * GROUP));
                for ((acc, dot), x) in acc.iter_mut().zip(dot).zip(x) {
                    let scale = _mm512_mul_ps(d, _mm512_set1_ps((*x).scale));
                    *acc = _mm512_fmadd_ps(_mm512_cvtepi32_ps(dot), scale, *acc);
                }
            }
        }
    }
    acc
}

/// # Safety
/// As of [`q8`].
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni,f16c,fma,avx2")]
unsafe fn q4<const G: usize, const M: usize>(
    w: *const u8,
    d: *const u16,
    blocks: usize,
    x: &[*const Rounded; M],
    mut ahead: Ahead,
) -> [[__m512; M]; G] {
    let mut acc = [[_mm512_setzero_ps(); M]; G];
    let low = _mm512_set1_epi8(15);
    for b in 0..blocks {
        // SAFETY: block `b` of every lane and group.
        unsafe {
            let x = x.map(|x| x.add(b));
            let w: [*const u8; G] = std::array::from_fn(|g| w.add((g * blocks + b) * 256));
            if ahead.now() {
                for w in w {
                    (0..4).for_each(|k| ahead.ask(w.wrapping_add(k * 64)));
                }
            }
            let mut dot = [[_mm512_setzero_si512(); M]; G];
            for k in 0..4 {
                let both = w.map(|w| _mm512_loadu_si512(w.add(k * 64).cast()));
                let first = both.map(|w| _mm512_and_si512(w, low));
                let second = both.map(|w| _mm512_and_si512(_mm512_srli_epi16::<4>(w), low));
                for (i, x) in x.iter().enumerate() {
                    let (early, late) = (four(*x, k * 4), four(*x, k * 4 + 16));
                    for ((dot, first), second) in dot.iter_mut().zip(first).zip(second) {
                        dot[i] = _mm512_dpbusd_epi32(dot[i], first, early);
                        dot[i] = _mm512_dpbusd_epi32(dot[i], second, late);
                    }
                }
            }
            for (g, (acc, dot)) in acc.iter_mut().zip(dot).enumerate() {
                let d = d.add((g * blocks + b) * 2 * GROUP);
                let (d, m) = (halves(d), halves(d.add(GROUP)));
                for ((acc, dot), x) in acc.iter_mut().zip(dot).zip(x) {
                    let scale = _mm512_mul_ps(d, _mm512_set1_ps((*x).scale));
                    *acc = _mm512_fmadd_ps(_mm512_cvtepi32_ps(dot), scale, *acc);
                    *acc = _mm512_fmadd_ps(m, _mm512_set1_ps((*x).sum), *acc);
                }
            }
        }
    }
    acc
}

/// Four inputs of a block, for every row.
///
/// # Safety
/// The block can be read, and `at + 4` is at most its size.
#[inline]
#[target_feature(enable = "avx512f")]
unsafe fn four(x: *const Rounded, at: usize) -> __m512i {
    debug_assert!(at + 4 <= BLOCK);
    // SAFETY: the caller's.
    _mm512_set1_epi32(unsafe { x.cast::<u8>().add(at).cast::<i32>().read() })
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
