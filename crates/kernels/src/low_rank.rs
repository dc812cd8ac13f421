//! Side paths of adapters: `y += s (x A) B` with `A: [inputs, rank]`, `B: [rank, outputs]`
//! (LoRA, [arXiv 2106.09685](https://arxiv.org/abs/2106.09685)).
//!
//! Both factors lie in blocks of 16 inputs or outputs, rank by rank, so that each is one stream. In 16 bits
//! each factor is multiplied by a power of two that makes its largest number about 2¹⁴: what a file holds in
//! 16-bit floats stays exact, and small numbers keep their precision.

use std::ops::Range;

use half::f16;

use crate::element::Element;
use crate::isa::{Isa, Set};

/// Inputs or outputs that lie side by side.
const WIDTH: usize = 16;

/// The two factors of a side path.
#[derive(Debug, Clone)]
pub struct LowRank {
    rank: usize,
    inputs: usize,
    outputs: usize,
    /// Takes back the powers of two.
    scale: f32,
    factors: Factors,
}

#[derive(Debug, Clone)]
enum Factors {
    F32(Pair<f32>),
    F16(Pair<f16>),
}

#[derive(Debug, Clone)]
struct Pair<E> {
    /// `[inputs / 16][rank][16]`.
    a: Vec<E>,
    /// `[outputs / 16][rank][16]`.
    b: Vec<E>,
}

/// A factor `at(i, rank)` in blocks of 16.
fn lay<E: Element>(n: usize, rank: usize, factor: f32, at: impl Fn(usize, usize) -> f32) -> Vec<E> {
    let mut floats = vec![0.0; n.div_ceil(WIDTH) * rank * WIDTH];
    for i in 0..n {
        for r in 0..rank {
            floats[(i / WIDTH * rank + r) * WIDTH + i % WIDTH] = at(i, r) * factor;
        }
    }
    let mut out = vec![E::default(); floats.len()];
    E::round(Isa::best(), &floats, &mut out);
    out
}

/// The power of two that brings the largest number into 2¹⁴..2¹⁵.
fn lift(values: &[f32]) -> f32 {
    let largest = values.iter().fold(0f32, |m, v| m.max(v.abs()));
    if largest == 0.0 || !largest.is_finite() {
        return 1.0;
    }
    let power = 14 - largest.log2().floor() as i32;
    // Downwards as far as it takes: a factor that is cut off would be another one.
    2f32.powi(power.clamp(-120, 40))
}

impl LowRank {
    /// Packs `a: [inputs, rank]` and `b: [rank, outputs]`, in 16 bits where `half` says so.
    ///
    /// # Panics
    /// When a factor has another length.
    pub fn pack(
        rank: usize,
        [inputs, outputs]: [usize; 2],
        a: &[f32],
        b: &[f32],
        half: bool,
    ) -> Self {
        let right = a.len() == inputs * rank && b.len() == rank * outputs;
        assert!(right, "factors of a side path");
        let (lift_a, lift_b) = if half { (lift(a), lift(b)) } else { (1.0, 1.0) };
        let at_a = |i: usize, r: usize| a[i * rank + r];
        let at_b = |o: usize, r: usize| b[r * outputs + o];
        let factors = match half {
            false => Factors::F32(Pair {
                a: lay(inputs, rank, lift_a, at_a),
                b: lay(outputs, rank, lift_b, at_b),
            }),
            true => Factors::F16(Pair {
                a: lay(inputs, rank, lift_a, at_a),
                b: lay(outputs, rank, lift_b, at_b),
            }),
        };
        Self {
            rank,
            inputs,
            outputs,
            scale: 1.0 / lift_a / lift_b,
            factors,
        }
    }

    /// Width between the factors.
    pub fn rank(&self) -> usize {
        self.rank
    }

    /// Bytes of both factors.
    pub fn bytes(&self) -> usize {
        match &self.factors {
            Factors::F32(p) => 4 * (p.a.len() + p.b.len()),
            Factors::F16(p) => 2 * (p.a.len() + p.b.len()),
        }
    }

    /// `out = x A`, `[rank]`.
    ///
    /// # Panics
    /// When `x` is not `[inputs]` or `out` not `[rank]`.
    pub fn narrow(&self, isa: Isa, x: &[f32], out: &mut [f32]) {
        assert!(
            x.len() == self.inputs && out.len() == self.rank,
            "a side path's input"
        );
        match &self.factors {
            Factors::F32(pair) => narrow(isa, &pair.a, self.rank, x, out),
            Factors::F16(pair) => narrow(isa, &pair.a, self.rank, x, out),
        }
        out.iter_mut().for_each(|v| *v *= self.scale);
    }

    /// `out += side B` for some outputs, of which the first is a multiple of 16.
    ///
    /// # Panics
    /// When `side` is not `[rank]`, or `out` has another length than `outputs`, or there are no such outputs.
    pub fn widen(&self, isa: Isa, side: &[f32], outputs: Range<usize>, out: &mut [f32]) {
        let inside = outputs.start.is_multiple_of(WIDTH) && outputs.end <= self.outputs;
        assert!(
            inside && out.len() == outputs.len() && side.len() == self.rank,
            "a side path's output"
        );
        let from = outputs.start / WIDTH * self.rank * WIDTH;
        match &self.factors {
            Factors::F32(pair) => widen(isa, &pair.b[from..], side, out),
            Factors::F16(pair) => widen(isa, &pair.b[from..], side, out),
        }
    }
}

fn narrow<E: Element>(isa: Isa, a: &[E], rank: usize, x: &[f32], out: &mut [f32]) {
    match isa.set() {
        #[cfg(target_arch = "x86_64")]
        // SAFETY: the processor has these instructions, or the Isa would not have been made.
        Set::Avx512 => unsafe { avx512::narrow(a, rank, x, out) },
        #[cfg(target_arch = "x86_64")]
        // SAFETY: as above.
        Set::Avx2 => unsafe { avx2::narrow(a, rank, x, out) },
        #[cfg(target_arch = "aarch64")]
        // SAFETY: as above.
        Set::Neon => unsafe { neon::narrow(a, rank, x, out) },
        _ => portable_narrow(a, rank, x, out),
    }
}

fn widen<E: Element>(isa: Isa, b: &[E], side: &[f32], out: &mut [f32]) {
    match isa.set() {
        #[cfg(target_arch = "x86_64")]
        // SAFETY: the processor has these instructions, or the Isa would not have been made.
        Set::Avx512 => unsafe { avx512::widen(b, side, out) },
        #[cfg(target_arch = "x86_64")]
        // SAFETY: as above.
        Set::Avx2 => unsafe { avx2::widen(b, side, out) },
        #[cfg(target_arch = "aarch64")]
        // SAFETY: as above.
        Set::Neon => unsafe { neon::widen(b, side, out) },
        _ => portable_widen(b, side, out),
    }
}

/// Each rank's sum runs in 16 columns, which are added in halves at the end.
#[inline(always)]
fn portable_narrow<E: Element>(a: &[E], rank: usize, x: &[f32], out: &mut [f32]) {
    for (r, out) in out.iter_mut().enumerate() {
        let mut columns = [0f32; WIDTH];
        for (x, a) in x.chunks(WIDTH).zip(a.chunks_exact(rank * WIDTH)) {
            let a = &a[r * WIDTH..(r + 1) * WIDTH];
            for ((column, x), a) in columns.iter_mut().zip(x).zip(a) {
                *column = x.mul_add(a.get(), *column);
            }
        }
        let mut width = WIDTH;
        while width > 1 {
            width /= 2;
            let (low, high) = columns.split_at_mut(width);
            low.iter_mut().zip(high).for_each(|(l, h)| *l += *h);
        }
        *out = columns[0];
    }
}

#[inline(always)]
fn portable_widen<E: Element>(b: &[E], side: &[f32], out: &mut [f32]) {
    for (out, b) in out
        .chunks_mut(WIDTH)
        .zip(b.chunks_exact(side.len() * WIDTH))
    {
        for (side, b) in side.iter().zip(b.chunks_exact(WIDTH)) {
            for (out, b) in out.iter_mut().zip(b) {
                *out = side.mul_add(b.get(), *out);
            }
        }
    }
}

#[cfg(target_arch = "x86_64")]
mod avx2 {
    use super::*;

    #[target_feature(enable = "avx2,fma")]
    pub fn narrow<E: Element>(a: &[E], rank: usize, x: &[f32], out: &mut [f32]) {
        portable_narrow(a, rank, x, out);
    }

    #[target_feature(enable = "avx2,fma")]
    pub fn widen<E: Element>(b: &[E], side: &[f32], out: &mut [f32]) {
        portable_widen(b, side, out);
    }
}

#[cfg(target_arch = "x86_64")]
mod avx512 {
    use std::arch::x86_64::*;

    use super::*;

    /// Ranks whose sums are made together: as many chains of multiply-adds.
    const CHAINS: usize = 8;

    #[target_feature(enable = "avx512f,avx512dq,avx2,fma")]
    pub fn narrow<E: Element>(a: &[E], rank: usize, x: &[f32], out: &mut [f32]) {
        let mut first = 0;
        while first < rank {
            let out = &mut out[first..];
            first += match rank - first {
                CHAINS.. => sums::<CHAINS, E>(a, rank, first, x, out),
                4.. => sums::<4, E>(a, rank, first, x, out),
                2.. => sums::<2, E>(a, rank, first, x, out),
                _ => sums::<1, E>(a, rank, first, x, out),
            };
        }
    }

    /// Sums of `N` ranks from `first` on; returns `N`.
    #[inline]
    #[target_feature(enable = "avx512f,avx512dq,avx2,fma")]
    fn sums<const N: usize, E: Element>(
        a: &[E],
        rank: usize,
        first: usize,
        x: &[f32],
        out: &mut [f32],
    ) -> usize {
        assert!(first + N <= rank && a.len() >= x.len().div_ceil(WIDTH) * rank * WIDTH);
        let mut sums = [_mm512_setzero_ps(); N];
        for (block, x) in x.chunks(WIDTH).enumerate() {
            let mask = (1u32 << x.len()).wrapping_sub(1) as u16;
            // SAFETY: as many inputs as the mask says.
            let x = unsafe { _mm512_maskz_loadu_ps(mask, x.as_ptr()) };
            for (n, sum) in sums.iter_mut().enumerate() {
                // SAFETY: 16 numbers of this block and rank, as asserted.
                let a = unsafe { E::load(a.as_ptr().add((block * rank + first + n) * WIDTH)) };
                *sum = _mm512_fmadd_ps(x, a, *sum);
            }
        }
        for (out, sum) in out.iter_mut().zip(sums) {
            let half = _mm512_castps512_ps256(sum);
            let sum = _mm256_add_ps(half, _mm512_extractf32x8_ps::<1>(sum));
            let half = _mm256_castps256_ps128(sum);
            let sum = _mm_add_ps(half, _mm256_extractf128_ps::<1>(sum));
            let sum = _mm_add_ps(sum, _mm_movehl_ps(sum, sum));
            *out = _mm_cvtss_f32(_mm_add_ss(sum, _mm_shuffle_ps::<1>(sum, sum)));
        }
        N
    }

    #[target_feature(enable = "avx512f,avx512dq,avx2,fma")]
    pub fn widen<E: Element>(b: &[E], side: &[f32], out: &mut [f32]) {
        let rank = side.len();
        assert!(b.len() >= out.len().div_ceil(WIDTH) * rank * WIDTH);
        for (block, out) in out.chunks_mut(WIDTH).enumerate() {
            let mask = (1u32 << out.len()).wrapping_sub(1) as u16;
            // SAFETY: as many outputs as the mask says.
            let mut sum = unsafe { _mm512_maskz_loadu_ps(mask, out.as_ptr()) };
            for (r, side) in side.iter().enumerate() {
                // SAFETY: 16 numbers of this block and rank, as asserted.
                let b = unsafe { E::load(b.as_ptr().add((block * rank + r) * WIDTH)) };
                sum = _mm512_fmadd_ps(_mm512_set1_ps(*side), b, sum);
            }
            // SAFETY: as above.
            unsafe { _mm512_mask_storeu_ps(out.as_mut_ptr(), mask, sum) };
        }
    }
}

#[cfg(target_arch = "aarch64")]
mod neon {
    use std::arch::aarch64::*;

    use super::*;
    use crate::element::store;

    /// Ranks whose sums are made together: four chains of multiply-adds each.
    const RANKS: usize = 4;

    #[target_feature(enable = "neon")]
    pub fn narrow<E: Element>(a: &[E], rank: usize, x: &[f32], out: &mut [f32]) {
        let mut first = 0;
        while first < rank {
            let out = &mut out[first..];
            first += match rank - first {
                RANKS.. => sums::<RANKS, E>(a, rank, first, x, out),
                _ => sums::<1, E>(a, rank, first, x, out),
            };
        }
    }

    /// Sums of `N` ranks from `first` on; returns `N`.
    #[inline]
    #[target_feature(enable = "neon")]
    fn sums<const N: usize, E: Element>(
        a: &[E],
        rank: usize,
        first: usize,
        x: &[f32],
        out: &mut [f32],
    ) -> usize {
        assert!(first + N <= rank && a.len() >= x.len().div_ceil(WIDTH) * rank * WIDTH);
        let mut sums = [[vdupq_n_f32(0.0); 4]; N];
        for (block, x) in x.chunks(WIDTH).enumerate() {
            let x = load(x);
            for (n, sum) in sums.iter_mut().enumerate() {
                // SAFETY: 16 numbers of this block and rank, as asserted.
                let a = unsafe { E::load(a.as_ptr().add((block * rank + first + n) * WIDTH)) };
                for ((sum, x), a) in sum.iter_mut().zip(x).zip(a) {
                    *sum = vfmaq_f32(*sum, x, a);
                }
            }
        }
        for (out, sum) in out.iter_mut().zip(sums) {
            let sum = vaddq_f32(vaddq_f32(sum[0], sum[2]), vaddq_f32(sum[1], sum[3]));
            *out = vpadds_f32(vadd_f32(vget_low_f32(sum), vget_high_f32(sum)));
        }
        N
    }

    #[target_feature(enable = "neon")]
    pub fn widen<E: Element>(b: &[E], side: &[f32], out: &mut [f32]) {
        let rank = side.len();
        assert!(b.len() >= out.len().div_ceil(WIDTH) * rank * WIDTH);
        for (block, out) in out.chunks_mut(WIDTH).enumerate() {
            let mut sum = load(out);
            for (r, side) in side.iter().enumerate() {
                // SAFETY: 16 numbers of this block and rank, as asserted.
                let b = unsafe { E::load(b.as_ptr().add((block * rank + r) * WIDTH)) };
                for (sum, b) in sum.iter_mut().zip(b) {
                    *sum = vfmaq_n_f32(*sum, b, *side);
                }
            }
            let mut padded = [0.0; WIDTH];
            store(sum, &mut padded);
            out.copy_from_slice(&padded[..out.len()]);
        }
    }

    /// Up to 16 floats; zeros follow.
    #[inline]
    #[target_feature(enable = "neon")]
    fn load(from: &[f32]) -> [float32x4_t; 4] {
        let mut padded = [0.0; WIDTH];
        let from = from.first_chunk().unwrap_or_else(|| {
            padded[..from.len()].copy_from_slice(from);
            &padded
        });
        // SAFETY: 16 floats.
        unsafe { f32::load(from.as_ptr()) }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn side_paths_equal_their_formula_and_each_other(
            rank in 1usize..20, inputs in 1usize..90, outputs in 1usize..90, seed in 0usize..1000,
            size in prop::sample::select(vec![1e-8f32, 1e-3, 1.0, 1e4]),
        ) {
            // Halves, so that 16 bits hold them.
            let number = |i: usize| f16::from_f32(((i * 7919 + seed * 31 + 13) % 1000) as f32 / 500.0 - 1.0).to_f32();
            let a: Vec<f32> = (0..inputs * rank).map(|i| number(i) * size).collect();
            let b: Vec<f32> = (0..rank * outputs).map(|i| number(i + 5)).collect();
            let x: Vec<f32> = (0..inputs).map(|i| number(i + 9)).collect();
            let from = outputs / 2 / WIDTH * WIDTH;
            let mut all: Vec<Vec<f32>> = Vec::new();
            for half in [false, true] {
                let path = LowRank::pack(rank, [inputs, outputs], &a, &b, half);
                for isa in Isa::available() {
                    let (mut side, mut out) = (vec![0.0; rank], vec![0.5; outputs - from]);
                    path.narrow(isa, &x, &mut side);
                    path.widen(isa, &side, from..outputs, &mut out);
                    all.push(out);
                }
            }
            let sides: Vec<f64> = (0..rank)
                .map(|r| (0..inputs).map(|i| f64::from(x[i]) * f64::from(a[i * rank + r])).sum())
                .collect();
            for (o, got) in all[0].iter().enumerate() {
                let terms = (0..rank).map(|r| sides[r] * f64::from(b[r * outputs + from + o]));
                let exact: f64 = 0.5 + terms.sum::<f64>();
                let bound = 1e-5 * (1.0 + f64::from(size) * (rank * inputs) as f64);
                prop_assert!((f64::from(*got) - exact).abs() < bound, "{} {}", got, exact);
            }
            let bits = |v: &[f32]| v.iter().map(|v| v.to_bits()).collect::<Vec<_>>();
            let (floats, halves) = all.split_at(Isa::available().len());
            for other in floats {
                prop_assert_eq!(bits(other), bits(&floats[0]));
            }
            for other in halves {
                prop_assert_eq!(bits(other), bits(&halves[0]));
                for (a, b) in other.iter().zip(&floats[0]) {
                    prop_assert!((a - b).abs() <= 1e-6 + 1e-3 * size * (rank * inputs) as f32);
                }
            }
        }
    }
}
