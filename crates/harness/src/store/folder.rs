//! The run folder: where things lie, whole files only, one writer at a time.
//!
//! A run folder may come from somebody else. Nothing is written through a link in it, only left-over parts of
//! interrupted writes are removed, and what a manifest knows by its hash is compared before it is believed.
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

use std::cell::OnceCell;
use std::collections::BTreeSet;
use std::fs::{self, File, TryLockError};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use eval::{is_part, open_to_write};
use lm::source::sha256;

use super::manifest::{Manifest, RowHashes, Session};
use super::shard::Shard;
use crate::progress::say;

/// A run folder that this process may write to.
pub struct RunFolder {
    root: PathBuf,
    /// Held for as long as the folder is.
    _lock: Option<File>,
    /// The rows that the manifest knew when the folder was opened.
    known: RowHashes,
    /// Other run folders beside it, whose batches are as good where they have the same key.
    neighbours: Vec<Neighbour>,
}

/// Another run's folder.
struct Neighbour {
    root: PathBuf,
    /// The rows that its manifest knows, read when they are asked for.
    known: OnceCell<RowHashes>,
}

impl Neighbour {
    fn known(&self) -> &RowHashes {
        self.known.get_or_init(|| known(&self.root))
    }
}

/// The rows that the manifest of a folder knows; none where it has no manifest that can be read.
fn known(root: &Path) -> RowHashes {
    Manifest::load(root).map_or(RowHashes::new(), |manifest| manifest.rows)
}

/// A file of rows is not the one that the manifest knows.
fn changed(known: &RowHashes, part: &str, name: &str, path: &Path) -> bool {
    let hash = known.get(&format!("{part}/{name}"));
    hash.is_some_and(|hash| sha256(path).ok().as_ref() != Some(hash))
}

/// A run folder that is only read.
pub fn read_only(root: &Path) -> RunFolder {
    RunFolder {
        root: root.into(),
        _lock: None,
        known: RowHashes::new(),
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

/// [`lock`] for a folder inside of a run, which must not be a link.
///
/// # Errors
/// Those of [`lock`]; a link.
pub fn lock_part(root: &Path, part: &str) -> Result<File> {
    let folder = root.join(part);
    make_part(&folder)?;
    lock(&folder)
}

fn lock_as(root: &Path, name: &str) -> Result<File> {
    make(root)?;
    let path = root.join(name);
    let lock = open_to_write(&path).with_context(|| {
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

/// Makes a folder inside of a run, which must not be a link: it might lead anywhere.
fn make_part(path: &Path) -> Result<()> {
    ensure!(
        !fs::symlink_metadata(path).is_ok_and(|m| m.is_symlink()),
        "{} is a link, and links in a run folder are not followed; remove it",
        path.display()
    );
    make(path)
}

/// Removes what interrupted writes left in a folder. Other hidden files, and folders, are somebody's.
fn remove_parts(folder: &Path) -> Result<()> {
    for path in names(folder)?
        .into_iter()
        .filter(|n| is_part(n))
        .map(|n| folder.join(n))
    {
        if fs::symlink_metadata(&path).is_ok_and(|m| !m.is_dir()) {
            fs::remove_file(&path).with_context(|| path.display().to_string())?;
        }
    }
    Ok(())
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

/// The Parquet files of a folder, by name; hidden ones are none of a run's.
///
/// # Errors
/// A folder that cannot be read.
pub fn parquet_files(folder: &Path) -> Result<Vec<PathBuf>> {
    let names = names(folder)?
        .into_iter()
        .filter(|name| !name.starts_with('.'));
    let paths = names.map(|name| folder.join(name));
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

/// Those of them that hold rows.
const ROWS: [&str; 5] = [
    "validation",
    "references",
    "generations",
    "scores",
    "retention",
];

impl RunFolder {
    /// Opens or makes the folder, and clears what an interrupted write left.
    ///
    /// # Errors
    /// A folder that cannot be written, or that another process writes.
    pub fn open(root: &Path) -> Result<Self> {
        let folder = Self::of(root, lock(root)?)?;
        // Shards have locks of their own.
        let shards = names(root)?.into_iter().filter(|n| n.starts_with(".lock."));
        for name in shards.filter(|n| !root.join(n).is_dir()) {
            lock_as(root, &name)?;
        }
        remove_parts(root)?;
        for part in PARTS {
            remove_parts(&folder.path(part))?;
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
            make_part(&root.join(part))?;
        }
        let parent = root.parent().filter(|p| !p.as_os_str().is_empty());
        let parent = parent.unwrap_or(Path::new("."));
        let others = names(parent)?.into_iter().map(|name| parent.join(name));
        let run = |p: &PathBuf| p.join("manifest.json").is_file() && p.as_path() != root;
        Ok(Self {
            root: root.into(),
            _lock: Some(lock),
            known: known(root),
            neighbours: others
                .filter(run)
                .map(|root| Neighbour {
                    root,
                    known: OnceCell::new(),
                })
                .collect(),
        })
    }

    /// Keeps what a shard's process took until the whole run reads it.
    ///
    /// # Errors
    /// What the file system reports.
    pub fn put_session(&self, shard: Shard, session: &Session) -> Result<()> {
        let folder = self.path("sessions");
        make_part(&folder)?;
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
            let text = lm::load::read_text(&path)?;
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
        if folder.is_dir() && !folder.is_symlink() {
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

    /// The names in a part; hidden ones are somebody's.
    fn files(&self, part: &str) -> Result<Vec<String>> {
        let mut names = names(&self.path(part))?;
        names.retain(|name| !name.starts_with('.'));
        Ok(names)
    }

    /// SHA-256 of every file of rows, for the manifest.
    ///
    /// # Errors
    /// A file that cannot be read.
    pub fn row_hashes(&self) -> Result<RowHashes> {
        let mut hashes = RowHashes::new();
        for part in ROWS.into_iter().filter(|part| self.path(part).is_dir()) {
            for path in parquet_files(&self.path(part))? {
                let name = path.file_name().unwrap_or_default().to_string_lossy();
                hashes.insert(format!("{part}/{name}"), sha256(&path)?);
            }
        }
        Ok(hashes)
    }

    /// Compares the files of rows with the hashes that a manifest has; one of a run that is not finished has none, nor
    /// has one of version 0.1.
    ///
    /// # Errors
    /// The first file that has changed, is gone or is not of this run.
    pub fn verify(&self, manifest: &Manifest) -> Result<()> {
        if manifest.rows.is_empty() {
            return Ok(());
        }
        let present = self.row_hashes()?;
        let wrong = |name: &str, what: &str| {
            let path = self.path(name);
            bail!(
                "{} {what}; `mope run` with the experiment's file mends the folder",
                path.display()
            )
        };
        for (name, hash) in &manifest.rows {
            match present.get(name) {
                None => wrong(name, "is gone since the run")?,
                Some(other) if other != hash => wrong(name, "has changed since the run")?,
                Some(_) => {}
            }
        }
        match present
            .keys()
            .find(|name| !manifest.rows.contains_key(*name))
        {
            Some(name) => wrong(name, "is not of this run"),
            None => Ok(()),
        }
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
        let superseded = self.root.join("superseded");
        make_part(&superseded)?;
        let to = superseded.join(part);
        make_part(&to)?;
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
            let same = !changed(&self.known, part, name, &path);
            let rows = same.then(|| read(&path)).flatten();
            if rows.is_none() {
                let what = match same {
                    true => "damaged, or not what was asked",
                    false => "changed since the run",
                };
                say(&format!("{}: {what}; made again", path.display()));
                self.supersede(part, name)?;
            }
            return Ok(rows);
        }
        let copy = |elsewhere: &Path| -> Result<Option<T>> {
            // What is no regular file may have no end.
            if !elsewhere.is_file() {
                return Ok(None);
            }
            let (Ok(bytes), Some(rows)) = (fs::read(elsewhere), read(elsewhere)) else {
                return Ok(None);
            };
            eval::write_atomic(&path, &bytes)?;
            Ok(Some(rows))
        };
        for neighbour in &self.neighbours {
            let there = neighbour.root.join(part).join(name);
            if there.is_file()
                && !changed(neighbour.known(), part, name, &there)
                && let Some(rows) = copy(&there)?
            {
                return Ok(Some(rows));
            }
            let there = neighbour.root.join("superseded").join(part).join(name);
            if let Some(rows) = copy(&there)? {
                return Ok(Some(rows));
            }
        }
        copy(&self.root.join("superseded").join(part).join(name))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    /// Reads a file that holds a word.
    fn word(expected: &str) -> impl Fn(&Path) -> Option<()> {
        move |path| (fs::read(path).ok()? == expected.as_bytes()).then_some(())
    }

    #[test]
    fn hidden_files_and_folders_are_somebodys_and_parts_are_not() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path().join("run");
        drop(RunFolder::open(&root).unwrap());
        let hidden = [
            "tables/.ipynb_checkpoints",
            "generations/.ipynb_checkpoints",
            ".git",
            ".x.part",
            ".lock.d",
        ];
        for name in hidden {
            fs::create_dir(root.join(name)).unwrap();
            fs::write(root.join(name).join("mine"), "mine").unwrap();
        }
        let files = [
            "generations/.gitkeep",
            "plots/.DS_Store",
            ".note",
            "scores/mine.part",
        ];
        for name in files {
            fs::write(root.join(name), "mine").unwrap();
        }
        let parts = [
            "tables/.a.part",
            "plots/.b.part.png",
            ".c.part",
            "scores/.d.parquet.part",
        ];
        for name in parts {
            fs::write(root.join(name), "half").unwrap();
        }
        let run = RunFolder::open(&root).unwrap();
        run.keep_only("generations", &BTreeSet::new()).unwrap();
        for name in hidden {
            assert_eq!(
                fs::read(root.join(name).join("mine")).unwrap(),
                b"mine",
                "{name}"
            );
        }
        for name in files {
            assert!(root.join(name).exists(), "{name}");
        }
        for name in parts {
            assert!(!root.join(name).exists(), "{name}");
        }
    }

    #[cfg(unix)]
    #[test]
    fn nothing_is_written_through_links() {
        use std::os::unix::fs::symlink;
        let folder = tempfile::tempdir().unwrap();
        let elsewhere = folder.path().join("elsewhere");
        fs::create_dir(&elsewhere).unwrap();
        fs::write(elsewhere.join("mine"), "mine").unwrap();
        let locks = [".lock", ".lock.1of2"].map(|name| (name, "mine"));
        let parts = PARTS.map(|part| (part, "."));
        for (name, target) in locks.into_iter().chain(parts).chain([("superseded", ".")]) {
            let root = folder.path().join(format!("run of {name}"));
            fs::create_dir_all(&root).unwrap();
            symlink(elsewhere.join(target), root.join(name)).unwrap();
            let written = RunFolder::open(&root).and_then(|run| {
                fs::write(root.join("scores/other"), "rows").unwrap();
                run.keep_only("scores", &BTreeSet::new())
            });
            let error = format!("{:#}", written.err().unwrap());
            assert!(error.contains("a link") && error.contains(name), "{error}");
            assert_eq!(fs::read(elsewhere.join("mine")).unwrap(), b"mine", "{name}");
            assert_eq!(fs::read_dir(&elsewhere).unwrap().count(), 1, "{name}");
        }
    }

    #[test]
    fn a_lock_keeps_what_its_file_holds() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join(".lock"), "text").unwrap();
        let held = lock(folder.path()).unwrap();
        assert!(lock(folder.path()).is_err(), "held");
        drop(held);
        assert_eq!(fs::read(folder.path().join(".lock")).unwrap(), b"text");
    }

    #[test]
    fn what_is_not_as_asked_is_moved_away_and_a_neighbours_is_not_taken() {
        let folder = tempfile::tempdir().unwrap();
        let (own, other) = (folder.path().join("own"), folder.path().join("other"));
        drop(RunFolder::open(&other).unwrap());
        fs::write(other.join("manifest.json"), "{}").unwrap();
        fs::write(other.join("scores/a"), "wrong").unwrap();
        fs::write(other.join("scores/b"), "right").unwrap();
        let run = RunFolder::open(&own).unwrap();
        assert!(run.found("scores", "a", word("right")).unwrap().is_none());
        assert!(!own.join("scores/a").exists());
        assert!(run.found("scores", "b", word("right")).unwrap().is_some());
        assert!(own.join("scores/b").exists());
        assert!(run.found("scores", "b", word("other")).unwrap().is_none());
        assert!(own.join("superseded/scores/b").exists());
    }
}
