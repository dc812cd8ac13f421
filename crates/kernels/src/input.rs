//! Inputs of a multiplication, rounded once for all matrices that read them.

use crate::format::{BLOCK, Format};
use crate::isa::Isa;
#[cfg(target_arch = "x86_64")]
use crate::isa::Set;
use crate::math::ROUND;
use crate::shared::Shared;

/// A block of inputs, rounded: `x ≈ s q`. Where one of the inputs is NaN or infinite, `s` is NaN, and so is every
/// product with the block.
#[derive(Debug, Default, Clone, Copy)]
#[repr(C, align(16))]
pub(crate) struct Rounded {
    pub q: [i8; BLOCK],
    /// `s = max |x| / 127`.
    pub scale: f32,
    /// `−128 Σ q`: takes back the offset of the weights' bytes.
    pub offset: i32,
    /// `s Σ q`: what a weight's minimum is multiplied with.
    pub sum: f32,
}

/// Inputs of a multiplication, `[lanes, columns]`, prepared once for all matrices that read them.
///
/// For 8- and 4-bit weights each block of 32 is rounded to 8-bit integers with its own scale,
/// `x ≈ s q`, `s = max |x| / 127`.
#[derive(Debug, Default, Clone)]
pub struct Input {
    columns: usize,
    blocks: usize,
    /// `[lanes, columns]`.
    floats: Vec<f32>,
    /// `[lanes, blocks]`.
    rounded: Vec<Rounded>,
}

/// One lane's part of an [`Input`].
#[derive(Debug)]
pub struct InputRow<'a> {
    /// `[columns]`; read by the float formats.
    pub floats: &'a mut [f32],
    rounded: &'a mut [Rounded],
}

impl Input {
    /// Makes room for `lanes` rows of `columns`; memory is kept.
    pub fn resize(&mut self, lanes: usize, columns: usize) {
        let blocks = columns.div_ceil(BLOCK);
        (self.columns, self.blocks) = (columns, blocks);
        self.floats.resize(lanes * columns, 0.0);
        self.rounded.resize(lanes * blocks, Rounded::default());
    }

    /// Number of lanes.
    pub fn lanes(&self) -> usize {
        self.floats.len().checked_div(self.columns).unwrap_or(0)
    }

    /// A view that the members of a team can write to at once, each its own lanes.
    pub fn share(&mut self) -> InputView<'_> {
        InputView {
            columns: self.columns,
            blocks: self.blocks,
            first: 0,
            floats: Shared::new(&mut self.floats),
            rounded: Shared::new(&mut self.rounded),
        }
    }
}

/// A shared [`Input`].
#[derive(Debug, Clone, Copy)]
pub struct InputView<'a> {
    pub(crate) columns: usize,
    pub(crate) blocks: usize,
    /// Lane that counts as the first.
    first: usize,
    floats: Shared<'a, f32>,
    rounded: Shared<'a, Rounded>,
}

/// One lane's inputs.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Lane<'a> {
    pub floats: &'a [f32],
    pub rounded: &'a [Rounded],
}

/// What kernels read: `M` lanes, one behind the other.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Lanes<'a, const M: usize> {
    /// `[M, columns]`.
    floats: &'a [f32],
    /// `[M, blocks]`.
    rounded: &'a [Rounded],
    columns: usize,
    blocks: usize,
}

impl<'a, const M: usize> Lanes<'a, M> {
    /// One by one.
    pub fn each(&self) -> [Lane<'a>; M] {
        std::array::from_fn(|i| Lane {
            floats: &self.floats[i * self.columns..(i + 1) * self.columns],
            rounded: &self.rounded[i * self.blocks..(i + 1) * self.blocks],
        })
    }

    /// Where each lane's inputs begin.
    #[cfg(target_arch = "x86_64")]
    pub fn starts(&self) -> ([*const f32; M], [*const Rounded; M]) {
        let (mut floats, mut rounded) = ([self.floats.as_ptr(); M], [self.rounded.as_ptr(); M]);
        for lane in 0..M {
            floats[lane] = floats[lane].wrapping_add(lane * self.columns);
            rounded[lane] = rounded[lane].wrapping_add(lane * self.blocks);
        }
        (floats, rounded)
    }
}

impl<'a> InputView<'a> {
    /// A row to write.
    ///
    /// # Safety
    /// Nobody else uses this row meanwhile.
    ///
    /// # Panics
    /// When there is no such lane.
    pub unsafe fn row(&self, lane: usize) -> InputRow<'a> {
        let lane = self.first + lane;
        let part = |width: usize| lane * width..(lane + 1) * width;
        // SAFETY: the caller has the row alone.
        unsafe {
            InputRow {
                floats: self.floats.write(part(self.columns)),
                rounded: self.rounded.write(part(self.blocks)),
            }
        }
    }

    /// The same input without its first lanes.
    pub fn skip(self, lanes: usize) -> Self {
        Self {
            first: self.first + lanes,
            ..self
        }
    }

    /// Some columns of a row's floats, to write.
    ///
    /// # Safety
    /// Nobody else uses these columns of this row meanwhile.
    ///
    /// # Panics
    /// When there is no such lane or column.
    pub unsafe fn part(&self, lane: usize, columns: std::ops::Range<usize>) -> &'a mut [f32] {
        assert!(columns.end <= self.columns, "no such column");
        let start = (self.first + lane) * self.columns;
        // SAFETY: the caller has them alone.
        unsafe {
            self.floats
                .write(start + columns.start..start + columns.end)
        }
    }

    /// A row's floats, to read.
    ///
    /// # Safety
    /// Nobody writes them meanwhile.
    ///
    /// # Panics
    /// When there is no such lane.
    pub unsafe fn floats(&self, lane: usize) -> &'a [f32] {
        let start = (self.first + lane) * self.columns;
        // SAFETY: the caller keeps writers away.
        unsafe { self.floats.read(start..start + self.columns) }
    }

    /// `M` lanes to read, from `lane` on.
    ///
    /// # Safety
    /// Nobody writes them meanwhile.
    #[inline(always)]
    pub(crate) unsafe fn lanes<const M: usize>(&self, lane: usize) -> Lanes<'a, M> {
        let lane = self.first + lane;
        let part = |width: usize| lane * width..(lane + M) * width;
        // SAFETY: the caller keeps writers away.
        unsafe {
            Lanes {
                floats: self.floats.read(part(self.columns)),
                rounded: self.rounded.read(part(self.blocks)),
                columns: self.columns,
                blocks: self.blocks,
            }
        }
    }
}

impl InputRow<'_> {
    /// Rounds the floats for weights of this format; nothing is done for float formats.
    pub fn quantise(&mut self, isa: Isa, format: Format) {
        if matches!(format, Format::F32 | Format::Bf16) {
            return;
        }
        match isa.set() {
            #[cfg(target_arch = "x86_64")]
            // SAFETY: the processor has these instructions, or the Isa would not have been made.
            Set::Avx512 => unsafe { self.quantise_avx512() },
            #[cfg(target_arch = "x86_64")]
            // SAFETY: as above.
            Set::Avx2 => unsafe { self.quantise_avx2() },
            _ => self.quantise_inner(),
        }
    }

    #[cfg(target_arch = "x86_64")]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx2,fma")]
    fn quantise_avx512(&mut self) {
        for (block, x) in self.rounded.iter_mut().zip(self.floats.chunks(BLOCK)) {
            block.round_avx512(x);
        }
    }

    #[cfg(target_arch = "x86_64")]
    #[target_feature(enable = "avx2,fma")]
    fn quantise_avx2(&mut self) {
        self.quantise_inner();
    }

    #[inline(always)]
    fn quantise_inner(&mut self) {
        for (block, x) in self.rounded.iter_mut().zip(self.floats.chunks(BLOCK)) {
            match x.try_into() {
                Ok(values) => block.round(values),
                // Short of a block: zeros follow.
                Err(_) => {
                    let mut padded = [0.0; BLOCK];
                    padded[..x.len()].copy_from_slice(x);
                    block.round(&padded);
                }
            }
        }
    }
}

impl Rounded {
    /// A block that holds something that is no number.
    const NOT_FINITE: Self = Self {
        q: [0; BLOCK],
        scale: f32::NAN,
        offset: 0,
        sum: f32::NAN,
    };

    #[inline(always)]
    fn round(&mut self, x: &[f32; BLOCK]) {
        // Bits of absolute values are ordered as these are, infinity and then NaN behind all numbers.
        let mut largest = [0u32; 16];
        for part in x.chunks_exact(16) {
            for (m, v) in largest.iter_mut().zip(part) {
                let bits = v.abs().to_bits();
                *m = if bits > *m { bits } else { *m };
            }
        }
        let mut width = 16;
        while width > 1 {
            width /= 2;
            let (low, high) = largest.split_at_mut(width);
            for (l, h) in low.iter_mut().zip(high) {
                *l = if *h > *l { *h } else { *l };
            }
        }
        let largest = f32::from_bits(largest[0]);
        if !largest.is_finite() {
            *self = Self::NOT_FINITE;
            return;
        }
        let scale = largest / 127.0;
        let inverse = 127.0 / largest;
        // Zeros, and what is so small that its inverse overflows.
        let inverse = if inverse.is_finite() { inverse } else { 0.0 };
        let mut sums = [0i32; 16];
        for (q, x) in self.q.chunks_exact_mut(16).zip(x.chunks_exact(16)) {
            for ((q, v), sum) in q.iter_mut().zip(x).zip(&mut sums) {
                // At most 127 in absolute value, by the choice of the scale.
                let rounded = (v * inverse + ROUND)
                    .to_bits()
                    .wrapping_sub(ROUND.to_bits()) as i32;
                *q = rounded as i8;
                // Explicitly: a check for overflow would keep the loop from being vectorised.
                *sum = sum.wrapping_add(rounded);
            }
        }
        let sum = sums.iter().fold(0i32, |a, b| a.wrapping_add(*b));
        self.scale = scale;
        self.offset = -128 * sum;
        self.sum = scale * sum as f32;
    }

    /// The same operations on vectors; sums of integers and maxima have no order.
    #[cfg(target_arch = "x86_64")]
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx2,fma")]
    fn round_avx512(&mut self, x: &[f32]) {
        use std::arch::x86_64::*;
        let mask = u32::MAX >> (BLOCK - x.len());
        // SAFETY: as many numbers as the mask says.
        let x = unsafe {
            [
                _mm512_maskz_loadu_ps(mask as u16, x.as_ptr()),
                _mm512_maskz_loadu_ps((mask >> 16) as u16, x.as_ptr().wrapping_add(16)),
            ]
        };
        // As bits: see `round`.
        let [low, high] = x.map(|x| _mm512_castps_si512(_mm512_abs_ps(x)));
        let largest = f32::from_bits(_mm512_reduce_max_epu32(_mm512_max_epu32(low, high)));
        if !largest.is_finite() {
            *self = Self::NOT_FINITE;
            return;
        }
        let inverse = 127.0 / largest;
        let inverse = if inverse.is_finite() { inverse } else { 0.0 };
        self.scale = largest / 127.0;
        let magic = _mm512_set1_ps(ROUND);
        let q = x.map(|x| {
            let sum = _mm512_add_ps(_mm512_mul_ps(x, _mm512_set1_ps(inverse)), magic);
            _mm512_sub_epi32(_mm512_castps_si512(sum), _mm512_castps_si512(magic))
        });
        for (to, q) in self.q.chunks_exact_mut(16).zip(q) {
            // SAFETY: 16 bytes.
            unsafe { _mm_storeu_si128(to.as_mut_ptr().cast(), _mm512_cvtepi32_epi8(q)) };
        }
        let sum = _mm512_reduce_add_epi32(_mm512_add_epi32(q[0], q[1]));
        self.offset = -128 * sum;
        self.sum = self.scale * sum as f32;
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// The blocks of one row, as every instruction set rounds it: the same bits.
    fn rounded(x: &[f32]) -> Vec<(Vec<i8>, u32, i32, u32)> {
        let of = |isa: Isa| {
            let mut input = Input::default();
            input.resize(1, x.len());
            // SAFETY: nobody else has the row.
            let mut row = unsafe { input.share().row(0) };
            row.floats.copy_from_slice(x);
            row.quantise(isa, Format::Q8);
            let bits = |b: &Rounded| (b.q.to_vec(), b.scale.to_bits(), b.offset, b.sum.to_bits());
            row.rounded.iter().map(bits).collect::<Vec<_>>()
        };
        let first = of(Isa::PORTABLE);
        for isa in Isa::available() {
            assert_eq!(of(isa), first, "{isa:?}");
        }
        first
    }

    proptest! {
        #[test]
        fn what_is_no_number_marks_its_block_and_no_other(
            mut x in prop::collection::vec(-9.0f32..9.0, 1..100),
            places in prop::collection::vec((0usize..100, 0usize..3), 1..40),
        ) {
            let clean = rounded(&x);
            let mut marked = vec![false; clean.len()];
            for (index, kind) in places {
                let index = index % x.len();
                x[index] = [f32::NAN, f32::INFINITY, f32::NEG_INFINITY][kind];
                marked[index / BLOCK] = true;
            }
            for (block, (clean, marked)) in rounded(&x).iter().zip(clean.iter().zip(marked)) {
                match marked {
                    false => prop_assert_eq!(block, clean),
                    true => {
                        prop_assert!(f32::from_bits(block.1).is_nan());
                        prop_assert!(f32::from_bits(block.3).is_nan());
                        prop_assert_eq!(block.2, 0);
                    }
                }
            }
        }

        #[test]
        fn any_bits_are_rounded_without_a_panic(bits in prop::collection::vec(any::<u32>(), 1..100)) {
            let x: Vec<f32> = bits.into_iter().map(f32::from_bits).collect();
            for (block, x) in rounded(&x).iter().zip(x.chunks(BLOCK)) {
                let finite = x.iter().all(|v| v.is_finite());
                prop_assert_eq!(f32::from_bits(block.1).is_finite(), finite);
            }
        }
    }
}
