//! Models and adapters of the Hugging Face hub by their ids, through the hub's own cache.
//!
//! An id is `owner/name`, or `hf://owner/name` where it is to be told from a path. `@revision` names a commit, a tag or
//! a branch (default `main`). What follows the name is a file or a folder in the repository:
//! `hf://owner/name/model-q4.gguf`.
//!
//! The cache is that of Python's `huggingface_hub`, which finds what is fetched here, and the reverse: under
//! `models--owner--name` lie `blobs` by their content, `snapshots` by commit, which link to them, and `refs` from
//! revisions to commits. What is there is used without asking the hub, so that a run which is resumed reads what it
//! began with; [`Hub::update`] asks again.
//!
//! | variable | meaning |
//! |---|---|
//! | `HF_HOME` | folder of cache and token; default `$XDG_CACHE_HOME/huggingface`, else `~/.cache/huggingface` |
//! | `HF_HUB_CACHE` | the cache; default `$HF_HOME/hub` |
//! | `HF_TOKEN` | who asks; default what the file `HF_TOKEN_PATH` holds, `$HF_HOME/token` where that is not set |
//! | `HF_HUB_OFFLINE`, `TRANSFORMERS_OFFLINE` | `1`, `on`, `yes` or `true`: nothing is fetched |
//! | `HF_ENDPOINT` | a mirror; default `https://huggingface.co` |
//!
//! This is code of our own over the HTTP client that is here anyway, not the crate `hf-hub`: its version 0.5 reads
//! neither `HF_TOKEN` nor `HF_HUB_OFFLINE` nor `HF_HUB_CACHE`, finds no commit that Python fetched, compares neither
//! sizes nor hashes, continues a part although the server began anew, and sends the token to wherever it is redirected.
//!
//! ```
//! use mope_lm::source::hub::HubId;
//!
//! let id = HubId::parse("HuggingFaceTB/SmolLM2-135M-Instruct@v1.0").expect("an id");
//! assert_eq!((id.repository().as_str(), id.revision()), ("HuggingFaceTB/SmolLM2-135M-Instruct", "v1.0"));
//! assert_eq!(id.to_string(), "hf://HuggingFaceTB/SmolLM2-135M-Instruct@v1.0");
//! assert!(HubId::parse("/data/models/base").is_none() && HubId::parse("smollm2-135m-instruct").is_none());
//! ```

#[cfg(feature = "http")]
mod download;

#[cfg(feature = "http")]
pub(super) use download::agent;

use std::fmt;
use std::path::{Path, PathBuf};

use serde::Deserialize;

use super::Progress;
use crate::load::read_text;
use crate::{Error, Result};

/// What an id begins with where it is to be told from a path.
pub const SCHEME: &str = "hf://";

/// The files of a model's folder that are read, beside its parameters.
const MODEL: [&str; 6] = [
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
];
/// Parameters in one file, and the list of those in several.
const WHOLE: &str = "model.safetensors";
const INDEX: &str = "model.safetensors.index.json";
/// The files of an adapter.
const ADAPTER: [&str; 2] = ["adapter_config.json", "adapter_model.safetensors"];

/// A repository of the hub, or a file or a folder in it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HubId {
    owner: String,
    name: String,
    /// What is meant in the repository; empty: its top folder.
    inside: Vec<String>,
    revision: Option<String>,
}

/// What is wanted of a repository.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wanted {
    /// A model: a folder with `config.json` and safetensors, or a `.gguf` file.
    Model,
    /// An adapter as PEFT saves it.
    Adapter,
    /// An adapter where there is one, else a model.
    Any,
}

/// Part of a path that is the same on every system, and stays in its folder.
fn plain(part: &str) -> bool {
    let strange = |c: char| c.is_control() || "\\:*?\"<>|".contains(c);
    !part.is_empty() && part != "." && part != ".." && !part.contains(strange)
}

impl HubId {
    /// Reads an id; `None` where the text is none. Without `hf://` it is `owner/name`, or a `.gguf` file in it.
    pub fn parse(text: &str) -> Option<Self> {
        let (said, text) = match text.strip_prefix(SCHEME) {
            Some(rest) => (true, rest),
            None => (false, text),
        };
        let (path, revision) = match text.rsplit_once('@') {
            Some((path, revision)) => (path, Some(revision)),
            None => (text, None),
        };
        let sign = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
        let named = |part: &&str| part.chars().all(sign) && !part.starts_with(['-', '.']);
        let mut parts = path.split('/');
        let owner = parts.next().filter(named)?;
        let name = parts.next().filter(named)?;
        let inside: Vec<String> = parts.map(String::from).collect();
        let short = inside.is_empty() || path.ends_with(".gguf");
        let mut all = [owner, name]
            .into_iter()
            .chain(revision.into_iter().flat_map(|r| r.split('/')));
        let whole = all.all(plain) && inside.iter().all(|part| plain(part));
        (whole && (said || short)).then(|| Self {
            owner: owner.into(),
            name: name.into(),
            inside,
            revision: revision.map(String::from),
        })
    }

    /// `owner/name`.
    pub fn repository(&self) -> String {
        format!("{}/{}", self.owner, self.name)
    }

    /// The commit, tag or branch.
    pub fn revision(&self) -> &str {
        self.revision.as_deref().unwrap_or("main")
    }

    /// The file or folder in the repository, with `/`; empty for the top folder.
    fn inside(&self) -> String {
        self.inside.join("/")
    }

    fn is_file(&self) -> bool {
        self.inside
            .last()
            .is_some_and(|name| name.ends_with(".gguf"))
    }

    fn refused(&self, message: impl Into<String>) -> Error {
        Error::Hub {
            id: self.to_string(),
            message: message.into(),
        }
    }
}

impl fmt::Display for HubId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{SCHEME}{}/{}", self.owner, self.name)?;
        self.inside
            .iter()
            .try_for_each(|part| write!(f, "/{part}"))?;
        match &self.revision {
            Some(revision) => write!(f, "@{revision}"),
            None => Ok(()),
        }
    }
}

/// How a file in `folder` names a model: the path where something is there, or where the folder lies in which it would
/// be; an id of the hub as `hf://owner/name`; else what it says, the name of a registered model or a
/// [shape](crate::shape).
///
/// ```
/// use mope_lm::source::hub::located;
/// let folder = std::env::temp_dir();
/// assert_eq!(located(&folder, "Qwen/Qwen3-4B"), "hf://Qwen/Qwen3-4B");
/// assert_eq!(located(&folder, "smollm2-135m-instruct"), "smollm2-135m-instruct");
/// ```
pub fn located(folder: &Path, name: &str) -> String {
    if name.starts_with(SCHEME) || name.starts_with(crate::shape::SCHEME) {
        return name.into();
    }
    let path = folder.join(name);
    match HubId::parse(name) {
        _ if path.exists() => path.to_string_lossy().into_owned(),
        Some(id) if !folder.join(&id.owner).is_dir() => id.to_string(),
        Some(_) => path.to_string_lossy().into_owned(),
        None => name.into(),
    }
}

/// The same for an adapter or another folder, which has no registered name: `owner/name` of the hub becomes
/// `hf://owner/name`, anything else a path.
pub fn located_folder(folder: &Path, path: &Path) -> PathBuf {
    let name = path.to_str().unwrap_or_default();
    match name.starts_with(SCHEME) || HubId::parse(name).is_some() {
        true => located(folder, name).into(),
        false => folder.join(path),
    }
}

/// The id that a model or a folder is called by after [`located`]; `None` for a path.
///
/// # Errors
/// [`Error::Hub`] for what begins as an id and is none.
pub fn id_of(name: &Path) -> Result<Option<HubId>> {
    let Some(name) = name.to_str().filter(|name| name.starts_with(SCHEME)) else {
        return Ok(None);
    };
    match HubId::parse(name) {
        Some(id) => Ok(Some(id)),
        None => Err(Error::Hub {
            id: name.into(),
            message: "an id has the form hf://owner/name, perhaps with a file or folder behind it and @revision".into(),
        }),
    }
}

/// Where a folder lies: itself, or what the hub has under that id, fetched if need be.
///
/// # Errors
/// Those of [`Hub::fetch`].
pub fn folder(name: &Path, wanted: Wanted, progress: Progress<'_>) -> Result<PathBuf> {
    match id_of(name)? {
        Some(id) => Hub::from_env()?.fetch(&id, wanted, progress),
        None => Ok(name.into()),
    }
}

/// The commit that a path in the hub's cache belongs to; `None` for a path elsewhere.
pub fn commit_of(path: &Path) -> Option<&str> {
    let mut parts = path.iter().map_while(|part| part.to_str());
    parts.find(|part| part.starts_with("models--"))?;
    parts.next().filter(|part| *part == "snapshots")?;
    parts.next().filter(|part| is_commit(part))
}

/// Whether a file of a folder in the hub's cache is read here. Others come and go as other programs fetch them.
pub fn is_read(name: &str) -> bool {
    let parameters = name.ends_with(".safetensors") && !name.starts_with("adapter_");
    MODEL.contains(&name) || ADAPTER.contains(&name) || name == INDEX || parameters
}

/// The hub and its cache, as the environment has them.
pub struct Hub {
    endpoint: String,
    cache: PathBuf,
    token: Option<String>,
    offline: bool,
}

impl fmt::Debug for Hub {
    /// Without the token.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Hub")
            .field("endpoint", &self.endpoint)
            .field("cache", &self.cache)
            .field("offline", &self.offline)
            .finish_non_exhaustive()
    }
}

/// A variable that is set to something.
fn variable(name: &str) -> Option<String> {
    let value = std::env::var(name).ok();
    value.filter(|value| !value.trim().is_empty())
}

fn home() -> Result<PathBuf> {
    if let Some(home) = variable("HF_HOME") {
        return Ok(home.into());
    }
    if let Some(caches) = variable("XDG_CACHE_HOME") {
        return Ok(Path::new(&caches).join("huggingface"));
    }
    let home = std::env::home_dir().filter(|h| !h.as_os_str().is_empty());
    Ok(home.ok_or(Error::NoHome)?.join(".cache/huggingface"))
}

/// What the variable holds, else the file.
fn token() -> Result<Option<String>> {
    let said = variable("HF_TOKEN").or_else(|| variable("HUGGING_FACE_HUB_TOKEN"));
    let token = match said {
        Some(token) => token,
        None => {
            let file = match variable("HF_TOKEN_PATH") {
                Some(file) => PathBuf::from(file),
                None => home()?.join("token"),
            };
            match file.is_file() {
                true => read_text(&file)?,
                false => return Ok(None),
            }
        }
    };
    let token = token.trim();
    let fine = !token.is_empty() && token.chars().all(|c| c.is_ascii_graphic());
    Ok(fine.then(|| token.to_string()))
}

impl Hub {
    /// The hub at an address, with a cache, without a token.
    pub fn new(endpoint: &str, cache: &Path) -> Self {
        Self {
            endpoint: endpoint.trim_end_matches('/').into(),
            cache: cache.into(),
            token: None,
            offline: false,
        }
    }

    /// The same, asked with this token.
    #[must_use]
    pub fn with_token(self, token: &str) -> Self {
        let token = Some(token.into());
        Self { token, ..self }
    }

    /// The same, which is not asked: only the cache counts.
    #[must_use]
    pub fn offline(self) -> Self {
        Self {
            offline: true,
            ..self
        }
    }

    /// What the variables say.
    ///
    /// # Errors
    /// No home folder; a token file that cannot be read.
    pub fn from_env() -> Result<Self> {
        let cache = variable("HF_HUB_CACHE").or_else(|| variable("HUGGINGFACE_HUB_CACHE"));
        let cache = match cache {
            Some(cache) => PathBuf::from(cache),
            None => home()?.join("hub"),
        };
        let yes = |name: &str| {
            let value = variable(name).map(|v| v.to_ascii_lowercase());
            value.is_some_and(|v| ["1", "on", "yes", "true"].contains(&v.as_str()))
        };
        let endpoint = variable("HF_ENDPOINT");
        let endpoint = endpoint.as_deref().unwrap_or("https://huggingface.co");
        Ok(Self {
            token: token()?,
            offline: yes("HF_HUB_OFFLINE") || yes("TRANSFORMERS_OFFLINE"),
            ..Self::new(endpoint, &cache)
        })
    }

    /// Address of the hub or of its mirror.
    pub fn endpoint(&self) -> &str {
        &self.endpoint
    }

    /// `models--owner--name` in the cache.
    fn repository(&self, id: &HubId) -> PathBuf {
        self.cache
            .join(format!("models--{}--{}", id.owner, id.name))
    }

    /// The commit that a revision is in the cache.
    fn commit(&self, id: &HubId) -> Option<String> {
        if is_commit(id.revision()) {
            return Some(id.revision().into());
        }
        let file = self.repository(id).join("refs").join(id.revision());
        let commit = std::fs::read_to_string(file).ok()?;
        Some(commit.trim().to_string()).filter(|commit| is_commit(commit))
    }

    /// Where the cache has a whole model or adapter. Nothing is fetched.
    pub fn cached(&self, id: &HubId, wanted: Wanted) -> Option<PathBuf> {
        let commit = self.commit(id)?;
        let snapshot = self.repository(id).join("snapshots").join(commit);
        complete(&snapshot.join(id.inside()), id.is_file(), wanted)
    }

    /// Where a model or an adapter lies: in the cache, or fetched into it.
    ///
    /// # Errors
    /// [`Error::Hub`] for a repository, revision or file that the hub does not have or show, and where nothing may be
    /// fetched; [`Error::Download`] and [`Error::Hash`] for a download that failed.
    pub fn fetch(&self, id: &HubId, wanted: Wanted, progress: Progress<'_>) -> Result<PathBuf> {
        match self.cached(id, wanted) {
            Some(path) => Ok(path),
            None => self.update(id, wanted, progress),
        }
    }

    /// The same, though the hub is asked what the revision is by now. Files that are in the cache are not fetched again.
    ///
    /// # Errors
    /// Those of [`Self::fetch`].
    pub fn update(&self, id: &HubId, wanted: Wanted, progress: Progress<'_>) -> Result<PathBuf> {
        if self.offline {
            let cache = self.cache.display();
            return Err(id.refused(format!(
                "not whole in the cache {cache}, and HF_HUB_OFFLINE forbids to fetch it; fetch it where there is a \
                 network (mope fetch {id}) and copy the cache"
            )));
        }
        #[cfg(feature = "http")]
        return self.download(id, wanted, progress);
        #[cfg(not(feature = "http"))]
        {
            // Nobody is told of progress where there is none.
            let _ = (wanted, progress);
            Err(Error::MissingFeature {
                what: id.to_string(),
                feature: "http",
            })
        }
    }
}

/// A full name of a commit.
fn is_commit(text: &str) -> bool {
    text.len() == 40 && text.chars().all(|c| c.is_ascii_hexdigit())
}

/// `weight_map` of an index, as far as it is read here.
#[derive(Deserialize)]
struct Index {
    weight_map: std::collections::BTreeMap<String, String>,
}

/// The files that an index names, each once.
fn shards(index: &Path) -> Result<Vec<String>> {
    let read: Index = crate::load::hf::read_json(index)?;
    let mut names: Vec<String> = read.weight_map.into_values().collect();
    names.sort();
    names.dedup();
    match names.iter().find(|name| !plain(name) || name.contains('/')) {
        None => Ok(names),
        Some(name) => Err(Error::format(
            index,
            format!("shard '{name}' is not a file name"),
        )),
    }
}

/// The place of a whole model or adapter in a snapshot: `place` itself, or the only model in `.gguf` in it.
fn complete(place: &Path, is_file: bool, wanted: Wanted) -> Option<PathBuf> {
    if is_file {
        let parts = place.is_file().then(|| crate::load::gguf_files(place).ok());
        return parts.flatten().map(|_| place.to_path_buf());
    }
    let has = |name: &str| place.join(name).is_file();
    let adapter = ADAPTER.iter().all(|name| has(name));
    if adapter && wanted != Wanted::Model {
        return Some(place.into());
    }
    if wanted == Wanted::Adapter {
        return None;
    }
    if has("config.json") {
        let index = || {
            Some(
                shards(&place.join(INDEX))
                    .ok()?
                    .iter()
                    .all(|name| has(name)),
            )
        };
        let parameters = has(WHOLE) || (has(INDEX) && index().unwrap_or(false));
        return (parameters && has("tokenizer.json")).then(|| place.into());
    }
    let files = std::fs::read_dir(place)
        .ok()?
        .filter_map(|e| Some(e.ok()?.path()));
    let mut files = files.filter(|p| p.extension().is_some_and(|e| e == "gguf"));
    match (files.next(), files.next()) {
        (Some(only), None) => complete(&only, true, wanted),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[test]
    fn ids_are_read_and_anything_else_is_none() {
        for (text, said) in [
            ("Qwen/Qwen3-4B", "hf://Qwen/Qwen3-4B"),
            ("hf://a/b", "hf://a/b"),
            ("a/b@refs/pr/1", "hf://a/b@refs/pr/1"),
            ("a/b/q4.gguf", "hf://a/b/q4.gguf"),
            ("hf://a/b/adapters/one@v2", "hf://a/b/adapters/one@v2"),
            ("a_b/c.d-e", "hf://a_b/c.d-e"),
        ] {
            let id = HubId::parse(text).unwrap();
            assert_eq!(id.to_string(), said);
            assert_eq!(HubId::parse(said).unwrap(), id);
        }
        for text in [
            "",
            "a",
            "/a/b",
            "a/b/",
            "a//b",
            "./a",
            "../a/b",
            "a/..",
            "a/b/c",
            "a/b@",
            "a/b@../c",
            "a/b@/c",
            ".a/b",
            "-a/b",
            "a b/c",
            "hf://a",
            "hf://a/b/../c",
            "hf://a/b//c",
            "C:/a/b",
            "a\\b/c",
            "hf://a/b/c\u{0}d",
        ] {
            assert!(HubId::parse(text).is_none(), "{text}");
        }
    }

    #[test]
    fn a_path_wins_and_so_does_its_folder() {
        let folder = tempfile::tempdir().unwrap();
        let here = folder.path();
        let at = |name: &str| here.join(name).to_string_lossy().into_owned();
        assert_eq!(located(here, "owner/name"), "hf://owner/name");
        assert_eq!(
            located_folder(here, Path::new("owner/name")),
            Path::new("hf://owner/name")
        );
        std::fs::create_dir(here.join("owner")).unwrap();
        assert_eq!(located(here, "owner/name"), at("owner/name"));
        assert_eq!(
            located_folder(here, Path::new("owner/name")),
            here.join("owner/name")
        );
        assert_eq!(located(here, "hf://owner/name"), "hf://owner/name");
        std::fs::create_dir(here.join("owner/name")).unwrap();
        assert_eq!(located(here, "owner/name"), at("owner/name"));
        // A folder of an adapter has no other names.
        for path in ["adapter", "runs/train/x/adapter", "../a/b"] {
            assert_eq!(located_folder(here, Path::new(path)), here.join(path));
        }
        assert_eq!(located(here, "registered"), "registered");
    }

    #[test]
    fn commits_are_found_in_paths_of_the_cache_alone() {
        let commit = "0123456789abcdef0123456789abcdef01234567";
        let path = PathBuf::from(format!("/x/models--a--b/snapshots/{commit}/q4.gguf"));
        assert_eq!(commit_of(&path), Some(commit));
        assert_eq!(commit_of(Path::new("/x/models--a--b/blobs/0123")), None);
        assert_eq!(
            commit_of(&PathBuf::from(format!("/x/snapshots/{commit}"))),
            None
        );
    }
}
