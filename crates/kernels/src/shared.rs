use std::marker::PhantomData;
use std::ops::Range;

/// A slice that the members of a team write to at once, each its own part.
#[derive(Debug, Clone, Copy)]
pub struct Shared<'a, T> {
    start: *mut T,
    len: usize,
    borrowed: PhantomData<&'a mut [T]>,
}

// SAFETY: all access goes through unsafe methods whose callers keep the parts apart.
unsafe impl<T: Send> Send for Shared<'_, T> {}
// SAFETY: as above.
unsafe impl<T: Send> Sync for Shared<'_, T> {}

impl<'a, T> Shared<'a, T> {
    /// Shares a slice for as long as it is borrowed.
    pub fn new(slice: &'a mut [T]) -> Self {
        Self {
            start: slice.as_mut_ptr(),
            len: slice.len(),
            borrowed: PhantomData,
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

    /// A part to read.
    ///
    /// # Safety
    /// Nobody writes to it meanwhile.
    ///
    /// # Panics
    /// When the range is outside of the slice.
    pub unsafe fn read(&self, range: Range<usize>) -> &'a [T] {
        assert!(range.start <= range.end && range.end <= self.len);
        // SAFETY: inside of the slice, which outlives `'a`; the caller keeps writers away.
        unsafe { std::slice::from_raw_parts(self.start.add(range.start), range.len()) }
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
        // SAFETY: inside of the slice, which outlives `'a`; the caller has it alone.
        unsafe { std::slice::from_raw_parts_mut(self.start.add(range.start), range.len()) }
    }
}
