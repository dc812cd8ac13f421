//! Downloads from the hub into its cache.
//!
//! A file is fetched into `blobs/<content>.incomplete` under the lock that Python's client takes, too, compared with the
//! size and the SHA-256 that the hub names, and renamed. A download that broke off goes on where it ended, also in the
//! next process. The link in `snapshots` is made when the file is whole, `refs` when all files are.

use std::fs::{self, File, OpenOptions};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Deserialize;
use ureq::config::RedirectAuthHeaders;
use ureq::http::Response;
use ureq::{Agent, Body};

use super::{ADAPTER, Hub, HubId, INDEX, MODEL, WHOLE, Wanted, complete, is_commit, plain, shards};
use crate::source::{Progress, lock, sha256};
use crate::{Error, Result};

/// Attempts in a row that bring nothing before a download fails (ours).
const ATTEMPTS: u32 = 4;
/// Wait before the second attempt; each further one waits twice as long (ours).
const WAIT: Duration = Duration::from_millis(200);
/// A server that takes longer for an answer is not there (ours).
const ANSWER: Duration = Duration::from_secs(60);
/// Longest list of a repository's files in bytes (ours).
const LISTING: u64 = 64 << 20;

/// What the hub says of a repository at a revision.
#[derive(Deserialize)]
struct Listing {
    sha: String,
    #[serde(default)]
    siblings: Vec<Remote>,
}

/// A file of a repository.
#[derive(Deserialize)]
struct Remote {
    rfilename: String,
    size: Option<u64>,
    #[serde(rename = "blobId")]
    blob: Option<String>,
    lfs: Option<Lfs>,
}

/// Where a file is large.
#[derive(Deserialize)]
struct Lfs {
    sha256: String,
    size: u64,
}

impl Remote {
    /// What its blob is called: the SHA-256 of a large file, git's hash of a small one.
    fn blob(&self) -> Option<&str> {
        let name = self.lfs.as_ref().map(|lfs| lfs.sha256.as_str());
        let name = name.or(self.blob.as_deref())?;
        let fine = name.len() >= 40 && name.chars().all(|c| c.is_ascii_hexdigit());
        fine.then_some(name)
    }

    fn size(&self) -> Option<u64> {
        self.lfs.as_ref().map(|lfs| lfs.size).or(self.size)
    }
}

/// How an attempt failed.
enum Failure {
    /// Another one may succeed.
    Passing(Error),
    /// All would fail.
    Lasting(Error),
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self::Lasting(error)
    }
}

/// Asks without following anybody to where the token has no business.
pub(in crate::source) fn agent() -> Agent {
    let config = Agent::config_builder()
        .timeout_connect(Some(Duration::from_secs(20)))
        .timeout_recv_response(Some(ANSWER))
        .timeout_per_read(Some(ANSWER))
        // Files lie with others, who must not learn the token.
        .redirect_auth_headers(RedirectAuthHeaders::SameHost)
        .http_status_as_error(false);
    config.build().into()
}

fn failed(url: &str, message: impl ToString) -> Error {
    Error::Download {
        url: url.into(),
        message: message.to_string(),
    }
}

/// A repository at a commit, as far as it is being fetched.
struct Fetching<'a> {
    hub: &'a Hub,
    id: &'a HubId,
    agent: Agent,
    listing: Listing,
    repository: PathBuf,
    snapshot: PathBuf,
}

impl Hub {
    /// Answers to a request, from byte `from` on.
    pub(in crate::source) fn get(
        &self,
        agent: &Agent,
        url: &str,
        from: u64,
    ) -> Result<Response<Body>> {
        if self.offline {
            return Err(failed(url, "HF_HUB_OFFLINE is set"));
        }
        let mut request = agent.get(url);
        if let Some(token) = &self.token {
            request = request.header("Authorization", format!("Bearer {token}"));
        }
        if from > 0 {
            request = request.header("Range", format!("bytes={from}-"));
        }
        request.call().map_err(|e| failed(url, e))
    }

    /// Address of a file.
    pub(in crate::source) fn address(
        &self,
        repository: &str,
        revision: &str,
        file: &str,
    ) -> String {
        let endpoint = &self.endpoint;
        format!("{endpoint}/{repository}/resolve/{revision}/{file}")
    }

    /// Fetches what is wanted of a repository into the cache.
    pub(super) fn download(
        &self,
        id: &HubId,
        wanted: Wanted,
        progress: Progress<'_>,
    ) -> Result<PathBuf> {
        let agent = agent();
        let listing = self.list(&agent, id)?;
        let repository = self.repository(id);
        let snapshot = repository.join("snapshots").join(&listing.sha);
        let fetching = Fetching {
            hub: self,
            id,
            agent,
            listing,
            repository,
            snapshot,
        };
        let place = fetching.all(wanted, progress)?;
        fetching.put_reference()?;
        let is_file = place.extension().is_some_and(|e| e == "gguf");
        complete(&place, is_file, wanted)
            .or_else(|| place.exists().then(|| place.clone()))
            .ok_or_else(|| id.refused(format!("{} is not whole", place.display())))
    }

    /// The files of a repository.
    fn list(&self, agent: &Agent, id: &HubId) -> Result<Listing> {
        let (endpoint, repository) = (&self.endpoint, id.repository());
        let revision = id.revision().replace('/', "%2F");
        let url = format!("{endpoint}/api/models/{repository}/revision/{revision}?blobs=true");
        let mut response = self.get(agent, &url, 0)?;
        if response.status().as_u16() != 200 {
            return Err(self.refusal(id, &response));
        }
        let body = response.body_mut().with_config().limit(LISTING);
        let text = body.read_to_string().map_err(|e| failed(&url, e))?;
        let listing: Listing = serde_json::from_str(&text)
            .map_err(|e| failed(&url, format!("not an answer of the hub ({e})")))?;
        match is_commit(&listing.sha) {
            true => Ok(listing),
            false => Err(failed(&url, "the answer names no commit")),
        }
    }

    /// What a status says.
    fn refusal(&self, id: &HubId, response: &Response<Body>) -> Error {
        let header = |name: &str| response.headers().get(name)?.to_str().ok();
        let (repository, revision) = (id.repository(), id.revision());
        let login = match &self.token {
            None => "set HF_TOKEN to a token that may read it",
            Some(_) => "the token (of HF_TOKEN or the token file) may not read it",
        };
        let message = match (response.status().as_u16(), header("x-error-code")) {
            (_, Some("GatedRepo")) => {
                format!("{repository} is gated: agree to its terms on its page; then, {login}")
            }
            (404, Some("RevisionNotFound")) => {
                format!("{repository} has no commit, tag or branch '{revision}'")
            }
            (401 | 403, _) => {
                format!("the hub has no repository {repository}, or it is private: {login}")
            }
            (404, _) => format!("the hub has no repository {repository} with '{revision}'"),
            (status, _) => {
                return failed(
                    &format!("{}/{repository}", self.endpoint),
                    format!("status {status}"),
                );
            }
        };
        id.refused(message)
    }
}

impl Fetching<'_> {
    fn remote(&self, name: &str) -> Option<&Remote> {
        self.listing.siblings.iter().find(|s| s.rfilename == name)
    }

    /// Fetches what is wanted, and returns its place in the snapshot.
    fn all(&self, wanted: Wanted, progress: Progress<'_>) -> Result<PathBuf> {
        let inside = self.id.inside();
        if self.id.is_file() {
            return self.gguf(&inside, progress);
        }
        let prefix = match inside.as_str() {
            "" => String::new(),
            folder => format!("{folder}/"),
        };
        let has = |name: &str| self.remote(&format!("{prefix}{name}")).is_some();
        let names: Vec<String> = match wanted {
            Wanted::Adapter | Wanted::Any if has(ADAPTER[0]) => {
                if !has(ADAPTER[1]) {
                    return Err(self.lacks(&prefix, "its adapter is not in safetensors"));
                }
                ADAPTER.map(String::from).into()
            }
            Wanted::Adapter => return Err(self.lacks(&prefix, "no adapter_config.json is there")),
            _ if has("config.json") => self.model(&prefix, &has, progress)?,
            _ if has(ADAPTER[0]) => {
                return Err(self.lacks(&prefix, "this is an adapter, not a model"));
            }
            _ => return self.only_gguf(&prefix, progress),
        };
        for name in names {
            self.file(&format!("{prefix}{name}"), progress)?;
        }
        Ok(self.snapshot.join(inside))
    }

    /// The files of a model in a folder; an index is fetched to know them.
    fn model(
        &self,
        prefix: &str,
        has: &dyn Fn(&str) -> bool,
        progress: Progress<'_>,
    ) -> Result<Vec<String>> {
        let described = MODEL.iter().filter(|name| has(name));
        let mut names: Vec<String> = described.map(|name| (*name).into()).collect();
        if has(WHOLE) {
            names.push(WHOLE.into());
            return Ok(names);
        }
        if !has(INDEX) {
            return Err(self.lacks(prefix, "no model.safetensors is there, whole or in parts"));
        }
        let index = self.file(&format!("{prefix}{INDEX}"), progress)?;
        names.extend(shards(&index)?);
        Ok(names)
    }

    /// A `.gguf` file, with its other parts where it is the first of several.
    fn gguf(&self, name: &str, progress: Progress<'_>) -> Result<PathBuf> {
        let first = self.file(name, progress)?;
        if let Some((stem, count)) = parts_of(name) {
            for part in 2..=count {
                self.file(&format!("{stem}-{part:05}-of-{count:05}.gguf"), progress)?;
            }
        }
        Ok(first)
    }

    /// The only model in `.gguf` of a folder.
    fn only_gguf(&self, prefix: &str, progress: Progress<'_>) -> Result<PathBuf> {
        let names = self.listing.siblings.iter().map(|s| s.rfilename.as_str());
        let inside = names.filter_map(|name| name.strip_prefix(prefix));
        let models: Vec<&str> = inside
            .filter(|name| name.ends_with(".gguf") && !name.contains('/'))
            .filter(|name| !crate::load::is_later_part(Path::new(name)))
            .collect();
        match models[..] {
            [only] => self.gguf(&format!("{prefix}{only}"), progress),
            [] => Err(self.lacks(prefix, "neither config.json nor a .gguf file is there")),
            _ => {
                let (repository, known) = (self.id.repository(), models.join(", "));
                let message = format!(
                    "several models in .gguf; name one, as hf://{repository}/{prefix}{}; there are: {known}",
                    models[0]
                );
                Err(self.id.refused(message))
            }
        }
    }

    fn lacks(&self, prefix: &str, what: &str) -> Error {
        let names = self.listing.siblings.iter().map(|s| s.rfilename.as_str());
        let mut inside: Vec<&str> = names.filter(|name| name.starts_with(prefix)).collect();
        let more = inside.len().saturating_sub(12);
        inside.truncate(12);
        let more = if more > 0 {
            format!(" and {more} more")
        } else {
            String::new()
        };
        let there = inside.join(", ");
        self.id
            .refused(format!("{what}; the repository has {there}{more}"))
    }

    /// Fetches one file, unless the cache has it, and links it into the snapshot.
    fn file(&self, name: &str, progress: Progress<'_>) -> Result<PathBuf> {
        let link = self.snapshot.join(name);
        if !name.split('/').all(plain) {
            return Err(self.id.refused(format!("'{name}' is no name of a file")));
        }
        let remote = self.remote(name);
        let remote = remote.ok_or_else(|| self.lacks("", &format!("'{name}' is missing")))?;
        let (Some(blob), Some(size)) = (remote.blob(), remote.size()) else {
            return Err(self.id.refused(format!(
                "the hub tells neither content nor size of '{name}'"
            )));
        };
        let folder = self.repository.join("blobs");
        let path = folder.join(blob);
        if !path.is_file() {
            fs::create_dir_all(&folder).map_err(Error::io(&folder))?;
            let locks = self.repository.file_name().unwrap_or_default();
            let locks = self.hub.cache.join(".locks").join(locks);
            // Held until it is dropped. Who waited for another process has the file now.
            let _lock = lock(&locks, &format!("{blob}.lock"))?;
            if !path.is_file() {
                self.blob(name, remote, size, &path, progress)?;
            }
        }
        put_link(&path, &link, name.split('/').count())?;
        Ok(link)
    }

    /// Fetches a file to `path`.
    fn blob(
        &self,
        name: &str,
        remote: &Remote,
        size: u64,
        path: &Path,
        progress: Progress<'_>,
    ) -> Result<()> {
        let url = self
            .hub
            .address(&self.id.repository(), &self.listing.sha, name);
        let part = path.with_extension("incomplete");
        let length = || fs::metadata(&part).map_or(0, |m| m.len());
        let (mut attempt, mut wait) = (0, WAIT);
        loop {
            let before = length();
            match self.go_on(&url, &part, name, size, progress) {
                Ok(()) => break,
                Err(Failure::Lasting(error)) => return Err(error),
                Err(Failure::Passing(error)) => {
                    if length() > before {
                        (attempt, wait) = (0, WAIT);
                    }
                    attempt += 1;
                    if attempt >= ATTEMPTS {
                        return Err(error);
                    }
                    std::thread::sleep(wait);
                    wait *= 2;
                }
            }
        }
        if let Some(lfs) = &remote.lfs {
            let got = sha256(&part)?;
            if !got.eq_ignore_ascii_case(&lfs.sha256) {
                fs::remove_file(&part).map_err(Error::io(&part))?;
                return Err(Error::Hash {
                    file: format!("{}: {name}", self.id),
                    expected: lfs.sha256.clone(),
                    got,
                });
            }
        }
        fs::rename(&part, path).map_err(Error::io(path))
    }

    /// Adds what is missing to the part of a file.
    fn go_on(
        &self,
        url: &str,
        part: &Path,
        name: &str,
        size: u64,
        progress: Progress<'_>,
    ) -> Result<(), Failure> {
        let mut there = fs::metadata(part).map_or(0, |m| m.len());
        if there > size {
            fs::remove_file(part).map_err(Error::io(part))?;
            there = 0;
        }
        if there == size && there > 0 {
            return Ok(());
        }
        let mut response = self
            .hub
            .get(&self.agent, url, there)
            .map_err(Failure::Passing)?;
        match response.status().as_u16() {
            206 => {}
            // The whole file, though a part was asked for.
            200 => there = 0,
            status @ (429 | 500..=599) => {
                return Err(Failure::Passing(failed(url, format!("status {status}"))));
            }
            // Nothing behind what is there, which then is not this file's.
            416 => {
                fs::remove_file(part).map_err(Error::io(part))?;
                return Err(Failure::Passing(failed(url, "status 416")));
            }
            401 | 403 => return Err(Failure::Lasting(self.hub.refusal(self.id, &response))),
            status => {
                let message = format!("the hub lists it and answers with status {status}");
                return Err(Failure::Lasting(failed(url, message)));
            }
        }
        let mut options = OpenOptions::new();
        options
            .create(true)
            .write(true)
            .append(there > 0)
            .truncate(there == 0);
        let mut file: File = options.open(part).map_err(Error::io(part))?;
        let mut from = response.body_mut().as_reader();
        let mut buffer = vec![0; 1 << 20];
        loop {
            let n = match from.read(&mut buffer) {
                Ok(0) => break,
                Ok(n) => n,
                Err(e) => return Err(Failure::Passing(failed(url, e))),
            };
            file.write_all(&buffer[..n]).map_err(Error::io(part))?;
            there += n as u64;
            if there > size {
                drop(file);
                fs::remove_file(part).map_err(Error::io(part))?;
                let message = format!("over {size} bytes, which the hub says it has");
                return Err(Failure::Lasting(failed(url, message)));
            }
            progress(name, there, Some(size));
        }
        file.sync_all().map_err(Error::io(part))?;
        match there == size {
            true => Ok(()),
            false => {
                let message = format!("the connection ended after {there} of {size} bytes");
                Err(Failure::Passing(failed(url, message)))
            }
        }
    }

    /// Notes the commit that the revision is.
    fn put_reference(&self) -> Result<()> {
        if is_commit(self.id.revision()) {
            return Ok(());
        }
        let path = self.repository.join("refs").join(self.id.revision());
        let folder = path.parent().unwrap_or(&self.repository);
        fs::create_dir_all(folder).map_err(Error::io(folder))?;
        let beside = folder.join(format!(".{}.part", std::process::id()));
        fs::write(&beside, &self.listing.sha).map_err(Error::io(&beside))?;
        fs::rename(&beside, &path).map_err(Error::io(&path))
    }
}

/// Stem and number of parts of the first part of a model that `gguf-split` cut.
fn parts_of(name: &str) -> Option<(&str, u32)> {
    let (stem, count) = name.strip_suffix(".gguf")?.rsplit_once("-00001-of-")?;
    let count = count
        .parse()
        .ok()
        .filter(|count| (2..1 << 16).contains(count))?;
    Some((stem, count))
}

/// Makes a file of the snapshot a link to its blob; where there are no links, a copy. `depth` is that of the file in
/// the snapshot.
fn put_link(blob: &Path, link: &Path, depth: usize) -> Result<()> {
    if link.is_file() {
        return Ok(());
    }
    let folder = link.parent().unwrap_or(link);
    fs::create_dir_all(folder).map_err(Error::io(folder))?;
    let beside = folder.join(format!(".{}.part", std::process::id()));
    if beside.symlink_metadata().is_ok() {
        fs::remove_file(&beside).map_err(Error::io(&beside))?;
    }
    // snapshots/<commit>/<name> to blobs/<blob>
    let mut target: PathBuf = std::iter::repeat_n("..", depth + 1).collect();
    target.push("blobs");
    target.push(blob.file_name().unwrap_or_default());
    #[cfg(unix)]
    let linked = std::os::unix::fs::symlink(&target, &beside);
    #[cfg(not(unix))]
    let linked = fs::copy(blob, &beside).map(|_| ());
    if linked.is_err() {
        fs::copy(blob, &beside).map_err(Error::io(&beside))?;
    }
    // Takes the place of a link whose blob was removed.
    fs::rename(&beside, link).map_err(Error::io(link))
}
