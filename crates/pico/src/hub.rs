//! A stand-in for the Hugging Face hub on loopback: repositories in memory, and whatever can go wrong.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::sync::{Arc, Mutex};

use sha2::{Digest, Sha256};

/// Files of this size and more lie elsewhere, as the hub's large ones do, and are known by their SHA-256.
const LARGE: usize = 2000;

/// A request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Asked {
    /// Address without the host.
    pub path: String,
    /// First byte that is wanted.
    pub from: usize,
    /// Token.
    pub token: Option<String>,
}

/// How a request is answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    /// As the hub does.
    Usual,
    /// With a status, and the hub's code for what is wrong.
    Status(u16, &'static str),
    /// With the content up to this byte, after which the connection ends.
    Cut(usize),
    /// With the whole content, whatever part was wanted.
    Whole,
    /// With another content.
    Other(Vec<u8>),
    /// With the content up to this byte, and then nothing for ever.
    Stall(usize),
}

type Behaviour = Box<dyn Fn(&Asked) -> Answer + Send + Sync>;
type Files = BTreeMap<String, Vec<u8>>;

#[derive(Default)]
struct State {
    repositories: Mutex<BTreeMap<String, Files>>,
    requests: Mutex<Vec<Asked>>,
    behaviour: Mutex<Option<Behaviour>>,
}

/// The stand-in; it serves until the process ends.
pub struct Hub {
    /// What `HF_ENDPOINT` is to be.
    pub address: String,
    state: Arc<State>,
}

impl Hub {
    /// Starts to serve no repository at all.
    pub fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let state = Arc::<State>::default();
        let served = state.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let state = served.clone();
                // Whoever is killed leaves its connection.
                std::thread::spawn(move || serve(&stream.unwrap(), port, &state).ok());
            }
        });
        Self {
            address: format!("http://127.0.0.1:{port}"),
            state,
        }
    }

    /// Puts a file into a repository, `owner/name`.
    pub fn put(&self, repository: &str, name: &str, content: impl Into<Vec<u8>>) {
        let mut repositories = self.state.repositories.lock().unwrap();
        let files = repositories.entry(repository.into()).or_default();
        files.insert(name.into(), content.into());
    }

    /// Puts all files of a folder into a repository.
    pub fn put_folder(&self, repository: &str, folder: &Path) {
        for entry in std::fs::read_dir(folder).unwrap() {
            let file = entry.unwrap().path();
            let name = file.file_name().unwrap().to_str().unwrap();
            self.put(repository, name, std::fs::read(&file).unwrap());
        }
    }

    /// Takes a file away.
    pub fn remove(&self, repository: &str, name: &str) {
        let mut repositories = self.state.repositories.lock().unwrap();
        repositories
            .get_mut(repository)
            .unwrap()
            .remove(name)
            .unwrap();
    }

    /// Answers from now on as this says.
    pub fn behave(&self, behaviour: impl Fn(&Asked) -> Answer + Send + Sync + 'static) {
        *self.state.behaviour.lock().unwrap() = Some(Box::new(behaviour));
    }

    /// Forgets and returns what was asked.
    pub fn take_requests(&self) -> Vec<Asked> {
        std::mem::take(&mut *self.state.requests.lock().unwrap())
    }
}

fn hash(bytes: &[u8]) -> String {
    lm::source::hex(&Sha256::digest(bytes))
}

/// The commit of a repository follows from its files.
fn commit(files: &Files) -> String {
    let all: Vec<u8> = files
        .iter()
        .flat_map(|(n, b)| [n.as_bytes(), b].concat())
        .collect();
    hash(&all)[..40].into()
}

fn listing(files: &Files) -> String {
    let file = |(name, bytes): (&String, &Vec<u8>)| {
        let (hash, size) = (hash(bytes), bytes.len());
        let lfs = match size >= LARGE {
            true => format!(
                ", \"lfs\": {{\"sha256\": \"{hash}\", \"size\": {size}, \"pointerSize\": 134}}"
            ),
            false => String::new(),
        };
        let blob = &hash[..40];
        format!("{{\"rfilename\": {name:?}, \"size\": {size}, \"blobId\": \"{blob}\"{lfs}}}")
    };
    let all: Vec<String> = files.iter().map(file).collect();
    format!(
        "{{\"sha\": \"{}\", \"siblings\": [{}]}}",
        commit(files),
        all.join(", ")
    )
}

/// Status, headers and content of an answer.
type Reply = (u16, Vec<String>, Vec<u8>);

/// The content that a path has, before anything goes wrong.
fn usual(path: &str, port: u16, repositories: &BTreeMap<String, Files>) -> Reply {
    let missing = |code: &str| (404, vec![format!("X-Error-Code: {code}")], Vec::new());
    if let Some(hashed) = path.strip_prefix("/elsewhere/") {
        let mut all = repositories.values().flat_map(|files| files.values());
        return match all.find(|bytes| hash(bytes) == hashed) {
            Some(bytes) => (200, vec![], bytes.clone()),
            None => missing("EntryNotFound"),
        };
    }
    let parts: Vec<&str> = path.trim_start_matches('/').split('/').collect();
    let (repository, revision, file) = match &parts[..] {
        ["api", "models", owner, name, "revision", revision] => {
            let revision = revision.split('?').next().unwrap();
            (format!("{owner}/{name}"), revision, None)
        }
        [owner, name, "resolve", revision, file @ ..] => {
            (format!("{owner}/{name}"), *revision, Some(file.join("/")))
        }
        _ => return missing("EntryNotFound"),
    };
    let Some(files) = repositories.get(&repository) else {
        return missing("RepoNotFound");
    };
    let known = ["main", "v1.0", "refs%2Fpr%2F1"].contains(&revision) || revision == commit(files);
    let Some(file) = file.filter(|_| known) else {
        return match known {
            true => (200, vec![], listing(files).into_bytes()),
            false => missing("RevisionNotFound"),
        };
    };
    match files.get(&file) {
        None => missing("EntryNotFound"),
        Some(bytes) if bytes.len() >= LARGE => {
            let location = format!(
                "Location: http://localhost:{port}/elsewhere/{}",
                hash(bytes)
            );
            (302, vec![location], Vec::new())
        }
        Some(bytes) => (200, vec![], bytes.clone()),
    }
}

fn serve(mut stream: &TcpStream, port: u16, state: &State) -> std::io::Result<()> {
    let mut lines = BufReader::new(stream).lines();
    let first = lines.next().transpose()?.unwrap_or_default();
    let mut asked = Asked {
        path: first.split(' ').nth(1).unwrap_or_default().into(),
        from: 0,
        token: None,
    };
    for line in lines {
        let line = line?;
        let Some((name, value)) = line.split_once(": ") else {
            break;
        };
        match name.to_ascii_lowercase().as_str() {
            "range" => {
                let from = value.trim_start_matches("bytes=").trim_end_matches('-');
                asked.from = from.parse().unwrap();
            }
            "authorization" => asked.token = value.strip_prefix("Bearer ").map(String::from),
            _ => {}
        }
    }
    state.requests.lock().unwrap().push(asked.clone());
    let behaviour = state.behaviour.lock().unwrap();
    let answer = behaviour.as_ref().map_or(Answer::Usual, |b| b(&asked));
    drop(behaviour);
    let (mut status, mut headers, mut content) =
        usual(&asked.path, port, &state.repositories.lock().unwrap());
    match &answer {
        Answer::Status(other, code) => {
            (status, headers, content) =
                (*other, vec![format!("X-Error-Code: {code}")], Vec::new());
        }
        Answer::Other(other) => (status, headers, content) = (200, vec![], other.clone()),
        _ => {}
    }
    if status == 200 && asked.from > 0 && answer != Answer::Whole {
        match asked.from < content.len() {
            true => (status, content) = (206, content.split_off(asked.from)),
            false => (status, content) = (416, Vec::new()),
        }
    }
    let length = content.len();
    let headers: String = headers.iter().map(|h| format!("{h}\r\n")).collect();
    write!(
        stream,
        "HTTP/1.1 {status} -\r\nContent-Length: {length}\r\nConnection: close\r\n{headers}\r\n"
    )?;
    match answer {
        Answer::Cut(at) => stream.write_all(&content[..at.min(length)]),
        Answer::Stall(at) if at < length => {
            stream.write_all(&content[..at])?;
            stream.flush()?;
            loop {
                std::thread::park();
            }
        }
        _ => stream.write_all(&content),
    }
}
