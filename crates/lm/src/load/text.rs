//! Small files that are read whole: configs, tokenizers, templates, prompts.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use crate::{Error, Result};

/// Longest text that is read, in bytes (ours). The longest of these, a tokenizer, has about 35 MB.
const LIMIT: u64 = 1 << 30;

/// Reads a file of text without the mark that some editors put before it (U+FEFF).
///
/// # Errors
/// Those of [`read_bytes`]; more than 1 GiB; a text that is not UTF-8, with the position.
///
/// ```
/// use mope_lm::load::read_text;
///
/// assert!(read_text("Cargo.toml".as_ref())?.starts_with("[package]"));
/// assert!(read_text("src".as_ref()).is_err());
/// assert!(read_text("/dev/zero".as_ref()).is_err());
/// # Ok::<(), mope_lm::Error>(())
/// ```
pub fn read_text(path: &Path) -> Result<String> {
    let text = String::from_utf8(read(path, LIMIT)?).map_err(|e| {
        let at = e.utf8_error().valid_up_to();
        Error::format(path, format!("not text: byte {at} is not UTF-8"))
    })?;
    Ok(match text.strip_prefix('\u{feff}') {
        Some(text) => text.to_string(),
        None => text,
    })
}

/// Reads a whole file.
///
/// # Errors
/// One that cannot be opened, or is a pipe or a device.
pub fn read_bytes(path: &Path) -> Result<Vec<u8>> {
    read(path, u64::MAX)
}

fn read(path: &Path, limit: u64) -> Result<Vec<u8>> {
    // A pipe waits for its writer when it is opened, so that it is looked at first.
    let metadata = std::fs::metadata(path).map_err(Error::io(path))?;
    if !metadata.is_file() {
        return Err(Error::format(path, "not a regular file"));
    }
    let mut bytes = Vec::new();
    let file = File::open(path).map_err(Error::io(path))?;
    let read = file.take(limit.saturating_add(1)).read_to_end(&mut bytes);
    if read.map_err(Error::io(path))? as u64 > limit {
        return Err(Error::format(path, format!("a text of over {limit} bytes")));
    }
    Ok(bytes)
}
