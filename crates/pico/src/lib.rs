//! Tiny models for tests: decoders of some thousand parameters over 96 tokens, two adapters, and what can be made of
//! them. `scripts/fixtures/make.py` writes their files.
//!
//! A crate for tests alone: what does not open panics.
#![allow(clippy::unwrap_used, reason = "for tests")]

pub mod hub;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use experts::classifier::{Classifier, ClassifierCard, Telling, Told};
use experts::{Expert, ExpertPool, ExpertSpec};
use lm::load::Checkpoint;
use lm::sampling::Draws;
use lm::{Adapter, DeviceSpec, Format, LanguageModel};
use tempfile::TempDir;

/// The model that adapters and instructions change.
pub const BASE: &str = "llama";

/// Path of a model's folder, of an adapter's, or of `llama.gguf`.
///
/// ```
/// assert!(pico::path("llama").join("config.json").is_file());
/// ```
pub fn path(name: &str) -> PathBuf {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../lm/tests/fixtures/pico");
    folder.join(name).canonicalize().unwrap()
}

/// A copy of a model's folder or an adapter's, to be changed.
pub fn copy(name: &str) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    copy_to(name, folder.path());
    folder
}

/// The same at `to`, which is made if it is not there.
pub fn copy_to(name: &str, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(path(name)).unwrap() {
        let file = entry.unwrap().path();
        std::fs::copy(&file, to.join(file.file_name().unwrap())).unwrap();
    }
}

/// A model on the processor in `F32`.
pub fn model(name: &str) -> Arc<LanguageModel> {
    open(&path(name)).unwrap()
}

/// A model at any path, on the processor in `F32`.
///
/// # Errors
/// Those of [`LanguageModel::open`].
pub fn open(path: &Path) -> lm::Result<Arc<LanguageModel>> {
    open_in(path, Format::F32)
}

/// A model at any path, on the processor.
///
/// # Errors
/// Those of [`LanguageModel::open`].
pub fn open_in(path: &Path, format: Format) -> lm::Result<Arc<LanguageModel>> {
    LanguageModel::open(path, &DeviceSpec::Cpu, format).map(Arc::new)
}

/// A model's files.
pub fn checkpoint(name: &str) -> Checkpoint {
    Checkpoint::open(&path(name)).unwrap()
}

/// An adapter over [`BASE`]: "plain" or "patterns".
pub fn adapter(name: &str) -> Adapter {
    let folder = path(&format!("adapter_{name}"));
    Adapter::load(&folder, checkpoint(BASE).config()).unwrap()
}

/// How configs would name the expert that is called so here; see [`experts()`].
pub fn spec(expert: &str) -> ExpertSpec {
    match expert {
        "base" => ExpertSpec::Base,
        "full" => ExpertSpec::Full("qwen3".into()),
        "prompted" => ExpertSpec::Prompted("be kind".into()),
        name => ExpertSpec::Adapter(path(&format!("adapter_{name}"))),
    }
}

/// Any expert over `base`, its models those of this crate.
pub fn expert(name: &str, spec: &ExpertSpec, base: &Arc<LanguageModel>) -> Expert {
    Expert::open(name, spec, base, |model| open(&path(model))).unwrap()
}

/// One expert of each kind over one base: "base", "full" (a model of its own), "patterns" and "plain" (adapters),
/// "prompted" (an instruction).
pub fn experts() -> Vec<Expert> {
    thread_local! {
        static OPEN: Vec<Expert> = {
            let base = model(BASE);
            let names = ["base", "full", "patterns", "plain", "prompted"];
            names.iter().map(|name| expert(name, &spec(name), &base)).collect()
        };
    }
    OPEN.with(Vec::clone)
}

/// A pool of some of `experts` in the order of `names`.
pub fn pool<S: AsRef<str>>(experts: &[Expert], names: &[S]) -> ExpertPool {
    let named = |name: &S| experts.iter().find(|e| e.name == name.as_ref()).unwrap();
    ExpertPool::new(names.iter().map(|name| named(name).clone()).collect()).unwrap()
}

/// A folder with a classifier over these models' tokens: numbers at random, for dimensions from a low to a high
/// direction each.
pub fn classifier(dimensions: &[[&str; 2]]) -> TempDir {
    let told = |[low, high]: &[&str; 2]| Told {
        name: format!("{low} {high}"),
        low: (*low).into(),
        high: (*high).into(),
        held_out: Telling::default(),
    };
    let card = ClassifierCard {
        base: BASE.into(),
        window: 5,
        dimensions: dimensions.iter().map(told).collect(),
    };
    let draws = Draws::new(&[b"classifier"]);
    let count = dimensions.len() * checkpoint(BASE).config().vocab_size;
    let number = |i: usize| 4.0 * (draws.clone().uniform(i) as f32 - 0.5);
    let token = (0..count).map(number).collect();
    let context = (count..2 * count).map(number).collect();
    let folder = tempfile::tempdir().unwrap();
    let classifier = Classifier::new(card, token, context).unwrap();
    classifier.save(folder.path()).unwrap();
    folder
}

/// Writes an experiment over [`BASE`] and its two prompts into a folder: strategies "base" and "uniform" for the
/// preference "kind". Returns its file, which the harness reads.
pub fn experiment(folder: &Path) -> PathBuf {
    let text = format!(
        r#"(
    name: "tiny",
    model: {:?},
    dimensions: {{
        "informativeness": (scorer: Informativeness, low: "concise", high: "informative"),
        "style": (scorer: Style, low: "unfriendly", high: "friendly"),
    }},
    experts: {{"informative": Adapter({:?}), "friendly": Prompted("be kind")}},
    preferences: {{"kind": (text: "be kind", weights: {{"informative": 1.0, "friendly": 3.0}})}},
    strategies: {{"base": Base(), "uniform": Uniform()}},
    prompts: "prompts.txt",
    generation: (max_new_tokens: 8),
)"#,
        path(BASE),
        path("adapter_plain")
    );
    let file = folder.join("tiny.ron");
    std::fs::write(&file, text).unwrap();
    std::fs::write(folder.join("prompts.txt"), "Why is the sky blue?\nWhy?\n").unwrap();
    file
}

/// Runs the calling test in processes of one and of two threads, in which `MOPE_THREADS` is set and this returns
/// true: an abort in one of them fails the test, too. `test` is the test's name.
///
/// # Panics
/// When the test fails in one of them.
pub fn on_one_thread_and_on_two(test: &str) -> bool {
    const INNER: &str = "NOT_FINITE_INNER";
    if std::env::var_os(INNER).is_some() {
        return true;
    }
    for threads in ["1", "2"] {
        let output = std::process::Command::new(std::env::current_exe().unwrap())
            .args(["--exact", test])
            .env(INNER, "1")
            .env("MOPE_THREADS", threads)
            .output()
            .unwrap();
        let text = String::from_utf8_lossy(&output.stdout);
        assert!(
            output.status.success() && text.contains("1 passed"),
            "{threads} threads: {}\n{text}{}",
            output.status,
            String::from_utf8_lossy(&output.stderr)
        );
    }
    false
}
