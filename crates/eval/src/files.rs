//! Files that are written whole, into folders that may come from somebody else: no link is followed, nothing beside
//! the file itself is touched.

use std::fs::{self, File, OpenOptions};
use std::hash::{BuildHasher, RandomState};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use crate::{Error, Result};

/// Writes a file whole or not at all: beside its place, under a name that nobody can foresee, then renamed into it.
/// A link of its name is replaced, not followed.
///
/// # Errors
/// [`Error::Io`]; the temporary file is removed.
pub fn write_atomic(path: &Path, content: &[u8]) -> Result<()> {
    write_atomic_with(path, |file| file.write_all(content))
}

/// [`write_atomic`] for content that is made while it is written.
///
/// # Errors
/// [`Error::Io`], also for what `fill` reports; the temporary file is removed.
pub fn write_atomic_with(
    path: &Path,
    fill: impl FnOnce(&mut File) -> io::Result<()>,
) -> Result<()> {
    let beside = unforeseen(path, "part");
    let mut options = OpenOptions::new();
    // To create a new file is the one way that follows no link.
    let options = options.read(true).write(true).create_new(true);
    let mut file = options.open(&beside).map_err(Error::io(path))?;
    let written = (|| {
        fill(&mut file)?;
        file.sync_all()?;
        fs::rename(&beside, path)
    })();
    written.map_err(|e| {
        // The first error is the one to report; a left-over `.part` is never read.
        drop(fs::remove_file(&beside));
        Error::io(path)(e)
    })
}

/// A hidden name in a file's folder that nothing has and nobody can foresee, with this ending.
pub(crate) fn unforeseen(path: &Path, ending: &str) -> PathBuf {
    // Every state has keys of its own from the system's randomness.
    let number = RandomState::new().hash_one(std::process::id());
    path.with_file_name(format!(".{number:016x}.{ending}"))
}

/// Whether a file of this name is what an interrupted write left.
///
/// ```
/// use mope_eval::is_part;
/// assert!(is_part(".4f.part") && is_part(".utility.part.png"));
/// assert!(!is_part(".gitkeep") && !is_part("mine.part"));
/// ```
pub fn is_part(name: &str) -> bool {
    name.starts_with('.') && (name.ends_with(".part") || name.ends_with(".part.png"))
}

/// Opens a file for reading and writing, made where it is not there; what it holds stays.
///
/// # Errors
/// What the system reports; a link, or what is no regular file.
pub fn open_to_write(path: &Path) -> io::Result<File> {
    let link = || io::Error::other("it is a link, and links are not followed; remove it");
    let is_link = || fs::symlink_metadata(path).is_ok_and(|m| m.is_symlink());
    if is_link() {
        return Err(link());
    }
    let mut options = OpenOptions::new();
    options.read(true).write(true).create(true).truncate(false);
    #[cfg(unix)]
    {
        use std::os::unix::fs::OpenOptionsExt;
        // A link that comes in between is not followed either; a pipe is not waited for.
        options.custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK);
    }
    let opened = options.open(path);
    let file = opened.map_err(|e| if is_link() { link() } else { e })?;
    if !file.metadata()?.is_file() {
        return Err(io::Error::other("it is no regular file; remove it"));
    }
    Ok(file)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[test]
    fn a_failed_write_leaves_what_was_there_and_nothing_else() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("f");
        write_atomic(&path, b"one").unwrap();
        let error = write_atomic_with(&path, |file| {
            file.write_all(b"tw")?;
            Err(io::Error::other("the disk is full"))
        });
        assert!(error.unwrap_err().to_string().contains("the disk is full"));
        assert_eq!(fs::read(&path).unwrap(), b"one");
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    }

    #[cfg(unix)]
    #[test]
    fn links_are_replaced_or_refused_and_never_followed() {
        let folder = tempfile::tempdir().unwrap();
        let (target, link) = (folder.path().join("target"), folder.path().join("link"));
        fs::write(&target, "mine").unwrap();
        std::os::unix::fs::symlink(&target, &link).unwrap();
        let error = open_to_write(&link).unwrap_err().to_string();
        assert!(error.contains("is a link"), "{error}");
        write_atomic(&link, b"new").unwrap();
        assert_eq!(fs::read(&target).unwrap(), b"mine");
        assert_eq!(fs::read(&link).unwrap(), b"new");
        assert!(!fs::symlink_metadata(&link).unwrap().is_symlink());
        // To a file that is not there, too.
        let dangling = folder.path().join("dangling");
        std::os::unix::fs::symlink(folder.path().join("none"), &dangling).unwrap();
        assert!(open_to_write(&dangling).is_err());
        assert!(!folder.path().join("none").exists());
    }
}
