//! What is no number stays none: through rounding, products and caches, on every instruction set and in every format.
#![allow(clippy::unwrap_used, reason = "tests")]

use mope_kernels::{Element, Format, Input, Isa, Matrix, Output, Shared, multiply};
use proptest::prelude::*;

const FORMATS: [Format; 4] = [Format::F32, Format::Bf16, Format::Q8, Format::Q4];
const NONE: [f32; 3] = [f32::NAN, f32::INFINITY, f32::NEG_INFINITY];

fn product(isa: Isa, matrix: &Matrix, lanes: &[Vec<f32>]) -> Vec<Vec<f32>> {
    let mut input = Input::default();
    input.resize(lanes.len(), matrix.columns());
    let view = input.share();
    for (i, lane) in lanes.iter().enumerate() {
        // SAFETY: one thread.
        let mut row = unsafe { view.row(i) };
        row.floats.copy_from_slice(lane);
        row.quantise(isa, matrix.format());
    }
    let rows = matrix.rows();
    let mut out = vec![0.5; lanes.len() * rows];
    let output = Output::new(Shared::new(&mut out), rows);
    // SAFETY: one thread.
    unsafe { multiply(isa, matrix, &view, lanes.len(), 0..matrix.groups(), &output) };
    out.chunks(rows).map(<[f32]>::to_vec).collect()
}

proptest! {
    #[test]
    fn a_product_with_what_is_no_number_is_none_and_its_neighbours_stay(
        rows in 1usize..40,
        columns in 1usize..100,
        lanes in 1usize..9,
        broken in any::<prop::sample::Index>(),
        index in any::<prop::sample::Index>(),
        kind in 0usize..3,
        seed in any::<u32>(),
    ) {
        let number = |i: usize| ((i as u32).wrapping_mul(2_654_435_761).wrapping_add(seed) >> 8) as f32 / 2e7 - 0.4;
        let weights: Vec<f32> = (0..rows * columns).map(number).collect();
        let clean: Vec<Vec<f32>> =
            (0..lanes).map(|l| (0..columns).map(|i| number(l * 1000 + i)).collect()).collect();
        let broken = broken.index(lanes);
        let mut inputs = clean.clone();
        inputs[broken][index.index(columns)] = NONE[kind];
        for format in FORMATS {
            let matrix = Matrix::pack(format, rows, columns, &weights);
            for isa in Isa::available() {
                let expected = product(isa, &matrix, &clean);
                let got = product(isa, &matrix, &inputs);
                for (lane, (got, expected)) in got.iter().zip(&expected).enumerate() {
                    match lane == broken {
                        true => prop_assert!(got.iter().all(|v| !v.is_finite()), "{:?} {:?}", format, isa),
                        false => prop_assert_eq!(got, expected),
                    }
                }
            }
        }
    }

    #[test]
    fn bytes_of_a_cache_have_a_scale_that_is_none(
        mut x in prop::collection::vec(-9.0f32..9.0, 1..200),
        index in any::<prop::sample::Index>(),
        kind in 0usize..3,
    ) {
        let index = index.index(x.len());
        x[index] = NONE[kind];
        for isa in Isa::available() {
            let mut bytes = vec![0i8; x.len()];
            prop_assert!(!i8::round(isa, &x, &mut bytes).is_finite());
        }
    }
}

/// Weights that a format cannot hold end in NaN or infinity, not in other numbers.
#[test]
fn weights_beyond_a_formats_range_are_no_numbers() {
    for (format, value) in [
        (Format::Bf16, f32::MAX),
        (Format::Q8, 1e30),
        (Format::Q4, 1e30),
    ] {
        let mut weights = vec![0.25; 64];
        weights[33] = value;
        let matrix = Matrix::pack(format, 1, 64, &weights);
        for isa in Isa::available() {
            let got = product(isa, &matrix, &[vec![1.0; 64]]);
            assert!(!got[0][0].is_finite(), "{format:?} {isa:?}");
        }
        let mut row = vec![0.0; 64];
        matrix.row(0, &mut row);
        assert!(row.iter().any(|v| !v.is_finite()), "{format:?}");
    }
}
