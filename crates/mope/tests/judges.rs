//! Judges behind a server that fails in every way, killed in the middle: no verdict is lost, none comes twice.
#![allow(clippy::unwrap_used, reason = "tests")]

mod common;

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use common::{done, experiment, fails, mope, stderr, stdout};
use serde_json::{Value, json};

const KEY: &str = "sk-never-to-be-seen";

/// A server on loopback that prefers the longer response. With faults, it answers every third request.
struct Server {
    url: String,
    faults: Arc<AtomicUsize>,
    answers: Arc<AtomicUsize>,
}

fn serve(faulty: bool) -> Server {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}/v1", listener.local_addr().unwrap());
    let (faults, answers) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let counters = (faults.clone(), answers.clone());
    std::thread::spawn(move || {
        let mut requests = 0;
        for stream in listener.incoming() {
            requests += 1;
            let (faults, answers) = &counters;
            let fault =
                (faulty && requests % 3 != 0).then(|| faults.fetch_add(1, Ordering::SeqCst) % 24);
            if fault.is_none() {
                answers.fetch_add(1, Ordering::SeqCst);
            }
            // A client that was killed may be gone.
            drop(stream.and_then(|stream| answer(stream, fault)));
        }
    });
    Server {
        url,
        faults,
        answers,
    }
}

fn answer(mut stream: TcpStream, fault: Option<usize>) -> std::io::Result<()> {
    let mut reader = BufReader::new(stream.try_clone()?);
    let (mut length, mut authorization) = (0, String::new());
    loop {
        let mut line = String::new();
        reader.read_line(&mut line)?;
        let lower = line.to_lowercase();
        if let Some(value) = lower.strip_prefix("content-length:") {
            length = value.trim().parse().unwrap_or(0);
        }
        if lower.starts_with("authorization:") {
            authorization = line.trim().to_string();
        }
        if line.trim().is_empty() {
            break;
        }
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body)?;
    let body: Value = serde_json::from_slice(&body)?;
    let question = body["messages"][0]["content"].as_str().unwrap_or_default();
    let part = |from: &str, to: &str| question.split(from).nth(1).and_then(|q| q.split(to).next());
    let first = part("[Response A]", "[Response B]").map_or(0, str::len);
    let second = part("[Response B]", "Answer with one").map_or(0, str::len);
    let letter = if first >= second { "A" } else { "B" };
    let good = json!({"choices": [{"message": {"content": format!("{letter}. You sent {authorization}")}}]}).to_string();
    let (status, more, text) = match fault {
        None => ("200 OK", "", good),
        // Slower than the client waits.
        Some(0) => {
            std::thread::sleep(Duration::from_millis(400));
            return Ok(());
        }
        Some(n) if n % 6 == 1 => ("429 Too Many Requests", "retry-after: 0\r\n", "{}".into()),
        Some(n) if n % 6 == 2 => ("500 Internal Server Error", "", authorization),
        Some(n) if n % 6 == 3 => ("200 OK", "", good[..good.len() / 2].to_string()),
        Some(n) if n % 6 == 4 => ("200 OK", "", json!({"error": authorization}).to_string()),
        // The connection breaks in the middle of the body.
        Some(n) if n % 6 == 5 => {
            let head = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n", good.len());
            return stream.write_all(format!("{head}{}", &good[..10]).as_bytes());
        }
        Some(_) => return Ok(()),
    };
    let head = format!(
        "HTTP/1.1 {status}\r\n{more}content-length: {}\r\nconnection: close\r\n\r\n",
        text.len()
    );
    stream.write_all(format!("{head}{text}").as_bytes())
}

fn judges(here: &Path, url: &str) {
    let text = format!(
        "(judges: {{\"gpt\": Endpoint(url: \"{url}\", model: \"m\", key_variable: \"JUDGE_KEY\", timeout: 0.25, \
         backoff: 0.001)}}, criteria: {{\"length\": \"Which response is longer? ({{preference}})\"}})"
    );
    std::fs::write(here.join("judges.ron"), text).unwrap();
}

fn judge(here: &Path, run: &str) -> Command {
    let mut command = mope(here, &["--json", "judge", run, "judges.ron"]);
    command.env("JUDGE_KEY", KEY);
    for proxy in ["HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"] {
        command.env_remove(proxy);
    }
    command
}

/// Verdict and raw reply by key; every line is whole and its key is there once.
fn verdicts(run: &Path) -> BTreeMap<String, (String, String)> {
    let text = std::fs::read_to_string(run.join("judgements/gpt.jsonl")).unwrap();
    let mut all = BTreeMap::new();
    for line in text.lines() {
        let record: Value = serde_json::from_str(line).unwrap();
        let field = |name: &str| record[name].as_str().unwrap().to_string();
        let before = all.insert(field("key"), (field("verdict"), field("raw")));
        assert!(before.is_none(), "twice: {line}");
    }
    all
}

/// A judge that prefers the longer response, asked "which is longer?" of those who wish for much and of those who wish
/// for little.
#[test]
fn directions_are_asked_where_they_are_stated_and_are_signed() {
    let folder = experiment();
    let here = folder.path();
    done(here, &["run", "pico.ron"]);
    let server = serve(false);
    let text = format!(
        "(judges: {{\"gpt\": Endpoint(url: \"{}\", model: \"m\", key_variable: \"JUDGE_KEY\")}}, \
         directions: {{\"informative\": \"Which response is longer?\"}})",
        server.url
    );
    std::fs::write(here.join("judges.ron"), text).unwrap();
    let output = judge(here, "runs/pico").output().unwrap();
    assert!(output.status.success(), "{}", stderr(&output));
    let printed: Value = serde_json::from_str(&stdout(&output)).unwrap();
    let rows = printed["verdicts"].as_array().unwrap();
    let rate = |criterion: &str, strategy: &str| {
        let row = rows
            .iter()
            .find(|r| r["criterion"] == criterion && r["strategy"] == strategy);
        let row = row.unwrap_or_else(|| panic!("{criterion} {strategy}"));
        (
            row["win_rate"].as_f64().unwrap(),
            row["pairs"].as_u64().unwrap(),
        )
    };
    // Six responses for each of the two preferences.
    let (much, pairs) = rate("informative", "uniform");
    assert_eq!(pairs, 6);
    let (little, pairs) = rate("concise", "uniform");
    assert_eq!(pairs, 6);
    let (together, pairs) = rate("together", "uniform");
    assert_eq!(pairs, 12);
    assert!((together - 0.5 * (much + little)).abs() < 1e-9);
    let text = std::fs::read_to_string(here.join("runs/pico/judgements/gpt.jsonl")).unwrap();
    let mut lead = [0.0, 0.0];
    for line in text.lines() {
        let record: Value = serde_json::from_str(line).unwrap();
        let ours = usize::from(record["strategies"][1] == "uniform");
        if record["strategies"][ours] == "uniform" {
            let won = record["verdict"] == ["First", "Second"][ours];
            let wish = usize::from(record["criterion"] == "concise");
            lead[wish] += if won { 0.5 } else { -0.5 };
        }
    }
    // More often the longer one is better for one wish and worse for the other.
    assert!(
        (much - 0.5) * lead[0] >= 0.0 && (little - 0.5) * lead[1] <= 0.0,
        "{lead:?}"
    );
    // A direction is no criterion, and must be one of the run's.
    for (file, expected) in [
        ("criteria: {\"concise\": \"Which?\"}", "under directions"),
        ("directions: {\"funny\": \"Which?\"}", "funny"),
        (
            "prompts: 2",
            "at least one is needed, or directions, or a protocol",
        ),
    ] {
        let text = format!("(judges: {{\"a\": RewardModel(\"x\")}}, {file})");
        std::fs::write(here.join("wrong.ron"), text).unwrap();
        let error = fails(here, &["judge", "runs/pico", "wrong.ron"], 2);
        assert!(error.contains(expected), "{error}");
    }
}

#[test]
fn two_hundred_faults_and_kills_lose_no_verdict() {
    let folder = experiment();
    let here = folder.path();
    done(here, &["run", "pico.ron", "--out", "one/calm"]);
    done(here, &["run", "pico.ron", "--out", "two/storm"]);
    let calm = serve(false);
    judges(here, &calm.url);
    let output = judge(here, "one/calm").output().unwrap();
    assert!(output.status.success(), "{}", stderr(&output));
    let printed: Value = serde_json::from_str(&stdout(&output)).unwrap();
    let rows = printed["verdicts"].as_array().unwrap();
    assert_eq!((rows.len(), rows[0]["pairs"].as_u64()), (5, Some(12)));
    // Its utility is another matter than length.
    let agreement = &printed["agreement"][0];
    assert_eq!(
        (&agreement["judge"], &agreement["other"]),
        (&"utility".into(), &"gpt".into())
    );

    let storm = serve(true);
    judges(here, &storm.url);
    // The address is part of what a verdict follows from, so keys differ; verdicts do not.
    for wait in [60, 120, 200, 350] {
        let mut child = judge(here, "two/storm");
        let mut child = child
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        std::thread::sleep(Duration::from_millis(wait));
        child.kill().unwrap();
        child.wait().unwrap();
    }
    let output = judge(here, "two/storm").output().unwrap();
    assert!(output.status.success(), "{}", stderr(&output));
    let faults = storm.faults.load(Ordering::SeqCst);
    assert!(faults >= 200, "{faults}");
    let (expected, got) = (
        verdicts(&here.join("one/calm")),
        verdicts(&here.join("two/storm")),
    );
    assert_eq!(expected.len(), got.len());
    // A reply may be on its way when the process is killed; nothing else is asked twice.
    let asked = storm.answers.load(Ordering::SeqCst);
    assert!(
        asked >= got.len() && asked <= got.len() + 4,
        "{asked} {}",
        got.len()
    );
    let table = |run: &str| std::fs::read(here.join(run).join("judgements/verdicts.csv")).unwrap();
    assert_eq!(table("one/calm"), table("two/storm"));
    // Asking again asks nobody.
    let before = std::fs::read(here.join("two/storm/judgements/gpt.jsonl")).unwrap();
    assert!(judge(here, "two/storm").output().unwrap().status.success());
    assert_eq!(storm.answers.load(Ordering::SeqCst), asked);
    assert_eq!(
        before,
        std::fs::read(here.join("two/storm/judgements/gpt.jsonl")).unwrap()
    );
    assert_eq!(calm.answers.load(Ordering::SeqCst), expected.len());

    for entry in std::fs::read_dir(here.join("two/storm/judgements")).unwrap() {
        let bytes = std::fs::read(entry.unwrap().path()).unwrap();
        assert!(!bytes.windows(KEY.len()).any(|w| w == KEY.as_bytes()));
    }
    assert!(!stderr(&output).contains(KEY));
}

#[test]
fn a_server_that_stays_down_and_wrong_files_end_in_one_clear_error() {
    let folder = experiment();
    let here = folder.path();
    done(here, &["run", "pico.ron", "--out", "run"]);
    let closed = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}/v1", closed.local_addr().unwrap());
    drop(closed);
    judges(here, &url);
    let output = judge(here, "run").output().unwrap();
    let error = stderr(&output);
    assert_eq!(output.status.code(), Some(1));
    assert!(
        error.contains(&url) && error.contains("goes on from them"),
        "{error}"
    );
    assert_eq!(error.matches("error: ").count(), 1, "{error}");
    let output = judge(here, "run").env_remove("JUDGE_KEY").output().unwrap();
    assert!(stderr(&output).contains("JUDGE_KEY"), "{}", stderr(&output));
    let write = |text: &str| std::fs::write(here.join("wrong.ron"), text).unwrap();
    for (text, message) in [
        (
            "(judges: {}, criteria: {}, aginst: \"base\")",
            "did you mean 'against'",
        ),
        (
            "(judges: {\"a\": Local(\"x\")}, criteria: {\"help\": \"which helps?\"}, against: \"bse\")",
            "did you mean 'base'",
        ),
        (
            "(judges: {\"a/b\": Local(\"x\")}, criteria: {})",
            "wrong.ron: judge 'a/b'",
        ),
    ] {
        write(text);
        let error = fails(here, &["judge", "run", "wrong.ron"], 2);
        assert!(error.contains(message), "{error}");
    }
}

#[test]
fn local_models_judge_too() {
    let folder = experiment();
    let here = folder.path();
    done(here, &["run", "pico.ron", "--out", "run"]);
    // The tiny model with room for a question.
    pico::copy_to("llama", &here.join("judge"));
    let config = here.join("judge/config.json");
    let text = std::fs::read_to_string(&config).unwrap();
    let longer = text.replace(
        "\"max_position_embeddings\": 128",
        "\"max_position_embeddings\": 512",
    );
    assert_ne!(text, longer);
    std::fs::write(&config, longer).unwrap();
    let text = "(judges: {\"small\": Local(\"judge\")}, criteria: {\"any\": \"Which is better?\"}, \
                strategies: [\"uniform\"], prompts: 1)";
    std::fs::write(here.join("judges.ron"), text).unwrap();
    let output = done(here, &["--json", "judge", "run", "judges.ron"]);
    let printed: Value = serde_json::from_str(&stdout(&output)).unwrap();
    assert_eq!(printed["verdicts"][0]["pairs"], 4);
    let text = std::fs::read_to_string(here.join("run/judgements/small.jsonl")).unwrap();
    assert!(
        text.lines().count() <= 8 && text.contains("log p: A -"),
        "{text}"
    );
}
