//! The scalar twins.

use half::{bf16, f16};

use super::Tile;
use crate::format::{BLOCK, GROUP};
use crate::input::Lane;
use crate::matrix::{Data, Matrix};

pub(super) fn product<const M: usize>(matrix: &Matrix, group: usize, x: &[Lane<'_>; M]) -> Tile<M> {
    let (columns, blocks) = (matrix.columns(), matrix.blocks());
    let flat = group * columns * GROUP..(group + 1) * columns * GROUP;
    match &matrix.data {
        Data::F32(w) => floats(&w[flat], x, |w| w),
        Data::Bf16(w) => floats(&w[flat], x, |w| bf16::from_bits(w).to_f32()),
        Data::Q8 { weights, scales } => {
            let mut out = [[0.0; GROUP]; M];
            for b in 0..blocks {
                let index = group * blocks + b;
                let w = &weights[index * 512..][..512];
                let d = &scales[index * GROUP..][..GROUP];
                for (out, x) in out.iter_mut().zip(x) {
                    let p = &x.rounded[b].q;
                    for (r, out) in out.iter_mut().enumerate() {
                        let bytes = |k: usize| i32::from(w[k / 4 * 64 + r * 4 + k % 4]);
                        let dot: i32 = (0..BLOCK).map(|k| bytes(k) * i32::from(p[k])).sum();
                        let scale = f16::from_bits(d[r]).to_f32() * x.rounded[b].scale;
                        *out = ((dot + x.rounded[b].offset) as f32).mul_add(scale, *out);
                    }
                }
            }
            out
        }
        Data::Q4 { weights, scales } => {
            let mut out = [[0.0; GROUP]; M];
            for b in 0..blocks {
                let index = group * blocks + b;
                let w = &weights[index * 256..][..256];
                let (d, m) = scales[index * 2 * GROUP..][..2 * GROUP].split_at(GROUP);
                for (out, x) in out.iter_mut().zip(x) {
                    let p = &x.rounded[b].q;
                    for (r, out) in out.iter_mut().enumerate() {
                        let half = |k: usize| {
                            let both = w[k % 16 / 4 * 64 + r * 4 + k % 4];
                            i32::from(both >> (k / 16 * 4) & 15)
                        };
                        let dot: i32 = (0..BLOCK).map(|k| half(k) * i32::from(p[k])).sum();
                        let scale = f16::from_bits(d[r]).to_f32() * x.rounded[b].scale;
                        *out = (dot as f32).mul_add(scale, *out);
                        *out = f16::from_bits(m[r])
                            .to_f32()
                            .mul_add(x.rounded[b].sum, *out);
                    }
                }
            }
            out
        }
    }
}

fn floats<const M: usize, W: Copy>(w: &[W], x: &[Lane<'_>; M], to_f32: fn(W) -> f32) -> Tile<M> {
    let mut out = [[0.0; GROUP]; M];
    for (k, w) in w.chunks_exact(GROUP).enumerate() {
        for (out, x) in out.iter_mut().zip(x) {
            for (out, w) in out.iter_mut().zip(w) {
                *out = to_f32(*w).mul_add(x.floats[k], *out);
            }
        }
    }
    out
}
