//! Runs and verdicts on a storage that fails in every way: processes killed at any moment, a disk that is full, files
//! that are cut, places that cannot be written. Each failure is one clear error or a kill, what is on the disk is whole,
//! and what is finished afterwards is what an undisturbed run writes. The tests of judges have as many faults of servers.
#![allow(clippy::unwrap_used, reason = "tests")]

mod common;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use common::{contents, fixture, same, stderr, write};
use serde_json::Value;

/// The program on one thread, so that hundreds of starts stay quick on a busy machine.
fn mope(folder: &Path, arguments: &[&str]) -> Command {
    let mut command = common::mope(folder, arguments);
    command.env("MOPE_THREADS", "1");
    command
}

/// Runs and expects success.
fn done(folder: &Path, arguments: &[&str]) {
    let output = mope(folder, arguments).output().unwrap();
    assert!(
        output.status.success(),
        "{arguments:?}: {}",
        stderr(&output)
    );
}

/// Numbers that look random and come again (Knuth's generator).
struct Random(u64);

impl Random {
    /// Below a limit.
    fn below(&mut self, limit: u64) -> u64 {
        let next = self.0.wrapping_mul(6_364_136_223_846_793_005);
        self.0 = next.wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % limit
    }
}

/// A small experiment that fills every folder of a run.
const SMALL: &str = r#"(
    name: "small",
    model: "MODEL",
    dimensions: {"style": (scorer: Style, low: "unfriendly", high: "friendly")},
    experts: {"friendly": Prompted("be kind"), "unfriendly": Adapter("PLAIN")},
    preferences: {"kind": (text: "be kind", weights: {"friendly": 2.0, "unfriendly": 1.0})},
    strategies: {"base": Base(), "uniform": Uniform(), CHOICE},
    prompts: "prompts.txt",
    CHOSEN
    retention: (text: "prose.txt"),
    generation: (max_new_tokens: 4, sampling: (temperature: 0.9)),
    batch_size: 1,
)"#;

fn experiment(choice: &str, chosen: &str) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let here = folder.path();
    let prompts: String = (0..6).map(|i| format!("Why is it {i}?\n")).collect();
    fs::write(here.join("prompts.txt"), prompts).unwrap();
    fs::write(here.join("choose.txt"), "Who asks?\n").unwrap();
    fs::write(here.join("prose.txt"), "A b c.\n").unwrap();
    let text = SMALL.replace("CHOICE", choice).replace("CHOSEN", chosen);
    write(here, "small.ron", &text);
    folder
}

/// The program as on a disk that has room for `blocks` of 512 bytes in each file: a longer write is an error, no signal.
fn on_full_disk(folder: &Path, blocks: u64, arguments: &[&str]) -> Output {
    let script = format!("trap '' XFSZ; ulimit -f {blocks}; exec \"$@\"");
    let plain = mope(folder, arguments);
    let mut command = Command::new("sh");
    command.args(["-c", &script, "sh"]).arg(plain.get_program());
    command.args(plain.get_args()).current_dir(folder);
    for (name, value) in plain.get_envs() {
        command.env(name, value.unwrap());
    }
    command.output().unwrap()
}

/// Starts the program and kills it after a while, sooner where it came to its end before.
fn killed(folder: &Path, mut wait: Duration, arguments: &[&str]) {
    loop {
        let mut command = mope(folder, arguments);
        let command = command.stdout(Stdio::null()).stderr(Stdio::null());
        let mut child = command.spawn().unwrap();
        std::thread::sleep(wait);
        child.kill().unwrap();
        if !child.wait().unwrap().success() {
            return;
        }
        wait /= 2;
    }
}

/// A failure is one clear error.
fn clear(output: &Output) {
    let said = stderr(output);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(!said.contains("panicked"), "{said}");
    assert_eq!(said.matches("error: ").count(), 1, "{said}");
}

/// Every file below a folder.
fn files(folder: &Path) -> Vec<PathBuf> {
    let mut paths = Vec::new();
    let mut folders = vec![folder.to_path_buf()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            match path.is_dir() {
                true => folders.push(path),
                false => paths.push(path),
            }
        }
    }
    paths.sort();
    paths
}

/// What lies in the folders of rows is what the calm run has under that name: names say what files hold.
fn rows_are_whole(calm: &BTreeMap<String, Vec<u8>>, run: &Path) {
    for part in [
        "references",
        "generations",
        "scores",
        "validation",
        "retention",
    ] {
        let folder = run.join(part);
        if !folder.is_dir() {
            continue;
        }
        for path in files(&folder) {
            let name = path.file_name().unwrap().to_str().unwrap();
            if !name.starts_with('.') {
                let bytes = fs::read(&path).unwrap();
                let name = format!("{part}/{name}");
                assert!(calm.get(&name) == Some(&bytes), "{name} is not whole");
            }
        }
    }
}

/// Cuts a file of the run somewhere; `None` where there is none yet.
fn cut(random: &mut Random, run: &Path) -> Option<PathBuf> {
    let all: Vec<PathBuf> = match run.is_dir() {
        true => files(run),
        false => Vec::new(),
    };
    let filled = |p: &PathBuf| fs::metadata(p).unwrap().len() > 0;
    let aside = |p: &PathBuf| p.strip_prefix(run).unwrap().starts_with("superseded");
    let mut all: Vec<PathBuf> = all.into_iter().filter(|p| filled(p) && !aside(p)).collect();
    // Rows more often than what is made of them.
    let rows =
        |p: &PathBuf| !p.starts_with(run.join("tables")) && !p.starts_with(run.join("plots"));
    if random.below(3) > 0 && all.iter().any(rows) {
        all.retain(rows);
    }
    let path = (!all.is_empty()).then(|| all[random.below(all.len() as u64) as usize].clone())?;
    let length = fs::metadata(&path).unwrap().len();
    let file = fs::OpenOptions::new().write(true).open(&path).unwrap();
    file.set_len(random.below(length)).unwrap();
    Some(path)
}

#[test]
fn a_run_survives_its_storage() {
    let folder = experiment("\"best\": BestSingle()", "validation: \"choose.txt\",");
    let here = folder.path();
    let start = Instant::now();
    done(here, &["run", "small.ron", "--out", "calm/run"]);
    let duration = start.elapsed();
    let calm = contents(&here.join("calm/run"));
    for part in [
        "references",
        "generations",
        "scores",
        "validation",
        "retention",
    ] {
        assert!(calm.keys().any(|n| n.starts_with(part)), "{part}");
    }
    let run = here.join("storm/run");
    let command = ["run", "small.ron", "--out", "storm/run"];
    let mut random = Random(1);
    let (mut kills, mut full, mut cuts, mut blocked) = (0, 0, 0, 0);
    for round in 0..24 {
        // Now and then everything is lost, so that each stage is met by each kind of fault.
        if round % 8 == 7 {
            fs::remove_dir_all(&run).unwrap();
        }
        for _ in 0..3 {
            // More often early, when responses are made.
            let share = random.below(1000) as f64 / 1000.0;
            killed(here, duration.mul_f64(share * share), &command);
            kills += 1;
            rows_are_whole(&calm, &run);
        }
        for _ in 0..2 {
            clear(&on_full_disk(here, random.below(50), &command));
            full += 1;
            rows_are_whole(&calm, &run);
        }
        // A folder stands where a file goes, or a file where a folder goes: as good as read-only, for root, too.
        let names = [
            "manifest.json",
            "tables",
            ".lock",
            "plots",
            "report.html",
            "scores",
        ];
        let blocked_path = run.join(names[random.below(6) as usize]);
        let aside = here.join("aside");
        let there = blocked_path.exists();
        if there {
            fs::rename(&blocked_path, &aside).unwrap();
        }
        let folders = ["tables", "plots", "scores"].map(|part| run.join(part));
        match folders.contains(&blocked_path) {
            true => fs::write(&blocked_path, b"in the way").unwrap(),
            false => fs::create_dir_all(blocked_path.join("in the way")).unwrap(),
        }
        let output = mope(here, &command).output().unwrap();
        clear(&output);
        blocked += 1;
        match blocked_path.is_dir() {
            true => fs::remove_dir_all(&blocked_path).unwrap(),
            false => fs::remove_file(&blocked_path).unwrap(),
        }
        if there {
            fs::rename(&aside, &blocked_path).unwrap();
        }
        rows_are_whole(&calm, &run);
        // Several files are cut before the next run mends them.
        for _ in 0..3 {
            cuts += usize::from(cut(&mut random, &run).is_some());
        }
        let share = random.below(1000) as f64 / 1000.0;
        killed(here, duration.mul_f64(share), &command);
        kills += 1;
        if round % 6 == 5 {
            done(here, &command);
            let mut after = contents(&run);
            after.retain(|name, _| !name.starts_with("superseded/"));
            same(&calm, &after);
        } else {
            // What is still cut would not be whole.
            for path in files(&run) {
                let name = path.strip_prefix(&run).unwrap().to_str().unwrap();
                if calm
                    .get(name)
                    .is_some_and(|bytes| *bytes != fs::read(&path).unwrap())
                {
                    fs::remove_file(path).unwrap();
                }
            }
        }
    }
    let faults = kills + full + cuts + blocked;
    assert!(
        faults >= 200 && cuts >= 40,
        "{kills} kills, {full} full, {cuts} cut, {blocked} blocked"
    );
    done(here, &command);
    let mut after = contents(&run);
    after.retain(|name, _| !name.starts_with("superseded/"));
    same(&calm, &after);
}

#[test]
fn shards_survive_their_storage() {
    let folder = experiment("\"fixed\": Fixed()", "");
    let here = folder.path();
    let start = Instant::now();
    done(here, &["run", "small.ron", "--out", "calm/run"]);
    let duration = start.elapsed();
    let calm = contents(&here.join("calm/run"));
    let run = here.join("storm/run");
    let mut random = Random(2);
    for part in ["1/2", "2/2"] {
        let command = ["run", "small.ron", "--out", "storm/run", "--shard", part];
        for _ in 0..6 {
            let share = random.below(1000) as f64 / 1000.0;
            killed(here, duration.mul_f64(share), &command);
            let output = on_full_disk(here, random.below(20), &command);
            if !output.status.success() {
                clear(&output);
            }
            rows_are_whole(&calm, &run);
        }
        done(here, &command);
    }
    // What a kill leaves where the shards tell of their time.
    fs::write(run.join("sessions/.1of2.1.json.part"), b"{\"star").unwrap();
    done(here, &["run", "small.ron", "--out", "storm/run"]);
    same(&calm, &contents(&run));
}

/// Keys of whole lines; none twice.
fn verdicts(path: &Path) -> BTreeMap<String, String> {
    let bytes = fs::read(path).unwrap_or_default();
    let text = String::from_utf8(bytes).unwrap();
    let end = text.rfind('\n').map_or(0, |i| i + 1);
    let mut all = BTreeMap::new();
    for line in text[..end].lines() {
        let record: Value = serde_json::from_str(line).unwrap();
        let key = record["key"].as_str().unwrap().to_string();
        assert!(all.insert(key, line.into()).is_none(), "twice: {line}");
    }
    all
}

#[test]
fn verdicts_survive_their_storage() {
    let folder = experiment("\"fixed\": Fixed()", "");
    let here = folder.path();
    done(here, &["run", "small.ron", "--out", "calm/run"]);
    done(here, &["run", "small.ron", "--out", "storm/run"]);
    // The tiny model with room for a question.
    fs::create_dir(here.join("judge")).unwrap();
    for path in files(&fixture("llama")) {
        let mut bytes = fs::read(&path).unwrap();
        if path.ends_with("config.json") {
            let text = String::from_utf8(bytes).unwrap();
            let longer = text.replace("_embeddings\": 128", "_embeddings\": 512");
            assert_ne!(text, longer);
            bytes = longer.into_bytes();
        }
        fs::write(here.join("judge").join(path.file_name().unwrap()), bytes).unwrap();
    }
    let text = "(judges: {\"small\": Local(\"judge\")}, criteria: {\"any\": \"Which is better?\"})";
    fs::write(here.join("judges.ron"), text).unwrap();
    let start = Instant::now();
    done(here, &["judge", "calm/run", "judges.ron"]);
    let duration = start.elapsed();
    let kept = "judgements/small.jsonl";
    let calm = verdicts(&here.join("calm/run").join(kept));
    assert!(calm.len() > 8, "{}", calm.len());
    let path = here.join("storm/run").join(kept);
    let command = ["judge", "storm/run", "judges.ron"];
    let mut random = Random(3);
    let (mut kills, mut full, mut cuts) = (0, 0, 0);
    // Whatever was whole stays so.
    let grown = |before: &BTreeMap<String, String>, after: &BTreeMap<String, String>| {
        let lost = before
            .iter()
            .find(|(key, line)| after.get(*key) != Some(line));
        assert_eq!(lost, None);
        assert!(after.iter().all(|(key, line)| calm.get(key) == Some(line)));
    };
    for round in 0..16 {
        if round % 4 == 3 {
            fs::remove_dir_all(here.join("storm/run/judgements")).unwrap();
        }
        for _ in 0..2 {
            let before = verdicts(&path);
            let share = random.below(1000) as f64 / 1000.0;
            killed(here, duration.mul_f64(share), &command);
            kills += 1;
            grown(&before, &verdicts(&path));
        }
        for _ in 0..2 {
            let before = verdicts(&path);
            clear(&on_full_disk(here, random.below(12), &command));
            full += 1;
            grown(&before, &verdicts(&path));
        }
        // The last line is cut, as a power cut does.
        let bytes = fs::read(&path).unwrap_or_default();
        if !bytes.is_empty() {
            let last = bytes[..bytes.len() - 1].iter().rposition(|b| *b == b'\n');
            let from = last.map_or(0, |i| i + 1) as u64;
            let to = from + random.below(bytes.len() as u64 - from);
            let file = fs::OpenOptions::new().write(true).open(&path).unwrap();
            file.set_len(to).unwrap();
            cuts += 1;
        }
    }
    assert!(
        kills + full + cuts >= 70 && cuts >= 12,
        "{kills} kills, {full} full, {cuts} cut"
    );
    done(here, &command);
    assert_eq!(calm, verdicts(&path));
    let table = |run: &str| fs::read(here.join(run).join("judgements/verdicts.csv")).unwrap();
    assert_eq!(table("calm/run"), table("storm/run"));
    // Asking again changes nothing.
    let before = fs::read(&path).unwrap();
    done(here, &command);
    assert_eq!(before, fs::read(&path).unwrap());
}
