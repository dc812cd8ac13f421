//! The run folder: where things lie, whole files only, one writer at a time.

use std::collections::BTreeSet;
use std::fs::{self, File, TryLockError};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use eval::rows::{self, GenerationRow};
use eval::table::read_parquet;

/// A run folder that this process may write to.
pub struct RunFolder {
    root: PathBuf,
    /// Held for as long as the folder is.
    _lock: File,
}

/// Makes a folder and keeps other processes out of it for as long as the result lives.
///
/// # Errors
/// A folder that cannot be written, or that another process writes.
pub fn lock(root: &Path) -> Result<File> {
    make(root)?;
    let path = root.join(".lock");
    let lock = File::create(&path).with_context(|| {
        let path = path.display();
        format!("run folder: {path} cannot be written; choose another with --out")
    })?;
    match lock.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => {
            bail!("{} is being written by another run", root.display())
        }
        Err(TryLockError::Error(e)) => {
            return Err(e).with_context(|| format!("locking {}", path.display()));
        }
    }
    Ok(lock)
}

fn make(path: &Path) -> Result<()> {
    fs::create_dir_all(path).with_context(|| {
        let path = path.display();
        format!("run folder {path} cannot be written; choose another with --out")
    })
}

/// Folders of a run.
const PARTS: [&str; 6] = [
    "validation",
    "references",
    "generations",
    "scores",
    "tables",
    "plots",
];

impl RunFolder {
    /// Opens or makes the folder, and clears what an interrupted write left.
    ///
    /// # Errors
    /// A folder that cannot be written, or that another process writes.
    pub fn open(root: &Path) -> Result<Self> {
        let lock = lock(root)?;
        for part in PARTS {
            make(&root.join(part))?;
        }
        let folder = Self {
            root: root.into(),
            _lock: lock,
        };
        for part in PARTS {
            for file in folder.files(part)? {
                if file.starts_with('.') {
                    let path = folder.path(part).join(file);
                    fs::remove_file(&path).with_context(|| path.display().to_string())?;
                }
            }
        }
        Ok(folder)
    }

    /// A file or folder of the run.
    pub fn path(&self, part: &str) -> PathBuf {
        self.root.join(part)
    }

    /// The run's own path.
    pub fn root(&self) -> &Path {
        &self.root
    }

    fn files(&self, part: &str) -> Result<Vec<String>> {
        let folder = self.path(part);
        let mut names = Vec::new();
        for entry in fs::read_dir(&folder).with_context(|| folder.display().to_string())? {
            names.push(entry?.file_name().to_string_lossy().into_owned());
        }
        names.sort();
        Ok(names)
    }

    /// Moves the files of a part that don't belong to this run (any more) to `superseded/`.
    ///
    /// # Errors
    /// What the file system reports.
    pub fn keep_only(&self, part: &str, belong: &BTreeSet<String>) -> Result<usize> {
        let mut moved = 0;
        for name in self.files(part)? {
            if !belong.contains(&name) {
                self.supersede(part, &name)?;
                moved += 1;
            }
        }
        Ok(moved)
    }

    fn supersede(&self, part: &str, name: &str) -> Result<()> {
        let to = self.root.join("superseded").join(part);
        fs::create_dir_all(&to).with_context(|| to.display().to_string())?;
        let from = self.path(part).join(name);
        fs::rename(&from, to.join(name)).with_context(|| from.display().to_string())
    }

    /// The rows of a batch that is there whole; a damaged file is moved away and counts as missing.
    ///
    /// # Errors
    /// What the file system reports.
    pub fn batch(&self, part: &str, name: &str, rows: usize) -> Result<Option<Vec<GenerationRow>>> {
        let path = self.path(part).join(name);
        if !path.exists() {
            return Ok(None);
        }
        let read = read_parquet(&path).and_then(|frame| rows::generations(&path, &frame));
        match read {
            Ok(found) if found.len() == rows => Ok(Some(found)),
            _ => {
                eprintln!("{}: damaged; made again", path.display());
                self.supersede(part, name)?;
                Ok(None)
            }
        }
    }
}
