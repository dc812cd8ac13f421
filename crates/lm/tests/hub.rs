//! Models and adapters of a hub on loopback: what is fetched, where it lies, and what goes wrong.
#![allow(clippy::unwrap_used, reason = "tests")]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use mope_lm::load::Checkpoint;
use mope_lm::source::hub::{Hub, HubId, Wanted, commit_of, is_read};
use mope_lm::{Adapter, Error, Result};
use pico::hub::Answer;

/// A hub with a model and an adapter, and an empty cache.
fn hub() -> (pico::hub::Hub, tempfile::TempDir) {
    let hub = pico::hub::Hub::start();
    hub.put_folder("owner/llama", &pico::path("llama"));
    hub.put("owner/llama", "README.md", "a card");
    hub.put("owner/llama", "pytorch_model.bin", vec![0; 5000]);
    hub.put_folder("owner/plain", &pico::path("adapter_plain"));
    (hub, tempfile::tempdir().unwrap())
}

fn id(text: &str) -> HubId {
    HubId::parse(text).unwrap()
}

fn fetch(hub: &pico::hub::Hub, cache: &Path, name: &str, wanted: Wanted) -> Result<PathBuf> {
    Hub::new(&hub.address, cache).fetch(&id(name), wanted, &mut |_, _, _| {})
}

/// Relative paths of everything below a folder, with what a link names.
fn tree(folder: &Path) -> BTreeMap<String, Option<String>> {
    let mut all = BTreeMap::new();
    let mut folders = vec![folder.to_path_buf()];
    while let Some(inside) = folders.pop() {
        for entry in std::fs::read_dir(inside).unwrap() {
            let path = entry.unwrap().path();
            let link = path.read_link().ok();
            if link.is_none() && path.is_dir() {
                folders.push(path);
                continue;
            }
            let name = path
                .strip_prefix(folder)
                .unwrap()
                .to_str()
                .unwrap()
                .to_string();
            all.insert(name, link.map(|l| l.to_str().unwrap().to_string()));
        }
    }
    all
}

#[test]
fn what_is_read_lies_where_the_hubs_own_client_has_it() {
    let (server, cache) = hub();
    let here = cache.path();
    let path = fetch(&server, here, "owner/llama", Wanted::Model).unwrap();
    let model = Checkpoint::open(&path).unwrap();
    model.check().unwrap();
    let commit = commit_of(&path).unwrap();
    let repository = here.join("models--owner--llama");
    assert_eq!(path, repository.join("snapshots").join(commit));
    assert_eq!(
        std::fs::read_to_string(repository.join("refs/main")).unwrap(),
        commit
    );
    let hash = mope_lm::source::sha256(&pico::path("llama").join("model.safetensors")).unwrap();
    let link = tree(&repository).remove(&format!("snapshots/{commit}/model.safetensors"));
    assert_eq!(link.unwrap().unwrap(), format!("../../blobs/{hash}"));
    let names: Vec<String> = tree(&path).into_keys().collect();
    assert!(names.iter().all(|name| is_read(name)), "{names:?}");
    assert!(names.contains(&"tokenizer.json".to_string()) && !is_read("README.md"));
    assert!(
        !tree(&repository)
            .keys()
            .any(|name| name.contains("incomplete") || name.contains("part"))
    );
    // Once it is there nobody is asked.
    server.take_requests();
    assert_eq!(
        fetch(&server, here, "owner/llama@main", Wanted::Model).unwrap(),
        path
    );
    let offline = Hub::new(&server.address, here).offline();
    assert_eq!(
        offline
            .fetch(&id("owner/llama"), Wanted::Any, &mut |_, _, _| {})
            .unwrap(),
        path
    );
    // A commit needs no reference.
    assert_eq!(
        offline.cached(&id(&format!("owner/llama@{commit}")), Wanted::Model),
        Some(path)
    );
    assert!(server.take_requests().is_empty());
}

#[test]
fn an_adapter_is_two_files_and_may_lie_in_a_folder() {
    let (server, cache) = hub();
    for name in ["adapter_config.json", "adapter_model.safetensors"] {
        let content = std::fs::read(pico::path("adapter_plain").join(name)).unwrap();
        server.put("owner/many", &format!("adapters/one/{name}"), content);
    }
    let config = pico::checkpoint(pico::BASE).config().clone();
    let expected = pico::adapter("plain");
    for name in ["owner/plain", "hf://owner/many/adapters/one"] {
        for wanted in [Wanted::Adapter, Wanted::Any] {
            let path = fetch(&server, cache.path(), name, wanted).unwrap();
            assert_eq!(Adapter::load(&path, &config).unwrap(), expected);
            assert_eq!(tree(&path).len(), 2);
        }
    }
    for (name, wanted, message) in [
        (
            "owner/llama",
            Wanted::Adapter,
            "no adapter_config.json is there; the repository has README.md, config.json",
        ),
        (
            "owner/plain",
            Wanted::Model,
            "this is an adapter, not a model",
        ),
    ] {
        let error = fetch(&server, cache.path(), name, wanted)
            .unwrap_err()
            .to_string();
        assert!(error.contains(message), "{error}");
    }
}

#[test]
fn parts_come_by_their_index_and_none_may_be_missing() {
    let (server, cache) = hub();
    let folder = pico::path("llama");
    for name in ["config.json", "tokenizer.json"] {
        server.put(
            "owner/parts",
            name,
            std::fs::read(folder.join(name)).unwrap(),
        );
    }
    let shards = [
        "model-00001-of-00002.safetensors",
        "model-00002-of-00002.safetensors",
    ];
    let index = format!(
        "{{\"weight_map\": {{\"a\": \"{}\", \"b\": \"{}\", \"c\": \"{0}\"}}}}",
        shards[0], shards[1]
    );
    server.put("owner/parts", "model.safetensors.index.json", index);
    server.put("owner/parts", shards[0], vec![1; 3000]);
    let error = fetch(&server, cache.path(), "owner/parts", Wanted::Model)
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("'model-00002-of-00002.safetensors' is missing"),
        "{error}"
    );
    let offline = Hub::new(&server.address, cache.path()).offline();
    assert_eq!(offline.cached(&id("owner/parts"), Wanted::Model), None);
    server.put("owner/parts", shards[1], vec![2; 3000]);
    let path = fetch(&server, cache.path(), "owner/parts", Wanted::Model).unwrap();
    assert_eq!(std::fs::read(path.join(shards[1])).unwrap(), vec![2; 3000]);
    // A part that was removed from the cache is missed.
    std::fs::remove_file(path.join(shards[0])).unwrap();
    assert_eq!(offline.cached(&id("owner/parts"), Wanted::Model), None);
    assert_eq!(
        fetch(&server, cache.path(), "owner/parts", Wanted::Model).unwrap(),
        path
    );

    server.put("owner/evil", "config.json", "{}");
    let evil = "{\"weight_map\": {\"a\": \"../../../evil\"}}";
    server.put("owner/evil", "model.safetensors.index.json", evil);
    let error = fetch(&server, cache.path(), "owner/evil", Wanted::Model)
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("shard '../../../evil' is not a file name"),
        "{error}"
    );
}

#[test]
fn one_of_several_gguf_files_has_to_be_named() {
    let (server, cache) = hub();
    let content = std::fs::read(pico::path("llama.gguf")).unwrap();
    server.put("owner/gguf", "q4.gguf", content.clone());
    let path = fetch(&server, cache.path(), "owner/gguf", Wanted::Model).unwrap();
    assert!(path.ends_with("q4.gguf"));
    Checkpoint::open(&path).unwrap();
    server.put("owner/gguf", "f16/q8.gguf", content.clone());
    server.put("owner/gguf", "q5.gguf", content.clone());
    let other = tempfile::tempdir().unwrap();
    let error = fetch(&server, other.path(), "owner/gguf", Wanted::Model)
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("name one, as hf://owner/gguf/q4.gguf; there are: q4.gguf, q5.gguf"),
        "{error}"
    );
    for name in ["owner/gguf/q5.gguf", "owner/gguf/f16/q8.gguf"] {
        let path = fetch(&server, other.path(), name, Wanted::Model).unwrap();
        assert_eq!(std::fs::read(path).unwrap(), content);
    }
}

#[test]
fn a_download_that_breaks_off_goes_on_where_it_ended() {
    let (server, cache) = hub();
    let size = std::fs::metadata(pico::path("llama").join("model.safetensors"))
        .unwrap()
        .len() as usize;
    let piece = size / 5;
    server.behave(move |asked| match asked.path.starts_with("/elsewhere/") {
        true => Answer::Cut(piece),
        false => Answer::Usual,
    });
    let path = fetch(&server, cache.path(), "owner/llama", Wanted::Model).unwrap();
    Checkpoint::open(&path).unwrap().check().unwrap();
    let asked = server.take_requests();
    let largest = asked.iter().map(|a| a.from).max().unwrap();
    assert!(largest >= 4 * piece, "{largest} of {size}");
}

#[test]
fn a_part_is_begun_anew_where_the_server_gives_the_whole() {
    let (server, cache) = hub();
    let first = std::sync::atomic::AtomicBool::new(true);
    server.behave(move |asked| {
        let large = asked.path.starts_with("/elsewhere/");
        match large && first.swap(false, std::sync::atomic::Ordering::SeqCst) {
            true => Answer::Cut(1000),
            false if large => Answer::Whole,
            false => Answer::Usual,
        }
    });
    let path = fetch(&server, cache.path(), "owner/llama", Wanted::Model).unwrap();
    Checkpoint::open(&path).unwrap().check().unwrap();
}

#[test]
fn nothing_of_another_size_or_content_is_kept() {
    let (server, cache) = hub();
    let size = std::fs::metadata(pico::path("llama").join("model.safetensors"))
        .unwrap()
        .len() as usize;
    for (content, message) in [
        (vec![7; size], "sha256 is"),
        (vec![7; size + 1], "bytes, which the hub says it has"),
        (vec![7; size - 1], "sha256 is"),
        (Vec::new(), "the connection ended after 0 of"),
    ] {
        server.behave(move |asked| match asked.path.starts_with("/elsewhere/") {
            // What is left of it is made up of another content, too.
            true => Answer::Other([content.as_slice(), &[7; 1]].concat()[..content.len()].into()),
            false => Answer::Usual,
        });
        let error = fetch(&server, cache.path(), "owner/llama", Wanted::Model).unwrap_err();
        let short = matches!(error, Error::Download { .. }) && message == "sha256 is";
        assert!(short || error.to_string().contains(message), "{error}");
        let kept = tree(cache.path());
        assert!(
            !kept.keys().any(|name| name.ends_with("model.safetensors")),
            "{kept:?}"
        );
    }
    server.behave(|_| Answer::Usual);
    let path = fetch(&server, cache.path(), "owner/llama", Wanted::Model).unwrap();
    Checkpoint::open(&path).unwrap().check().unwrap();
}

#[test]
fn what_the_hub_refuses_is_said_in_words() {
    let (server, cache) = hub();
    let asks = |name: &str| {
        fetch(&server, cache.path(), name, Wanted::Model)
            .unwrap_err()
            .to_string()
    };
    let error = asks("owner/nothing");
    assert!(
        error.contains("hf://owner/nothing: the hub has no repository owner/nothing"),
        "{error}"
    );
    assert!(
        error.contains("if a path was meant: nothing is there"),
        "{error}"
    );
    assert!(asks("owner/llama@v9").contains("owner/llama has no commit, tag or branch 'v9'"));
    for (status, code, message) in [
        (
            401,
            "GatedRepo",
            "owner/llama is gated: agree to its terms on its page",
        ),
        (403, "GatedRepo", "owner/llama is gated"),
        (
            401,
            "RepoNotFound",
            "or it is private: set HF_TOKEN to a token that may read it",
        ),
        (500, "", "status 500"),
    ] {
        server.behave(move |_| Answer::Status(status, code));
        let error = asks("owner/llama");
        assert!(error.contains(message), "{error}");
    }
    server.behave(|_| Answer::Other(b"<html>a proxy's page</html>".to_vec()));
    assert!(asks("owner/llama").contains("not an answer of the hub"));
    let sha = "x".repeat(40);
    let answer = format!("{{\"sha\": \"{sha}\", \"siblings\": []}}");
    server.behave(move |_| Answer::Other(answer.clone().into_bytes()));
    assert!(asks("owner/llama").contains("the answer names no commit"));
    let nobody = Hub::new("http://127.0.0.1:1", cache.path());
    let error = nobody
        .fetch(&id("owner/llama"), Wanted::Model, &mut |_, _, _| {})
        .unwrap_err();
    assert!(matches!(error, Error::Download { .. }), "{error}");
    let offline = Hub::new(&server.address, cache.path()).offline();
    let error = offline
        .fetch(&id("owner/llama"), Wanted::Model, &mut |_, _, _| {})
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("HF_HUB_OFFLINE") && error.contains("mope fetch hf://owner/llama"),
        "{error}"
    );
}

#[test]
fn the_token_is_for_the_hub_alone() {
    let (server, cache) = hub();
    let hub = Hub::new(&server.address, cache.path()).with_token("secret");
    hub.fetch(&id("owner/llama"), Wanted::Model, &mut |_, _, _| {})
        .unwrap();
    let asked = server.take_requests();
    assert!(asked.iter().any(|a| a.path.starts_with("/elsewhere/")));
    for asked in asked {
        let expected = (!asked.path.starts_with("/elsewhere/")).then_some("secret");
        assert_eq!(asked.token.as_deref(), expected, "{}", asked.path);
    }
    assert!(!format!("{hub:?}").contains("secret"));
}

#[test]
fn a_branch_that_moved_is_followed_when_that_is_asked_for() {
    let (server, cache) = hub();
    let hub = Hub::new(&server.address, cache.path());
    let mut nothing = |_: &str, _, _| {};
    let before = hub
        .fetch(&id("owner/llama"), Wanted::Model, &mut nothing)
        .unwrap();
    server.put(
        "owner/llama",
        "generation_config.json",
        "{\"eos_token_id\": 3}",
    );
    assert_eq!(
        hub.fetch(&id("owner/llama"), Wanted::Model, &mut nothing)
            .unwrap(),
        before
    );
    server.take_requests();
    let after = hub
        .update(&id("owner/llama"), Wanted::Any, &mut nothing)
        .unwrap();
    assert_ne!(after, before);
    // Two of the files are new; the others were there.
    assert_eq!(server.take_requests().len(), 2);
    assert_eq!(hub.cached(&id("owner/llama"), Wanted::Model), Some(after));
    let branch = id("owner/llama@refs/pr/1");
    let path = hub.fetch(&branch, Wanted::Model, &mut nothing).unwrap();
    assert!(
        cache
            .path()
            .join("models--owner--llama/refs/refs/pr/1")
            .is_file()
            && path.is_dir()
    );
}
