//! The parts of a decode step over SmolLM2-135M's shapes: `cargo bench -p kernels --bench kernels`.
#![allow(clippy::unwrap_used, reason = "a benchmark")]

use divan::counter::ItemsCount;
use divan::{Bencher, black_box};
use mope_kernels::attention::{Cached, attend};
use mope_kernels::{Format, Input, Isa, LowRank, Matrix, Output, Shared, Team, multiply};

fn main() {
    divan::main();
}

const HIDDEN: usize = 576;
const INTERMEDIATE: usize = 1536;
const LANES: [usize; 7] = [1, 3, 4, 8, 16, 32, 64];
const FORMATS: [Format; 4] = [Format::F32, Format::Bf16, Format::Q8, Format::Q4];

fn numbers(n: usize) -> Vec<f32> {
    let number = |i: u32| (i.wrapping_mul(2_654_435_761) >> 8) as f32 / (1 << 24) as f32 - 0.5;
    (0..n as u32).map(number).collect()
}

/// Gate and up projections of eight blocks, so that weights come from memory; items are lanes.
#[divan::bench(args = LANES, consts = [0, 1, 2, 3])]
fn products<const FORMAT: usize>(bencher: Bencher<'_, '_>, lanes: usize) {
    let format = FORMATS[FORMAT];
    let weights = numbers(2 * INTERMEDIATE * HIDDEN);
    let pack = |_| Matrix::pack(format, 2 * INTERMEDIATE, HIDDEN, &weights);
    let matrices: Vec<Matrix> = (0..8).map(pack).collect();
    let mut input = Input::default();
    input.resize(lanes, HIDDEN);
    let view = input.share();
    for lane in 0..lanes {
        // SAFETY: one thread.
        let mut row = unsafe { view.row(lane) };
        row.floats.copy_from_slice(&numbers(HIDDEN));
        row.quantise(Isa::best(), format);
    }
    let mut out = vec![0.0; lanes * 2 * INTERMEDIATE];
    let output = Output::new(Shared::new(&mut out), 2 * INTERMEDIATE);
    bencher.counter(ItemsCount::new(lanes)).bench_local(|| {
        Team::global().run(&|member| {
            for matrix in &matrices {
                let groups = member.share(matrix.groups());
                // SAFETY: nobody writes the input, and members have different groups.
                unsafe { multiply(Isa::best(), matrix, &view, lanes, groups, &output) };
                member.sync();
            }
        });
    });
}

/// Three query heads over one head of keys and values in 8 bits, on one thread; items are positions.
#[divan::bench(args = [64, 256, 1024])]
fn attention(bencher: Bencher<'_, '_>, positions: usize) {
    const WIDTH: usize = 64;
    let bytes: Vec<i8> = (0..positions * WIDTH)
        .map(|i| (i * 37) as u8 as i8)
        .collect();
    let scales = vec![0.01; positions];
    let cached = Cached {
        keys: &bytes[..],
        values: &bytes[..],
        key_scales: &scales,
        value_scales: &scales,
    };
    let queries = numbers(3 * WIDTH);
    let (mut scores, mut out) = (vec![0.0; 3 * positions], vec![0.0; 3 * WIDTH]);
    bencher.counter(ItemsCount::new(positions)).bench_local(|| {
        let queries = black_box(&queries);
        attend(
            Isa::best(),
            WIDTH,
            queries,
            cached,
            0..positions,
            &mut scores,
            &mut out,
        );
    });
}

/// A side path of rank 8 in 16 bits, on one thread.
#[divan::bench]
fn side_path(bencher: Bencher<'_, '_>) {
    let (a, b) = (numbers(INTERMEDIATE * 8), numbers(8 * HIDDEN));
    let path = LowRank::pack(8, [INTERMEDIATE, HIDDEN], &a, &b, true);
    let x = numbers(INTERMEDIATE);
    let (mut side, mut out) = (vec![0.0; 8], vec![0.0; HIDDEN]);
    bencher.bench_local(|| {
        path.narrow(Isa::best(), black_box(&x), &mut side);
        path.widen(Isa::best(), &side, 0..HIDDEN, &mut out);
    });
}
