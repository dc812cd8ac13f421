//! Products of many rows with one matrix and with its transpose: what training needs.
//!
//! Decoding reads a weight once for a few rows ([`crate::multiply`]); training and scoring have
//! hundreds of rows and are bounded by arithmetic. In 32 bits the products are the `gemm` crate's; in
//! 16 bits those of the processor's matrix units or its 16-bit dot products where it has them, else of `gemm` on
//! the rounded numbers.
//!
//! ```
//! use mope_kernels::{Dense, DenseScratch};
//!
//! let matrix = Dense::f32(2, 3, vec![1.0, 2.0, 3.0, 4.0, 5.0, 6.0]);
//! let (mut y, mut scratch) = ([0.0; 2], DenseScratch::default());
//! matrix.forward(&[1.0, 0.0, 1.0], 1, &mut y, false, &mut scratch);
//! assert_eq!(y, [4.0, 10.0]);
//! ```

use gemm::Parallelism;

use crate::isa::Isa;
use crate::math;
#[cfg(target_arch = "x86_64")]
use crate::tiles::Unit;
use crate::tiles::{DEPTH, SQUARE, Tiles};

/// A matrix `[outputs, inputs]` that can be multiplied from both sides.
#[derive(Debug, Clone)]
pub struct Dense {
    outputs: usize,
    inputs: usize,
    data: Data,
}

#[derive(Debug, Clone)]
enum Data {
    F32(Vec<f32>),
    Bf16 { rows: Tiles, columns: Tiles },
}

/// Memory that products reuse.
#[derive(Debug, Clone, Default)]
pub struct DenseScratch {
    rounded: Vec<u16>,
    floats: Vec<f32>,
    weights: Vec<f32>,
}

impl Dense {
    /// Keeps a row-major matrix as it is.
    ///
    /// # Panics
    /// When `data` is not `outputs · inputs` numbers.
    pub fn f32(outputs: usize, inputs: usize, data: Vec<f32>) -> Self {
        assert_eq!(data.len(), outputs * inputs, "numbers of a matrix");
        let data = Data::F32(data);
        Self {
            outputs,
            inputs,
            data,
        }
    }

    /// Rounds a row-major matrix to 16 bits and packs it for both directions. Products round their other
    /// factor to 16 bits, too, and add in 32.
    ///
    /// # Panics
    /// When `data` is not `outputs · inputs` numbers.
    pub fn bf16(outputs: usize, inputs: usize, data: &[f32]) -> Self {
        assert_eq!(data.len(), outputs * inputs, "numbers of a matrix");
        let rows = Tiles::pack(outputs, inputs, |o, i| data[o * inputs + i]);
        let columns = Tiles::pack(inputs, outputs, |i, o| data[o * inputs + i]);
        let data = Data::Bf16 { rows, columns };
        Self {
            outputs,
            inputs,
            data,
        }
    }

    /// Number of outputs.
    pub fn outputs(&self) -> usize {
        self.outputs
    }

    /// Number of inputs.
    pub fn inputs(&self) -> usize {
        self.inputs
    }

    /// Bytes in memory.
    pub fn bytes(&self) -> usize {
        match &self.data {
            Data::F32(data) => data.len() * 4,
            Data::Bf16 { rows, columns } => rows.bytes() + columns.bytes(),
        }
    }

    /// Row `output` of the matrix, `[inputs]`.
    pub fn row(&self, output: usize, out: &mut [f32]) {
        match &self.data {
            Data::F32(data) => {
                out.copy_from_slice(&data[output * self.inputs..(output + 1) * self.inputs]);
            }
            Data::Bf16 { rows, .. } => {
                for (input, out) in out.iter_mut().enumerate() {
                    *out = rows.get(output, input);
                }
            }
        }
    }

    /// `y (+)= x Wᵀ`, from `[n, inputs]` to `[n, outputs]`.
    ///
    /// # Panics
    /// When a slice is too short.
    pub fn forward(&self, x: &[f32], n: usize, y: &mut [f32], add: bool, s: &mut DenseScratch) {
        let (k, m) = (self.inputs, self.outputs);
        assert!(x.len() >= n * k && y.len() >= n * m, "rows of a product");
        match &self.data {
            Data::F32(w) => {
                let (x, w) = (View::rows(x, k), View::rows(w, k).transposed());
                product([n, k, m], x, w, y, m, add, 1.0);
            }
            Data::Bf16 { rows, .. } => through(rows, x, n, k, y, add, s),
        }
    }

    /// `dx (+)= dy W`, from `[n, outputs]` to `[n, inputs]`.
    ///
    /// # Panics
    /// When a slice is too short.
    pub fn backward(&self, dy: &[f32], n: usize, dx: &mut [f32], add: bool, s: &mut DenseScratch) {
        let (k, m) = (self.outputs, self.inputs);
        assert!(dy.len() >= n * k && dx.len() >= n * m, "rows of a product");
        match &self.data {
            Data::F32(w) => {
                product(
                    [n, k, m],
                    View::rows(dy, k),
                    View::rows(w, m),
                    dx,
                    m,
                    add,
                    1.0,
                );
            }
            Data::Bf16 { columns, .. } => through(columns, dy, n, k, dx, add, s),
        }
    }
}

/// `y (+)= x · tilesᵀ` with `x` rounded to 16 bits.
fn through(
    tiles: &Tiles,
    x: &[f32],
    n: usize,
    k: usize,
    y: &mut [f32],
    add: bool,
    s: &mut DenseScratch,
) {
    let isa = Isa::best();
    let padded = n.next_multiple_of(SQUARE) * tiles.padded;
    if s.rounded.len() < padded {
        s.rounded.resize(padded, 0);
    }
    for (row, x) in x[..n * k].chunks(k).enumerate() {
        let (to, zeros) = s.rounded[row * tiles.padded..(row + 1) * tiles.padded].split_at_mut(k);
        math::to_bf16(isa, x, to);
        zeros.fill(0);
    }
    #[cfg(target_arch = "x86_64")]
    if let Some(unit) = Unit::best() {
        return tiles.multiply(unit, &s.rounded, n, y, add);
    }
    emulated(tiles, n, y, add, s);
}

/// The same product by `gemm`, some outputs at a time.
fn emulated(tiles: &Tiles, n: usize, y: &mut [f32], add: bool, s: &mut DenseScratch) {
    const PIECE: usize = 8 * SQUARE;
    let k = tiles.padded;
    s.floats.clear();
    let floats = s.rounded[..n * k].iter();
    s.floats
        .extend(floats.map(|b| half::bf16::from_bits(*b).to_f32()));
    for first in (0..tiles.outputs).step_by(PIECE) {
        let outputs = PIECE.min(tiles.outputs - first);
        s.weights.clear();
        for output in first..first + outputs {
            s.weights
                .extend((0..k).map(|input| tiles.get(output, input)));
        }
        let weights = View::rows(&s.weights, k).transposed();
        let y = &mut y[first..];
        let shape = [n, k, outputs];
        product(
            shape,
            View::rows(&s.floats, k),
            weights,
            y,
            tiles.outputs,
            add,
            1.0,
        );
    }
    debug_assert_eq!(DEPTH, SQUARE);
}

/// A matrix inside of a slice: its first number and the steps to the next row and column.
#[derive(Debug, Clone, Copy)]
pub struct View<'a> {
    data: &'a [f32],
    row: usize,
    column: usize,
}

impl<'a> View<'a> {
    /// Row-major, `stride` numbers from row to row.
    pub fn rows(data: &'a [f32], stride: usize) -> Self {
        Self {
            data,
            row: stride,
            column: 1,
        }
    }

    /// The transpose.
    pub fn transposed(self) -> Self {
        Self {
            data: self.data,
            row: self.column,
            column: self.row,
        }
    }

    fn covers(&self, rows: usize, columns: usize) -> bool {
        rows == 0
            || columns == 0
            || (rows - 1) * self.row + (columns - 1) * self.column < self.data.len()
    }
}

/// `out[n, m] (+)= scale · a[n, k] b[k, m]` on one thread; `stride` numbers from row to row of `out`.
///
/// # Panics
/// When a slice is too short for its shape.
pub fn product(
    [n, k, m]: [usize; 3],
    a: View<'_>,
    b: View<'_>,
    out: &mut [f32],
    stride: usize,
    add: bool,
    scale: f32,
) {
    if n == 0 || m == 0 {
        return;
    }
    assert!(a.covers(n, k) && b.covers(k, m), "factors of a product");
    assert!(
        stride >= m && (n - 1) * stride + m <= out.len(),
        "a product"
    );
    // SAFETY: all three matrices lie inside of their slices, as asserted.
    unsafe {
        gemm::gemm(
            n,
            m,
            k,
            out.as_mut_ptr(),
            1,
            stride as isize,
            add,
            a.data.as_ptr(),
            a.column as isize,
            a.row as isize,
            b.data.as_ptr(),
            b.column as isize,
            b.row as isize,
            1.0,
            scale,
            false,
            false,
            false,
            Parallelism::None,
        );
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn exact(x: &[f32], w: &[f32], [n, k, m]: [usize; 3]) -> Vec<f64> {
        let mut out = Vec::new();
        for i in 0..n {
            for j in 0..m {
                let terms = (0..k).map(|l| f64::from(x[i * k + l]) * f64::from(w[j * k + l]));
                out.push(terms.sum());
            }
        }
        out
    }

    fn transposed(w: &[f32], rows: usize, columns: usize) -> Vec<f32> {
        (0..rows * columns)
            .map(|i| w[i % rows * columns + i / rows])
            .collect()
    }

    proptest! {
        #[test]
        fn products_equal_their_definition(
            n in 1usize..70, k in 1usize..100, m in 1usize..70, seed in 0u32..1000,
        ) {
            // Whole numbers below 256: 16 bits hold them, and 32 bits their sums.
            let number = |i: u32| ((i.wrapping_mul(2_654_435_761).wrapping_add(seed)) >> 24) as f32 - 128.0;
            let x: Vec<f32> = (0..(n * k) as u32).map(number).collect();
            let w: Vec<f32> = (0..(m * k) as u32).map(|i| number(i + 7)).collect();
            let dy: Vec<f32> = (0..(n * m) as u32).map(|i| number(i + 13)).collect();
            let forward = exact(&x, &w, [n, k, m]);
            let backward = exact(&dy, &transposed(&w, m, k), [n, m, k]);
            let mut s = DenseScratch::default();
            for dense in [Dense::f32(m, k, w.clone()), Dense::bf16(m, k, &w)] {
                for (add, start) in [(false, 0.0), (true, 3.0)] {
                    let mut y = vec![start; n * m];
                    dense.forward(&x, n, &mut y, add, &mut s);
                    let same = y.iter().zip(&forward).all(|(y, f)| f64::from(*y - if add { 3.0 } else { 0.0 }) == *f);
                    prop_assert!(same);
                    let mut dx = vec![start; n * k];
                    dense.backward(&dy, n, &mut dx, add, &mut s);
                    let same = dx.iter().zip(&backward).all(|(y, f)| f64::from(*y - if add { 3.0 } else { 0.0 }) == *f);
                    prop_assert!(same);
                }
                let mut row = vec![0.0; k];
                dense.row(m - 1, &mut row);
                prop_assert_eq!(&row[..], &w[(m - 1) * k..]);
            }
        }

        #[test]
        fn the_matrix_units_equal_their_emulation(
            n in 1usize..40, k in 1usize..200, m in 1usize..80,
            values in prop::collection::vec(-3.0f32..3.0, 400),
        ) {
            let pick = |i: usize| values[i * 31 % 400];
            let x: Vec<f32> = (0..n * k).map(pick).collect();
            let w: Vec<f32> = (0..m * k).map(|i| pick(i + 5)).collect();
            let dense = Dense::bf16(m, k, &w);
            let mut s = DenseScratch::default();
            let mut y = vec![0.0; n * m];
            dense.forward(&x, n, &mut y, false, &mut s);
            let Data::Bf16 { rows, .. } = &dense.data else { unreachable!() };
            let mut twin = vec![0.0; n * m];
            emulated(rows, n, &mut twin, false, &mut s);
            // The order of additions differs.
            let scale = 9.0 * k as f32;
            prop_assert!(y.iter().zip(&twin).all(|(a, b)| (a - b).abs() <= 2e-6 * scale));
        }
    }
}
