//! The run folder: where things lie, whole files only, one writer at a time.
//!
//! ```
//! use mope_harness::store::folder::RunFolder;
//!
//! let here = tempfile::tempdir()?;
//! let folder = RunFolder::open(&here.path().join("run"))?;
//! assert!(folder.path("tables").is_dir());
//! let error = RunFolder::open(folder.root()).err().map(|e| e.to_string());
//! assert!(error.is_some_and(|e| e.contains("is being written by another run")));
//! # anyhow::Ok(())
//! ```

use std::collections::BTreeSet;
use std::fs::{self, File, TryLockError};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use super::manifest::Session;
use super::shard::Shard;
use crate::progress::say;

/// A run folder that this process may write to.
pub struct RunFolder {
    root: PathBuf,
    /// Held for as long as the folder is.
    _lock: Option<File>,
    /// Other run folders beside it, whose batches are as good where they have the same key.
    neighbours: Vec<PathBuf>,
}

/// A run folder that is only read.
pub fn read_only(root: &Path) -> RunFolder {
    RunFolder {
        root: root.into(),
        _lock: None,
        neighbours: Vec::new(),
    }
}

/// Makes a folder and keeps other processes out of it for as long as the result lives.
///
/// # Errors
/// A folder that cannot be written, or that another process writes.
pub fn lock(root: &Path) -> Result<File> {
    lock_as(root, ".lock")
}

fn lock_as(root: &Path, name: &str) -> Result<File> {
    make(root)?;
    let path = root.join(name);
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

/// Names of what is in a folder, sorted.
fn names(folder: &Path) -> Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in fs::read_dir(folder).with_context(|| folder.display().to_string())? {
        names.push(entry?.file_name().to_string_lossy().into_owned());
    }
    names.sort();
    Ok(names)
}

/// The Parquet files of a folder, by name.
///
/// # Errors
/// A folder that cannot be read.
pub fn parquet_files(folder: &Path) -> Result<Vec<PathBuf>> {
    let paths = names(folder)?.into_iter().map(|name| folder.join(name));
    Ok(paths
        .filter(|p| p.extension().is_some_and(|e| e == "parquet"))
        .collect())
}

/// Folders of a run.
const PARTS: [&str; 7] = [
    "validation",
    "references",
    "generations",
    "scores",
    "retention",
    "tables",
    "plots",
];

impl RunFolder {
    /// Opens or makes the folder, and clears what an interrupted write left.
    ///
    /// # Errors
    /// A folder that cannot be written, or that another process writes.
    pub fn open(root: &Path) -> Result<Self> {
        let folder = Self::of(root, lock(root)?)?;
        // Shards have locks of their own.
        for name in names(root)?.iter().filter(|n| n.starts_with(".lock.")) {
            lock_as(root, name)?;
        }
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

    /// Opens or makes the folder for one of several shards, which may write at the same time.
    ///
    /// # Errors
    /// A folder that cannot be written, or that the same shard or a whole run writes.
    pub fn shard(root: &Path, shard: Shard) -> Result<Self> {
        // Tried and let go: a whole run holds it.
        drop(lock(root)?);
        Self::of(root, lock_as(root, &format!(".lock.{shard}"))?)
    }

    fn of(root: &Path, lock: File) -> Result<Self> {
        for part in PARTS {
            make(&root.join(part))?;
        }
        let parent = root.parent().filter(|p| !p.as_os_str().is_empty());
        let parent = parent.unwrap_or(Path::new("."));
        let others = names(parent)?.into_iter().map(|name| parent.join(name));
        let run = |p: &PathBuf| p.join("manifest.json").is_file() && p.as_path() != root;
        Ok(Self {
            root: root.into(),
            _lock: Some(lock),
            neighbours: others.filter(run).collect(),
        })
    }

    /// Keeps what a shard's process took until the whole run reads it.
    ///
    /// # Errors
    /// What the file system reports.
    pub fn put_session(&self, shard: Shard, session: &Session) -> Result<()> {
        let folder = self.path("sessions");
        make(&folder)?;
        let path = folder.join(format!("{shard}.{}.json", session.started));
        let text = serde_json::to_string_pretty(session)? + "\n";
        Ok(eval::write_atomic(&path, text.as_bytes())?)
    }

    /// The shards' sessions that no manifest holds yet.
    ///
    /// # Errors
    /// What the file system reports; a damaged file.
    pub fn sessions(&self) -> Result<Vec<Session>> {
        let folder = self.path("sessions");
        if !folder.is_dir() {
            return Ok(Vec::new());
        }
        let read = |name: String| {
            let path = folder.join(name);
            let text = fs::read_to_string(&path).with_context(|| path.display().to_string())?;
            serde_json::from_str(&text).with_context(|| path.display().to_string())
        };
        // What starts with a dot is what an interrupted write left.
        let names = names(&folder)?.into_iter().filter(|n| !n.starts_with('.'));
        names.map(read).collect()
    }

    /// Removes the shards' sessions, which a manifest holds.
    ///
    /// # Errors
    /// What the file system reports.
    pub fn clear_sessions(&self) -> Result<()> {
        let folder = self.path("sessions");
        if folder.is_dir() {
            fs::remove_dir_all(&folder).with_context(|| folder.display().to_string())?;
        }
        Ok(())
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
        names(&self.path(part))
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

    /// What a file holds that is there whole, as `read` finds it; a damaged file is moved away and counts as
    /// missing. Its name ends in a hash of all that it follows from, so one that this run had before, or that a
    /// neighbouring run has, is as good.
    ///
    /// # Errors
    /// What the file system reports.
    pub fn found<T>(
        &self,
        part: &str,
        name: &str,
        read: impl Fn(&Path) -> Option<T>,
    ) -> Result<Option<T>> {
        let path = self.path(part).join(name);
        if path.exists() {
            let rows = read(&path);
            if rows.is_none() {
                say(&format!("{}: damaged; made again", path.display()));
                self.supersede(part, name)?;
            }
            return Ok(rows);
        }
        let runs = self.neighbours.iter().chain([&self.root]);
        let folders = runs.flat_map(|run| [run.clone(), run.join("superseded")]);
        for elsewhere in folders.map(|folder| folder.join(part).join(name)) {
            let Ok(bytes) = fs::read(&elsewhere) else {
                continue;
            };
            if let Some(rows) = read(&elsewhere) {
                eval::write_atomic(&path, &bytes)?;
                return Ok(Some(rows));
            }
        }
        Ok(None)
    }
}
