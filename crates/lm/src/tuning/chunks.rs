//! Items shared out among the team's threads in chunks of bounded size.

use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering};

use kernels::Team;

/// Most tokens of a chunk (ours: bounds what a thread holds of activations).
pub const CHUNK: usize = 384;

/// Runs `f` for every chunk of items on the team's threads: its number, its items, memory. A chunk has at most
/// [`CHUNK`] rows, or one item.
pub(super) fn each_chunk<T: Sync, M: Default>(
    items: &[T],
    rows: impl Fn(&T) -> usize,
    f: impl Fn(usize, Range<usize>, &mut M) + Sync,
) {
    let mut chunks: Vec<Range<usize>> = Vec::new();
    let mut filled = CHUNK;
    for (i, item) in items.iter().enumerate() {
        let count = rows(item);
        match chunks.last_mut() {
            Some(last) if filled + count <= CHUNK => {
                last.end = i + 1;
                filled += count;
            }
            _ => {
                chunks.push(i..i + 1);
                filled = count;
            }
        }
    }
    let next = AtomicUsize::new(0);
    Team::global().run(&|_| {
        let mut memory = M::default();
        loop {
            let index = next.fetch_add(1, Ordering::Relaxed);
            let Some(range) = chunks.get(index) else {
                return;
            };
            f(index, range.clone(), &mut memory);
        }
    });
}
