//! Run folders that somebody else made or changed: links, rows that are not this run's, what a refused run leaves.
#![allow(clippy::unwrap_used, reason = "tests")]

mod common;

use std::fs;
use std::path::{Path, PathBuf};

use common::{EXPERIMENT, contents, done, experiment, fails, same, stderr, stdout, write};
use eval::rows::{generations, generations_frame};
use eval::table::{parquet, read_parquet};

/// The files of a folder, sorted.
fn files(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).unwrap();
    let mut files: Vec<PathBuf> = entries.map(|e| e.unwrap().path()).collect();
    files.sort();
    files
}

/// The manifest as version 0.1 wrote it: it knows no hashes of rows.
fn forget_hashes(run: &Path) {
    let path = run.join("manifest.json");
    let text = fs::read_to_string(&path).unwrap();
    let from = text.find("  \"rows\": {").unwrap();
    let to = from + text[from..].find("},\n").unwrap() + 3;
    fs::write(path, [&text[..from], &text[to..]].concat()).unwrap();
}

#[cfg(unix)]
#[test]
fn whatever_a_run_writes_replaces_links_and_follows_none() {
    use std::os::unix::fs::symlink;
    let folder = experiment();
    let here = folder.path();
    done(here, &["run", "pico.ron", "--out", "run"]);
    let run = here.join("run");
    let before = contents(&run);
    let mine = here.join("mine");
    fs::write(&mine, "no line end").unwrap();
    let link = |path: &Path| {
        fs::remove_file(path).unwrap();
        symlink(&mine, path).unwrap();
    };
    let mut linked = vec![run.join("report.html")];
    linked.extend(files(&run.join("tables")));
    linked.extend(files(&run.join("plots")));
    linked.iter().for_each(|path| link(path));
    // Names that temporary files had, too.
    for name in [
        ".manifest.json.part",
        ".report.html.part",
        "tables/.ranking.csv.part",
        "plots/.x.part.png",
    ] {
        symlink(&mine, run.join(name)).unwrap();
    }
    for command in [&["report", "run"][..], &["run", "pico.ron", "--out", "run"]] {
        done(here, command);
        assert_eq!(fs::read(&mine).unwrap(), b"no line end");
        same(&before, &contents(&run));
    }
    let is_link = |path: &PathBuf| fs::symlink_metadata(path).unwrap().is_symlink();
    assert_eq!(linked.iter().filter(|p| is_link(p)).count(), 0);
    // What is written in place is refused: locks, folders, verdicts.
    let judges = "(judges: {\"style\": RewardModel(\"none\")}, criteria: {\"any\": \"Which?\"})";
    fs::write(here.join("judges.ron"), judges).unwrap();
    let report = ["report", "run"];
    let judge = ["judge", "run", "judges.ron"];
    fs::create_dir(here.join("elsewhere")).unwrap();
    for (name, target, command) in [
        (".lock", "mine", &report[..]),
        (".lock.1of2", "mine", &report[..]),
        ("tables", "elsewhere", &report[..]),
        ("judgements", "elsewhere", &judge[..]),
        ("judgements/.lock", "mine", &judge[..]),
        ("judgements/style.jsonl", "mine", &judge[..]),
    ] {
        let path = run.join(name);
        let aside = here.join("aside");
        let there = path.exists();
        if there {
            fs::rename(&path, &aside).unwrap();
        }
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        symlink(here.join(target), &path).unwrap();
        let error = fails(here, command, 1);
        assert!(
            error.contains("link") && error.contains(name),
            "{name}: {error}"
        );
        assert_eq!(fs::read(&mine).unwrap(), b"no line end", "{name}");
        assert!(files(&here.join("elsewhere")).is_empty(), "{name}");
        fs::remove_file(&path).unwrap();
        if there {
            fs::rename(&aside, &path).unwrap();
        }
    }
}

#[test]
fn rows_that_changed_are_named_and_made_again() {
    let folder = experiment();
    let here = folder.path();
    done(here, &["run", "pico.ron", "--out", "calm/run"]);
    done(here, &["run", "pico.ron", "--out", "storm/run"]);
    let (calm, run) = (contents(&here.join("calm/run")), here.join("storm/run"));
    let mend = || {
        done(here, &["run", "pico.ron", "--out", "storm/run"]);
        let mut after = contents(&run);
        after.retain(|name, _| !name.starts_with("superseded/"));
        same(&calm, &after);
    };
    for part in ["references", "generations", "scores"] {
        let path = files(&run.join(part)).swap_remove(0);
        let name = path.file_name().unwrap().to_str().unwrap().to_string();
        // A bit of the data, as a bad disk turns it: Parquet has no sums that would tell.
        let mut bytes = fs::read(&path).unwrap();
        bytes[20] ^= 1;
        fs::write(&path, &bytes).unwrap();
        let error = fails(here, &["report", "storm/run"], 1);
        assert!(
            error.contains(&name) && error.contains("has changed since"),
            "{error}"
        );
        mend();
        fs::remove_file(&path).unwrap();
        let error = fails(here, &["report", "storm/run"], 1);
        assert!(
            error.contains(&name) && error.contains("is gone since"),
            "{error}"
        );
        mend();
        let other = run.join(part).join("zz.other.parquet");
        fs::copy(&path, &other).unwrap();
        let error = fails(here, &["report", "storm/run"], 1);
        assert!(
            error.contains("zz.other.parquet is not of this run"),
            "{error}"
        );
        mend();
    }
    // Without hashes a row still comes once, and no more rows than were asked for are read.
    forget_hashes(&run);
    done(here, &["report", "storm/run"]);
    let path = files(&run.join("generations")).swap_remove(0);
    let rows = generations(&path, &read_parquet(&path).unwrap()).unwrap();
    let rewrite = |change: &dyn Fn(&mut Vec<eval::rows::GenerationRow>)| {
        let mut rows = rows.clone();
        change(&mut rows);
        let bytes = parquet(&path, &mut generations_frame(&rows).unwrap()).unwrap();
        fs::write(&path, bytes).unwrap();
        fails(here, &["report", "storm/run"], 1)
    };
    type Change = fn(&mut Vec<eval::rows::GenerationRow>);
    let changes: [(Change, &str); 6] = [
        (|rows| rows[1] = rows[0].clone(), "a row comes twice"),
        (
            |rows| rows[0].identity.strategy = "other".into(),
            "not of this run: strategy 'other'",
        ),
        (
            |rows| rows[0].identity.preference = "x".into(),
            "not of this run",
        ),
        (|rows| rows[0].identity.sample = 2, "sample 2"),
        (|rows| rows[0].weights.truncate(1), "weights has 1 values"),
        (
            |rows| {
                let row = rows[0].clone();
                rows.resize(10_000, row);
            },
            "10000 rows, where at most",
        ),
    ];
    for (change, message) in changes {
        let error = rewrite(&change);
        assert!(error.contains(message), "{message}: {error}");
        // A run takes none of them.
        mend();
        forget_hashes(&run);
    }
}

#[test]
fn a_neighbours_rows_are_those_that_were_asked_for_or_none() {
    let folder = experiment();
    let here = folder.path();
    done(here, &["run", "pico.ron", "--out", "calm/run"]);
    let calm = contents(&here.join("calm/run"));
    done(here, &["run", "pico.ron", "--out", "many/first"]);
    let first = here.join("many/first");
    forget_hashes(&first);
    for path in files(&first.join("generations")) {
        let mut rows = generations(&path, &read_parquet(&path).unwrap()).unwrap();
        rows[0].response = "Other words under the right name.".into();
        let bytes = parquet(&path, &mut generations_frame(&rows).unwrap()).unwrap();
        fs::write(&path, bytes).unwrap();
    }
    for path in files(&first.join("references")) {
        let mut rows = generations(&path, &read_parquet(&path).unwrap()).unwrap();
        rows.reverse();
        let bytes = parquet(&path, &mut generations_frame(&rows).unwrap()).unwrap();
        fs::write(&path, bytes).unwrap();
    }
    done(here, &["run", "pico.ron", "--out", "many/second"]);
    same(&calm, &contents(&here.join("many/second")));
}

#[test]
fn what_a_run_refuses_check_refuses_and_no_folder_is_left() {
    let folder = experiment();
    let here = folder.path();
    fs::write(
        here.join("asked.jsonl"),
        "{\"question\": \"Why?\", \"options\": [\"a\"], \"answer\": 1}",
    )
    .unwrap();
    fs::write(here.join("twice.txt"), "Why?\n").unwrap();
    let changed = |from: &str, to: &str| {
        assert!(EXPERIMENT.contains(from), "{from}");
        EXPERIMENT.replacen(from, to, 1)
    };
    let long = format!("\"{}\": Base(),", "s".repeat(101));
    for (text, message) in [
        (
            changed("\"MODEL\"", "\"smollm2-135m-instruc\""),
            "did you mean 'smollm2-135m-instruct'",
        ),
        (
            changed("Full(\"OTHER\")", "Full(\"nowhere\")"),
            "expert 'concise': model 'nowhere'",
        ),
        (
            changed("Adapter(\"PLAIN\")", "Adapter(\"nowhere\")"),
            "expert 'informative'",
        ),
        (
            changed("seed: 3,", "seed: 3, device: Cuda(0), format: Q8,"),
            "Cuda",
        ),
        (
            changed("seed: 3,", "seed: 3, device: BurnFlex, format: Q4,"),
            "needs device Cpu",
        ),
        (
            changed("seed: 3,", "seed: 3, reference_point: NaN,"),
            "wrong.ron:3:31: `NaN` is no number",
        ),
        (
            changed("seed: 3,", "seed: 3, reference_point: -1e999,"),
            "`-1e999` is no number",
        ),
        (
            changed("temperature: 0.9", "temperature: 1e-40"),
            "its inverse is finite",
        ),
        (
            changed(
                "\"informative\": 2.0, \"friendly\": 1.0",
                "\"informative\": 1e308, \"friendly\": 1e308",
            ),
            "sum to infinity",
        ),
        (
            changed(
                "normaliser: (mean: 0.196, sd: 0.228)",
                "normaliser: (mean: 0.0, sd: 0.0)",
            ),
            "normaliser: sd",
        ),
        (
            changed(
                "seed: 3,",
                "seed: 3, retention: (questions: \"asked.jsonl\"),",
            ),
            "asked.jsonl:1: answer",
        ),
        (
            changed("seed: 3,", "seed: 3, training: [\"twice.txt\"],"),
            "twice.txt: prompt '1' is in the compared set",
        ),
        (changed("\"base\": Base(),", &long), "101 bytes"),
    ] {
        write(here, "wrong.ron", &text);
        let checked = fails(here, &["check", "wrong.ron"], 2);
        assert!(checked.contains(message), "{message}: {checked}");
        let refused = fails(here, &["run", "wrong.ron", "--out", "out"], 2);
        assert!(refused.contains(message), "{message}: {refused}");
        assert!(!here.join("out").exists(), "{message}");
    }
}

#[test]
fn another_experiments_folder_is_taken_when_asked_for() {
    let folder = experiment();
    let here = folder.path();
    done(here, &["run", "pico.ron", "--out", "run"]);
    let before = contents(&here.join("run"));
    write(
        here,
        "other.ron",
        &EXPERIMENT.replacen("name: \"pico\"", "name: \"other\"", 1),
    );
    for rest in [&[][..], &["--shard", "1/2"]] {
        let command = [&["run", "other.ron", "--out", "run"], rest].concat();
        let error = fails(here, &command, 2);
        assert!(
            error.contains("experiment 'pico', not 'other'") && error.contains("--replace"),
            "{error}"
        );
        same(&before, &contents(&here.join("run")));
    }
    done(here, &["run", "other.ron", "--out", "run", "--replace"]);
    // The same experiment needs no word for it.
    done(here, &["run", "other.ron", "--out", "run"]);
}

#[test]
fn settings_that_read_alike_make_folders_of_their_own() {
    let folder = experiment();
    let here = folder.path();
    let set = "preferences.both.text=\"Be brief!\",\"Be brief?\"";
    let command = ["run", "pico.ron", "--set", set, "--set", "samples=1"];
    done(here, &command);
    let runs = files(&here.join("runs/pico"));
    let texts: Vec<String> = runs
        .iter()
        .map(|run| fs::read_to_string(run.join("manifest.json")).unwrap())
        .map(|text| {
            text.lines()
                .find(|l| l.contains("Be brief"))
                .unwrap()
                .trim()
                .to_string()
        })
        .collect();
    assert_eq!(texts.len(), 2, "{runs:?}");
    assert_ne!(texts[0], texts[1]);
    assert!(runs.iter().all(|run| !run.join("superseded").exists()));
}

#[test]
fn prompts_come_from_stdin_and_completions_for_every_shell() {
    use std::io::Write;
    use std::process::Stdio;
    let folder = experiment();
    let here = folder.path();
    let model = common::fixture("llama");
    let generate = [
        "generate",
        "--model",
        model.to_str().unwrap(),
        "--max-new-tokens",
        "4",
        "--prompt",
    ];
    let asked = |prompt: &str, stdin: &str| {
        let mut command = common::mope(here, &[&generate[..], &[prompt]].concat());
        let command = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        child
            .stdin
            .take()
            .unwrap()
            .write_all(stdin.as_bytes())
            .unwrap();
        child.wait_with_output().unwrap()
    };
    let given = stdout(&asked("Why?", ""));
    for stdin in ["Why?", "Why?\n", "Why?\r\n", "\u{feff}Why?\n"] {
        assert_eq!(stdout(&asked("-", stdin)), given, "{stdin:?}");
    }
    let empty = asked("-", "\n");
    assert_eq!(empty.status.code(), Some(2));
    assert!(stderr(&empty).contains("the prompt is empty"));
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let script = stdout(&done(here, &["completions", shell]));
        assert!(
            script.contains("replace") && script.contains("tokenize"),
            "{shell}"
        );
    }
    fails_usage(here, &["completions", "cmd"]);
    // Colours where they are forced, and none where they are unwelcome.
    let coloured = |variables: &[(&str, &str)]| {
        let mut command =
            common::mope(here, &[&generate[..], &["Why?", "--show-weights"]].concat());
        command.env_remove("NO_COLOR").env_remove("CLICOLOR_FORCE");
        let output = command.envs(variables.iter().copied()).output().unwrap();
        stdout(&output).contains('\x1b')
    };
    assert!(coloured(&[("CLICOLOR_FORCE", "1")]));
    assert!(!coloured(&[]) && !coloured(&[("CLICOLOR_FORCE", "1"), ("NO_COLOR", "1")]));
    assert!(coloured(&[("CLICOLOR_FORCE", "1"), ("NO_COLOR", "")]));
}

/// A mistake that the parser of the command line finds.
fn fails_usage(folder: &Path, arguments: &[&str]) {
    let output = common::mope(folder, arguments).output().unwrap();
    assert_eq!(output.status.code(), Some(2), "{}", stderr(&output));
}
