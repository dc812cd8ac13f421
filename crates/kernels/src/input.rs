use crate::isa::Isa;
use crate::math::ROUND;
use crate::matrix::Format;
use crate::shared::Shared;

/// Inputs that share a scale in the 8- and 4-bit formats.
pub const BLOCK: usize = 32;

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
    /// `[lanes, blocks · 32]`.
    quantised: Vec<i8>,
    /// `s`, `[lanes, blocks]`.
    scales: Vec<f32>,
    /// `−128 Σ q`, `[lanes, blocks]`: takes back the offset of the weights' bytes.
    offsets: Vec<i32>,
    /// `s Σ q`, `[lanes, blocks]`: what a weight's minimum is multiplied with.
    sums: Vec<f32>,
}

/// One lane's part of an [`Input`].
#[derive(Debug)]
pub struct InputRow<'a> {
    /// `[columns]`; read by the float formats.
    pub floats: &'a mut [f32],
    quantised: &'a mut [i8],
    scales: &'a mut [f32],
    offsets: &'a mut [i32],
    sums: &'a mut [f32],
}

impl Input {
    /// Makes room for `lanes` rows of `columns`; memory is kept.
    pub fn resize(&mut self, lanes: usize, columns: usize) {
        let blocks = columns.div_ceil(BLOCK);
        (self.columns, self.blocks) = (columns, blocks);
        self.floats.resize(lanes * columns, 0.0);
        self.quantised.resize(lanes * blocks * BLOCK, 0);
        self.scales.resize(lanes * blocks, 0.0);
        self.offsets.resize(lanes * blocks, 0);
        self.sums.resize(lanes * blocks, 0.0);
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
            quantised: Shared::new(&mut self.quantised),
            scales: Shared::new(&mut self.scales),
            offsets: Shared::new(&mut self.offsets),
            sums: Shared::new(&mut self.sums),
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
    quantised: Shared<'a, i8>,
    scales: Shared<'a, f32>,
    offsets: Shared<'a, i32>,
    sums: Shared<'a, f32>,
}

/// What kernels read of one lane.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Lane<'a> {
    pub floats: &'a [f32],
    pub quantised: &'a [i8],
    pub scales: &'a [f32],
    pub offsets: &'a [i32],
    pub sums: &'a [f32],
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
        let blocks = self.blocks;
        // SAFETY: the caller has the row alone.
        unsafe {
            InputRow {
                floats: self.floats.write(part(self.columns)),
                quantised: self.quantised.write(part(blocks * BLOCK)),
                scales: self.scales.write(part(blocks)),
                offsets: self.offsets.write(part(blocks)),
                sums: self.sums.write(part(blocks)),
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

    /// A row to read.
    ///
    /// # Safety
    /// Nobody writes this row meanwhile.
    pub(crate) unsafe fn lane(&self, lane: usize) -> Lane<'a> {
        let lane = self.first + lane;
        let part = |width: usize| lane * width..(lane + 1) * width;
        let blocks = self.blocks;
        // SAFETY: the caller keeps writers away.
        unsafe {
            Lane {
                floats: self.floats.read(part(self.columns)),
                quantised: self.quantised.read(part(blocks * BLOCK)),
                scales: self.scales.read(part(blocks)),
                offsets: self.offsets.read(part(blocks)),
                sums: self.sums.read(part(blocks)),
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
        match isa {
            #[cfg(target_arch = "x86_64")]
            // SAFETY: the processor has these instructions, or the Isa would not have been made.
            Isa::Avx512 => unsafe { self.quantise_avx512() },
            #[cfg(target_arch = "x86_64")]
            // SAFETY: as above.
            Isa::Avx2 => unsafe { self.quantise_avx2() },
            _ => self.quantise_inner(),
        }
    }

    #[cfg(target_arch = "x86_64")]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx2,fma")]
    fn quantise_avx512(&mut self) {
        self.quantise_inner();
    }

    #[cfg(target_arch = "x86_64")]
    #[target_feature(enable = "avx2,fma")]
    fn quantise_avx2(&mut self) {
        self.quantise_inner();
    }

    #[inline(always)]
    fn quantise_inner(&mut self) {
        for b in 0..self.scales.len() {
            let from = b * BLOCK;
            let mut x = [0f32; BLOCK];
            let n = BLOCK.min(self.floats.len() - from);
            x[..n].copy_from_slice(&self.floats[from..from + n]);
            let mut largest = [0f32; 8];
            for part in x.chunks_exact(8) {
                for (m, v) in largest.iter_mut().zip(part) {
                    *m = if v.abs() > *m { v.abs() } else { *m };
                }
            }
            let largest = largest
                .iter()
                .fold(0f32, |m, v| if *v > m { *v } else { m });
            let scale = largest / 127.0;
            let inverse = 127.0 / largest;
            // Zeros, and what is so small that its inverse overflows.
            let inverse = if inverse.is_finite() { inverse } else { 0.0 };
            let mut sum = 0i32;
            for (q, v) in self.quantised[from..from + BLOCK].iter_mut().zip(x) {
                // At most 127 in absolute value, by the choice of the scale.
                let rounded = (v * inverse + ROUND)
                    .to_bits()
                    .wrapping_sub(ROUND.to_bits()) as i32;
                *q = rounded as i8;
                // Explicitly: a check for overflow would keep the loop from being vectorised.
                sum = sum.wrapping_add(rounded);
            }
            self.scales[b] = scale;
            self.offsets[b] = -128 * sum;
            self.sums[b] = scale * sum as f32;
        }
    }
}
