//! Text of others on its way to a terminal: what models say, names in files, messages of servers. A control character
//! in it could colour, move, hide or rename what stands on the screen.

use std::borrow::Cow;

/// The text with U+FFFD for every control character but tabs and line ends.
///
/// ```
/// use mope_harness::terminal::printable;
///
/// assert_eq!(printable("a\tb\r\nc\n"), "a\tb\r\nc\n");
/// assert_eq!(printable("\u{1b}[2Ja\rb\u{9b}"), "\u{fffd}[2Ja\u{fffd}b\u{fffd}");
/// ```
pub fn printable(text: &str) -> Cow<'_, str> {
    let bytes = text.as_bytes();
    let hostile = |at: usize, c: char| match c {
        '\n' | '\t' => false,
        '\r' => bytes.get(at + 1) != Some(&b'\n'),
        c => c.is_control(),
    };
    if !text.char_indices().any(|(at, c)| hostile(at, c)) {
        return Cow::Borrowed(text);
    }
    let replaced = text.char_indices().map(|(at, c)| match hostile(at, c) {
        true => '\u{fffd}',
        false => c,
    });
    Cow::Owned(replaced.collect())
}
