//! `Y = X Wᵀ` for a few lanes: each load of weights serves up to six of them.
//!
//! For 8-bit weights, with `w = d q`, `x ≈ s p` and bytes `u = q + 128` that are unsigned as the dot
//! product instructions want them, a block of 32 inputs adds `d s (Σ u p − 128 Σ p)`. For 4-bit weights
//! `w = d q + m` it adds `d s Σ q p + m s Σ p`. Blocks are added in order, each by a fused multiply-add,
//! in every kernel.

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
#[cfg(target_arch = "aarch64")]
mod neon;
mod portable;

use std::ops::Range;

use crate::format::GROUP;
use crate::input::{InputView, Lanes};
use crate::isa::{Isa, Set};
use crate::matrix::Matrix;
use crate::shared::Shared;

/// Lanes of one pass over the weights: what the registers hold of two groups.
pub(crate) const LANES: usize = 6;
/// Groups of rows that are multiplied together, and stay in the cache while the lanes go by.
const STRIP: usize = 2;

/// When to prefetch: each pass over a strip asks for its part of the next strip.
#[cfg(target_arch = "x86_64")]
#[derive(Debug, Clone, Copy)]
pub(crate) struct Ahead {
    /// To the next strip, in bytes.
    distance: usize,
    /// Steps until the next turn to ask.
    wait: usize,
    /// Steps from turn to turn.
    every: usize,
}

#[cfg(target_arch = "x86_64")]
impl Ahead {
    /// Pass number `pass` of `passes` over strips of `bytes`.
    fn new(pass: usize, passes: usize, bytes: usize) -> Self {
        Self {
            distance: bytes,
            wait: pass,
            every: passes,
        }
    }

    /// It is this pass's turn.
    #[inline(always)]
    fn now(&mut self) -> bool {
        if self.wait == 0 {
            self.wait = self.every - 1;
            return true;
        }
        self.wait -= 1;
        false
    }

    /// Asks for what lies at the place of `from` in the next strip.
    #[inline(always)]
    fn ask(&self, from: *const u8) {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        // SAFETY: a prefetch never faults.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(from.wrapping_add(self.distance).cast()) };
    }
}

/// Where results go: `[lanes, width]`, row `r` of the matrix to column `offset + r`.
#[derive(Debug, Clone, Copy)]
pub struct Output<'a> {
    /// The whole buffer.
    pub values: Shared<'a, f32>,
    /// Its columns.
    pub width: usize,
    /// Column of the first row.
    pub offset: usize,
    /// Row of the first lane.
    pub first: usize,
    /// Add to what is there.
    pub add: bool,
}

impl<'a> Output<'a> {
    /// Overwrites `[lanes, width]` from its first column on.
    pub fn new(values: Shared<'a, f32>, width: usize) -> Self {
        Self {
            values,
            width,
            offset: 0,
            first: 0,
            add: false,
        }
    }

    /// The same for lanes from row `first` on.
    pub fn from_row(self, first: usize) -> Self {
        Self { first, ..self }
    }

    /// The same, adding to what is there.
    pub fn adding(self) -> Self {
        Self { add: true, ..self }
    }
}

/// A group's results for some lanes.
pub(crate) type Tile<const M: usize> = [[f32; GROUP]; M];

/// Multiplies the first `lanes` inputs with the rows of `groups`.
///
/// # Safety
/// Nobody writes these inputs meanwhile, and nobody else uses the outputs of these rows.
///
/// # Panics
/// When the inputs have another width than the matrix, or the output is too small or too narrow.
pub unsafe fn multiply(
    isa: Isa,
    matrix: &Matrix,
    input: &InputView<'_>,
    lanes: usize,
    groups: Range<usize>,
    output: &Output<'_>,
) {
    assert_eq!(input.columns, matrix.columns(), "inputs of another width");
    assert!(groups.end <= matrix.groups(), "no such group");
    // Else a row's last columns would be another lane's first.
    assert!(
        output.offset + matrix.rows() <= output.width,
        "an output of {} columns for {} rows from column {} on",
        output.width,
        matrix.rows(),
        output.offset
    );
    let passes = lanes.div_ceil(LANES);
    for first in groups.clone().step_by(STRIP) {
        let strip = first..groups.end.min(first + STRIP);
        for pass in 0..passes {
            // Passes of the same size, or nearly so.
            let (lane, end) = (lanes * pass / passes, lanes * (pass + 1) / passes);
            macro_rules! tile {
                ($($m:literal)*) => {
                    match end - lane {
                        $($m => {
                            // SAFETY: the caller keeps writers away and has these outputs alone.
                            unsafe {
                                let x = input.lanes::<$m>(lane);
                                let row = output.first + lane;
                                tile(isa, matrix, strip.clone(), x, row, output, (pass, passes));
                            }
                        })*
                        _ => unreachable!("at most six lanes"),
                    }
                };
            }
            tile!(1 2 3 4 5 6);
        }
    }
}

/// # Safety
/// The caller has these outputs alone.
#[inline(always)]
unsafe fn tile<const M: usize>(
    isa: Isa,
    matrix: &Matrix,
    strip: Range<usize>,
    x: Lanes<'_, M>,
    lane: usize,
    output: &Output<'_>,
    (pass, passes): (usize, usize),
) {
    #[cfg(not(target_arch = "x86_64"))]
    let _ = (pass, passes);
    match isa.set() {
        #[cfg(target_arch = "x86_64")]
        // SAFETY: the processor has these instructions, or the Isa would not have been made; the outputs
        // are the caller's.
        Set::Avx512 => unsafe {
            let ahead = Ahead::new(pass, passes, matrix.bytes() / matrix.groups() * strip.len());
            match strip.len() {
                2 => avx512::tile::<2, M>(matrix, strip.start, x, lane, output, ahead),
                _ => avx512::tile::<1, M>(matrix, strip.start, x, lane, output, ahead),
            }
        },
        _ => {
            for group in strip {
                let tile = match isa.set() {
                    #[cfg(target_arch = "x86_64")]
                    // SAFETY: as above.
                    Set::Avx2 => unsafe { avx2::product(matrix, group, &x.each()) },
                    #[cfg(target_arch = "aarch64")]
                    // SAFETY: as above.
                    Set::Neon => unsafe { neon::product(matrix, group, &x.each()) },
                    _ => portable::product(matrix, group, &x.each()),
                };
                for (i, values) in tile.iter().enumerate() {
                    // SAFETY: the outputs are the caller's.
                    unsafe { write(matrix, group, lane + i, values, output) };
                }
            }
        }
    }
}

/// Results of a group for one lane.
///
/// # Safety
/// The caller has these outputs alone.
#[inline(always)]
unsafe fn write(
    matrix: &Matrix,
    group: usize,
    lane: usize,
    values: &[f32; GROUP],
    output: &Output<'_>,
) {
    let rows = GROUP.min(matrix.rows() - group * GROUP);
    let start = lane * output.width + output.offset + group * GROUP;
    // SAFETY: the caller has them alone.
    let out = unsafe { output.values.write(start..start + rows) };
    for (out, value) in out.iter_mut().zip(values) {
        *out = if output.add { *out + value } else { *value };
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::{Format, Input};

    fn run(
        isa: Isa,
        matrix: &Matrix,
        lanes: &[Vec<f32>],
        groups: Range<usize>,
        add: bool,
    ) -> Vec<f32> {
        let mut input = Input::default();
        input.resize(lanes.len(), matrix.columns());
        let view = input.share();
        for (i, lane) in lanes.iter().enumerate() {
            // SAFETY: one thread.
            let mut row = unsafe { view.row(i) };
            row.floats.copy_from_slice(lane);
            row.quantise(isa, matrix.format());
        }
        let width = matrix.rows() + 3;
        let mut out = vec![0.5; lanes.len() * width];
        let output = Output {
            values: Shared::new(&mut out),
            width,
            offset: 2,
            first: 0,
            add,
        };
        // SAFETY: one thread.
        unsafe { multiply(isa, matrix, &view, lanes.len(), groups, &output) };
        out
    }

    fn numbers(n: usize, seed: u64, size: f32) -> Vec<f32> {
        let mut state = seed.wrapping_mul(2) + 1;
        let mut next = || {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            (state >> 40) as f32 / (1u64 << 24) as f32 - 0.5
        };
        (0..n).map(|_| next() * size).collect()
    }

    const FORMATS: [Format; 4] = [Format::F32, Format::Bf16, Format::Q8, Format::Q4];

    #[test]
    fn results_are_near_the_exact_product() {
        let (rows, columns) = (37, 96);
        let weights = numbers(rows * columns, 1, 2.0);
        let lanes: Vec<Vec<f32>> = (0..5).map(|i| numbers(columns, 20 + i, 6.0)).collect();
        for (format, tolerance) in FORMATS.into_iter().zip([1e-5, 0.05, 0.2, 3.0]) {
            let matrix = Matrix::pack(format, rows, columns, &weights);
            for isa in Isa::available() {
                let out = run(isa, &matrix, &lanes, 0..matrix.groups(), false);
                for (l, x) in lanes.iter().enumerate() {
                    for row in 0..rows {
                        let w = &weights[row * columns..][..columns];
                        let exact: f64 = w.iter().zip(x).map(|(w, x)| f64::from(w * x)).sum();
                        let got = f64::from(out[l * (rows + 3) + 2 + row]);
                        assert!(
                            (got - exact).abs() < tolerance,
                            "{format:?} {isa:?} {got} {exact}"
                        );
                    }
                }
            }
        }
    }

    #[test]
    fn a_lane_does_not_depend_on_its_neighbours() {
        let (rows, columns) = (50, 64);
        let weights = numbers(rows * columns, 3, 1.0);
        let lanes: Vec<Vec<f32>> = (0..19).map(|i| numbers(columns, 50 + i, 4.0)).collect();
        for format in FORMATS {
            let matrix = Matrix::pack(format, rows, columns, &weights);
            for isa in Isa::available() {
                let together = run(isa, &matrix, &lanes, 0..4, true);
                for (i, lane) in lanes.iter().enumerate() {
                    let alone = run(isa, &matrix, std::slice::from_ref(lane), 0..4, true);
                    assert_eq!(alone, together[i * 53..(i + 1) * 53]);
                }
            }
        }
    }

    #[test]
    #[should_panic(expected = "an output of 18 columns for 17 rows from column 2 on")]
    fn a_narrow_output_is_refused() {
        let (rows, columns) = (17, 32);
        let matrix = Matrix::pack(Format::F32, rows, columns, &numbers(rows * columns, 5, 1.0));
        let mut input = Input::default();
        input.resize(1, columns);
        let mut out = vec![0.0; 4 * rows];
        let output = Output {
            offset: 2,
            ..Output::new(Shared::new(&mut out), rows + 1)
        };
        // SAFETY: one thread.
        unsafe { multiply(Isa::best(), &matrix, &input.share(), 1, 0..1, &output) };
    }

    proptest! {
        #[test]
        fn every_kernel_equals_its_scalar_twin(
            rows in 1usize..70,
            columns in 1usize..100,
            lanes in 1usize..11,
            seed in any::<u64>(),
            size in prop::sample::select(vec![1e-30f32, 1e-3, 1.0, 300.0, 1e15]),
            spike in prop::option::of(0usize..100),
        ) {
            let mut weights = numbers(rows * columns, seed, size.min(1e4));
            let mut inputs: Vec<Vec<f32>> =
                (0..lanes as u64).map(|i| numbers(columns, seed ^ (i + 1), size)).collect();
            if let Some(at) = spike.filter(|at| *at < columns) {
                weights[at] = 6e4;
                inputs[0][at] = -3e4;
            }
            for format in FORMATS {
                let matrix = Matrix::pack(format, rows, columns, &weights);
                let groups = 0..matrix.groups();
                let expected = run(Isa::PORTABLE, &matrix, &inputs, groups.clone(), false);
                for isa in Isa::available() {
                    let got = run(isa, &matrix, &inputs, groups.clone(), false);
                    let bits = |v: &[f32]| v.iter().map(|v| v.to_bits()).collect::<Vec<_>>();
                    prop_assert_eq!(bits(&got), bits(&expected), "{:?} {:?}", format, isa);
                }
            }
        }
    }
}
