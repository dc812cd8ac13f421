//! How fast memory can be read, to compare the decoder's reading of weights with.

use std::hint::black_box;
use std::time::Instant;

use kernels::{Isa, Team, math};

use super::median;

/// Far more than caches hold.
const BYTES: usize = 256 << 20;

/// Bytes per second that all threads together read from memory, one contiguous part each: the median of
/// several passes.
pub(super) fn read_bytes_per_s() -> f64 {
    const PASSES: usize = 7;
    // Written, so that every page is there.
    let mut buffer = vec![1f32; BYTES / size_of::<f32>()];
    kernels::advise_large(&mut buffer);
    let count = buffer.len();
    let buffer = buffer.as_slice();
    let isa = Isa::best();
    let pass = |_| {
        let start = Instant::now();
        Team::global().run(&|member| {
            black_box(math::largest(isa, &buffer[member.share(count)]));
        });
        BYTES as f64 / start.elapsed().as_secs_f64()
    };
    median((0..PASSES).map(pass).collect())
}
