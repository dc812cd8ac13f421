//! A slice that several threads write to at once, each its own part.

use std::marker::PhantomData;
use std::ops::Range;

#[cfg(loom)]
use crate::sync::Watched;

/// A slice that the members of a team write to at once, each its own part.
#[derive(Debug, Clone, Copy)]
pub struct Shared<'a, T> {
    start: *mut T,
    len: usize,
    borrowed: PhantomData<&'a mut [T]>,
    /// Follows every element's readers and writers in a model.
    #[cfg(loom)]
    watched: Watched<'a>,
}

// SAFETY: all access goes through unsafe methods whose callers keep writers away from the parts that others use.
// Elements are written, and so dropped, on any thread (`Send`) and read on several at once (`Sync`).
unsafe impl<T: Send + Sync> Send for Shared<'_, T> {}
// SAFETY: as above.
unsafe impl<T: Send + Sync> Sync for Shared<'_, T> {}

impl<'a, T> Shared<'a, T> {
    /// Shares a slice for as long as it is borrowed.
    pub fn new(slice: &'a mut [T]) -> Self {
        Self {
            start: slice.as_mut_ptr(),
            len: slice.len(),
            borrowed: PhantomData,
            #[cfg(loom)]
            watched: Watched::new(slice.len()),
        }
    }

    /// Number of elements.
    pub fn len(&self) -> usize {
        self.len
    }

    /// There are none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Asks for some elements, as far as they are there, to be in the cache when they are read.
    pub fn prefetch(&self, start: usize, count: usize) {
        #[cfg(target_arch = "x86_64")]
        {
            use std::arch::x86_64::{_MM_HINT_T1, _mm_prefetch};
            let line = (64 / size_of::<T>().max(1)).max(1);
            for at in (start..self.len.min(start + count)).step_by(line) {
                // SAFETY: a prefetch never faults.
                unsafe { _mm_prefetch::<_MM_HINT_T1>(self.start.wrapping_add(at).cast()) };
            }
        }
        #[cfg(not(target_arch = "x86_64"))]
        let _ = (start, count);
    }

    /// A part to read.
    ///
    /// # Safety
    /// Nobody writes to it meanwhile.
    ///
    /// # Panics
    /// When the range is outside of the slice.
    pub unsafe fn read(&self, range: Range<usize>) -> &'a [T] {
        assert!(range.start <= range.end && range.end <= self.len);
        #[cfg(loom)]
        self.watched.read(range.clone());
        // SAFETY: inside of the slice, which outlives `'a`; the caller keeps writers away.
        unsafe { std::slice::from_raw_parts(self.start.add(range.start), range.len()) }
    }

    /// Writes one element; what was there is not dropped.
    ///
    /// # Safety
    /// Nobody else reads or writes it meanwhile.
    ///
    /// # Panics
    /// When there is no such element.
    pub unsafe fn set(&self, index: usize, value: T) {
        assert!(index < self.len);
        #[cfg(loom)]
        self.watched.write(index..index + 1);
        // SAFETY: inside of the slice; the caller has it alone.
        unsafe { self.start.add(index).write(value) };
    }

    /// A part to write.
    ///
    /// # Safety
    /// Nobody else reads or writes it meanwhile.
    ///
    /// # Panics
    /// When the range is outside of the slice.
    #[allow(clippy::mut_from_ref, reason = "the caller keeps the parts apart")]
    pub unsafe fn write(&self, range: Range<usize>) -> &'a mut [T] {
        assert!(range.start <= range.end && range.end <= self.len);
        #[cfg(loom)]
        self.watched.write(range.clone());
        // SAFETY: inside of the slice, which outlives `'a`; the caller has it alone.
        unsafe { std::slice::from_raw_parts_mut(self.start.add(range.start), range.len()) }
    }
}
