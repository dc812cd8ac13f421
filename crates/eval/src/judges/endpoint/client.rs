//! The client of a judge behind a server.

use std::hash::{BuildHasher, RandomState};
use std::io::Read;
use std::time::{Duration, Instant, SystemTime};

use serde_json::{Value, json};

use super::{EndpointSpec, retry_after};
use crate::judges::{Judge, Question, Reply, Verdict};
use crate::{Error, Result};

/// Replies in a row that are no chat completions before the server is taken for something else (ours).
const STRANGE: u32 = 3;

/// Bytes of a reply that are read at most: a verdict is a letter and little around it (ours).
const LONGEST: u64 = 1 << 20;

/// Bytes of a reply that are kept with its verdict (ours).
const KEPT: usize = 16 << 10;

/// A model behind a server.
pub struct Endpoint {
    spec: EndpointSpec,
    key: Option<String>,
    agent: ureq::Agent,
    asked: Option<Instant>,
    waits: u64,
    jitter: RandomState,
    /// Replies in a row that were no chat completions.
    strange: u32,
}

impl std::fmt::Debug for Endpoint {
    /// Without the key.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Endpoint")
            .field("spec", &self.spec)
            .finish_non_exhaustive()
    }
}

/// Why an attempt failed.
enum Failure {
    /// The server is busy or out of reach; with seconds that it asks to wait.
    Passing(String, Option<f64>),
    /// It replied, but with no chat completion.
    Strange(String),
    /// It refuses this question, which another attempt would not change.
    Refused(String),
    /// It refuses how it is asked, and can be asked in another way.
    Dialect,
    /// It refuses all questions.
    Lasting(String),
}

/// The key of a variable.
///
/// # Errors
/// [`Error::Key`] for one that is not set, or that no key can be.
pub(crate) fn key(variable: &str) -> Result<String> {
    let fail = |problem: &'static str| Error::Key {
        variable: variable.into(),
        problem,
    };
    let key = std::env::var_os(variable).ok_or_else(|| fail("is not set"))?;
    let key = key.to_str().map(str::trim).unwrap_or_default();
    if key.is_empty() || !key.chars().all(|c| c.is_ascii_graphic()) {
        return Err(fail("is empty or holds what no key consists of"));
    }
    Ok(key.into())
}

/// What a message says: its text, or the texts of its parts, without thoughts and refusals. `None` where it says
/// nothing.
fn content(value: &Value) -> Option<String> {
    let part = |part: &Value| {
        let kind = part.get("type").and_then(Value::as_str).unwrap_or("text");
        let text = part.as_str().or_else(|| part.get("text")?.as_str());
        text.filter(|_| matches!(kind, "text" | "output_text"))
            .map(String::from)
    };
    match value {
        Value::String(text) => Some(text.clone()),
        Value::Array(parts) => {
            let texts: Vec<String> = parts.iter().filter_map(part).collect();
            (!texts.is_empty()).then(|| texts.concat())
        }
        _ => None,
    }
}

/// The beginning of what a server said.
fn beginning(text: &str) -> String {
    text.chars().take(200).collect()
}

/// As much of a reply as is kept.
fn kept(text: &str) -> String {
    if text.len() <= KEPT {
        return text.into();
    }
    let cut = text.floor_char_boundary(KEPT);
    format!("{}… ({} bytes)", &text[..cut], text.len())
}

impl Endpoint {
    /// Ready to ask.
    ///
    /// # Errors
    /// [`Error::Key`] for a variable that is not set, and those of [`EndpointSpec::validate`].
    pub fn new(spec: &EndpointSpec) -> Result<Self> {
        spec.validate()?;
        let config = ureq::Agent::config_builder()
            .timeout_global(Some(Duration::from_secs_f64(spec.timeout)))
            .http_status_as_error(false)
            // A question that is sent on would lose its body, or its key would go elsewhere.
            .max_redirects(0);
        Ok(Self {
            agent: config.build().into(),
            key: spec.key_variable.as_deref().map(key).transpose()?,
            spec: spec.clone(),
            asked: None,
            waits: 0,
            jitter: RandomState::new(),
            strange: 0,
        })
    }

    /// A text without the key: a server may repeat what it was sent.
    fn hide(&self, text: &str) -> String {
        let Some(key) = &self.key else {
            return text.into();
        };
        let escaped = Value::from(key.as_str()).to_string();
        let escaped = escaped.trim_matches('"');
        text.replace(key, "…")
            .replace(escaped, "…")
            .replace(&escaped.replace('/', "\\/"), "…")
    }

    /// The request for a question.
    fn body(&self, question: &str) -> Value {
        let mut body = json!({
            "model": self.spec.model,
            "messages": [{"role": "user", "content": question}],
        });
        if !self.spec.no_temperature {
            body["temperature"] = json!(0);
        }
        let length = match self.spec.max_completion_tokens {
            true => "max_completion_tokens",
            false => "max_tokens",
        };
        body[length] = json!(self.spec.max_tokens);
        body
    }

    /// Changes how this server is asked, where it refused just that; `false` where nothing is left to change.
    fn adapt(&mut self, refusal: &str) -> bool {
        let names = |parameter: &str| refusal.contains(parameter);
        if names("max_completion_tokens") && !self.spec.max_completion_tokens {
            self.spec.max_completion_tokens = true;
            return true;
        }
        if names("temperature") && !self.spec.no_temperature {
            self.spec.no_temperature = true;
            return true;
        }
        false
    }

    /// One request; texts come back without the key.
    fn attempt(&mut self, question: &str) -> Result<Reply, Failure> {
        let url = format!("{}/chat/completions", self.spec.url.trim_end_matches('/'));
        let body = self.body(question);
        let mut request = self
            .agent
            .post(&url)
            .header("content-type", "application/json");
        if let Some(key) = &self.key {
            request = request.header("authorization", format!("Bearer {key}"));
        }
        let passing = |e: ureq::Error| Failure::Passing(self.hide(&e.to_string()), None);
        let mut response = request.send(body.to_string().as_bytes()).map_err(passing)?;
        let status = response.status().as_u16();
        let header = response.headers().get("retry-after");
        let wait =
            header.and_then(|value| retry_after::seconds(value.to_str().ok()?, SystemTime::now()));
        let mut bytes = Vec::new();
        let reader = response.body_mut().as_reader();
        let read = reader.take(LONGEST + 1).read_to_end(&mut bytes);
        read.map_err(|e| Failure::Passing(self.hide(&e.to_string()), None))?;
        if bytes.len() as u64 > LONGEST {
            let text = self.hide(&String::from_utf8_lossy(&bytes));
            return Err(Failure::Strange(kept(&text)));
        }
        let body = String::from_utf8_lossy(&bytes);
        let text = kept(&self.hide(&body));
        let message = format!("status {status}: {}", beginning(&text));
        match (status, wait) {
            (200, _) => {}
            (408 | 409 | 425 | 429 | 500.., Some(wait)) if wait > self.spec.longest_wait => {
                return Err(Failure::Lasting(format!(
                    "the server asks to wait {wait:.0} s, longer than longest_wait; {message}"
                )));
            }
            (408 | 409 | 425 | 429 | 500.., _) => return Err(Failure::Passing(message, wait)),
            (400 | 422, _) if self.adapt(&text) => return Err(Failure::Dialect),
            (400 | 413 | 422, _) => return Err(Failure::Refused(text)),
            _ => return Err(Failure::Lasting(message)),
        }
        let document: Option<Value> = serde_json::from_str(&body).ok();
        let reply = document
            .as_ref()
            .and_then(|d| d.pointer("/choices/0/message"));
        match reply.map(|r| r.get("content").and_then(content)) {
            None => Err(Failure::Strange(text)),
            // Models that refuse or think too long have no content; they would again.
            Some(None) => Ok(Reply {
                verdict: Verdict::Unreadable,
                raw: text,
            }),
            Some(Some(content)) => Ok(Reply {
                verdict: Verdict::read(&content),
                raw: kept(&self.hide(&content)),
            }),
        }
    }

    /// Between a half and one and a half of the time that is due, so that many who wait don't come at once.
    fn pause(&mut self, attempt: u32, asked_for: Option<f64>) {
        self.waits += 1;
        let spread = (self.jitter.hash_one(self.waits) >> 40) as f64 / (1u64 << 24) as f64;
        let due = self.spec.backoff * 2f64.powi(attempt.min(64) as i32) * (0.5 + spread);
        let seconds = due
            .min(self.spec.longest_wait)
            .max(asked_for.unwrap_or(0.0));
        std::thread::sleep(Duration::from_secs_f64(seconds));
    }

    /// Waits until `requests_per_minute` allows another request.
    fn keep_the_rate(&mut self) {
        let rate = self.spec.requests_per_minute;
        let gap = rate.map(|r| Duration::from_secs_f64(60.0 / r));
        if let (Some(gap), Some(asked)) = (gap, self.asked) {
            std::thread::sleep(gap.saturating_sub(asked.elapsed()));
        }
        self.asked = Some(Instant::now());
    }

    fn fail(&self, message: impl Into<String>) -> Error {
        Error::Endpoint {
            url: self.spec.url.clone(),
            message: message.into(),
        }
    }
}

impl Judge for Endpoint {
    fn ask(&mut self, question: &Question<'_>) -> Result<Reply> {
        if self.strange >= STRANGE {
            return Err(self.fail(format!(
                "{STRANGE} questions in a row got no chat completion (is this url right, and the model's \
                 context long enough?); they are kept as \"Unreadable\" with what came, and asked again \
                 when their lines are removed"
            )));
        }
        let text = question.text();
        let mut attempt = 0;
        loop {
            self.keep_the_rate();
            let again = attempt + 1 < self.spec.attempts;
            match self.attempt(&text) {
                Ok(reply) => {
                    self.strange = 0;
                    return Ok(reply);
                }
                // As often as there are ways to ask, which is twice.
                Err(Failure::Dialect) => continue,
                Err(Failure::Passing(_, wait)) if again => self.pause(attempt, wait),
                Err(Failure::Strange(_)) if again => self.pause(attempt, None),
                Err(Failure::Strange(raw) | Failure::Refused(raw)) => {
                    self.strange += 1;
                    return Ok(Reply {
                        verdict: Verdict::Unreadable,
                        raw,
                    });
                }
                Err(Failure::Passing(message, _) | Failure::Lasting(message)) => {
                    return Err(self.fail(message));
                }
            }
            attempt += 1;
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[test]
    fn a_message_is_a_text_or_parts() {
        let thought = json!({"type": "thinking", "thinking": [{"type": "text", "text": "B?"}]});
        let text = json!({"type": "text", "text": "A"});
        assert_eq!(content(&json!("A")).as_deref(), Some("A"));
        assert_eq!(content(&json!([thought, text])).as_deref(), Some("A"));
        assert_eq!(content(&json!([text, text])).as_deref(), Some("AA"));
        let reasoning = json!({"type": "reasoning", "text": "B"});
        for silent in [json!(null), json!([]), json!([thought]), json!([reasoning])] {
            assert_eq!(content(&silent), None, "{silent}");
        }
    }

    #[test]
    fn a_server_is_asked_as_it_wants() {
        let spec = serde_json::json!({"url": "http://127.0.0.1:1/v1", "model": "m"});
        let mut endpoint = Endpoint::new(&serde_json::from_value(spec).unwrap()).unwrap();
        let before = endpoint.body("Which?");
        assert_eq!(
            (&before["max_tokens"], &before["temperature"]),
            (&json!(8), &json!(0))
        );
        // What OpenAI's o-series and GPT-5 say.
        assert!(endpoint.adapt(
            "Unsupported parameter: 'max_tokens' is not supported with this model. Use 'max_completion_tokens' instead."
        ));
        assert!(endpoint.adapt(
            "Unsupported value: 'temperature' does not support 0 with this model. Only the default (1) value is supported."
        ));
        let message = json!([{"role": "user", "content": "Which?"}]);
        assert_eq!(
            endpoint.body("Which?"),
            json!({"model": "m", "messages": message, "max_completion_tokens": 8})
        );
        assert!(!endpoint.adapt("temperature and max_completion_tokens"));
    }

    /// A server that says `replies` one after the other; what it was asked.
    fn server(replies: Vec<(u16, Value)>) -> (EndpointSpec, std::sync::mpsc::Receiver<Value>) {
        use std::io::{BufRead, BufReader, Read, Write};
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}/v1", listener.local_addr().unwrap());
        let (sender, asked) = std::sync::mpsc::channel();
        std::thread::spawn(move || {
            for (status, reply) in replies {
                let mut stream = listener.accept().unwrap().0;
                let mut reader = BufReader::new(stream.try_clone().unwrap());
                let (mut line, mut length) = (String::new(), 0);
                while reader.read_line(&mut line).unwrap() > 2 {
                    if let Some(n) = line.to_lowercase().strip_prefix("content-length:") {
                        length = n.trim().parse().unwrap();
                    }
                    line.clear();
                }
                let mut body = vec![0; length];
                reader.read_exact(&mut body).unwrap();
                sender.send(serde_json::from_slice(&body).unwrap()).unwrap();
                let reply = reply.to_string();
                let length = reply.len();
                write!(
                    stream,
                    "HTTP/1.1 {status} X\r\ncontent-length: {length}\r\nconnection: close\r\n\r\n{reply}"
                )
                .unwrap();
            }
        });
        let spec = json!({"url": url, "model": "m", "attempts": 1});
        (serde_json::from_value(spec).unwrap(), asked)
    }

    #[test]
    fn a_reasoning_model_is_asked_again_in_its_way() {
        let refuse = |message: &str| (400, json!({"error": {"message": message}}));
        let parts = json!([{"type": "thinking", "thinking": "B"}, {"type": "text", "text": "A"}]);
        let says = |content: Value| (200, json!({"choices": [{"message": {"content": content}}]}));
        let (spec, asked) = server(vec![
            refuse("Use 'max_completion_tokens' instead of 'max_tokens'."),
            refuse("'temperature' does not support 0 with this model."),
            says(parts),
            says(json!("<think>\nOkay, Response B is")),
            refuse("the prompt is too long"),
        ]);
        let mut endpoint = Endpoint::new(&spec).unwrap();
        let prompt = lm::chat::Prompt::Raw("Hum".into());
        let question = Question {
            criterion: "Which?",
            prompt: &prompt,
            responses: ["x", "y"],
        };
        let verdicts = [(); 3].map(|()| endpoint.ask(&question).unwrap().verdict);
        let expected = [Verdict::First, Verdict::Unreadable, Verdict::Unreadable];
        assert_eq!(verdicts, expected);
        let asked: Vec<Value> = asked.iter().collect();
        let told: Vec<[bool; 3]> = asked
            .iter()
            .map(|body| {
                ["max_tokens", "max_completion_tokens", "temperature"]
                    .map(|f| body.get(f).is_some())
            })
            .collect();
        let settled = [false, true, false];
        let first = [[true, false, true], [false, true, true]];
        assert_eq!(told, [&first[..], &[settled; 3]].concat());
    }

    #[test]
    fn the_key_is_hidden_however_it_is_written() {
        let spec = serde_json::json!({"url": "http://127.0.0.1:1/v1", "model": "m"});
        let mut endpoint = Endpoint::new(&serde_json::from_value(spec).unwrap()).unwrap();
        endpoint.key = Some("sk/a\"b".into());
        let hidden = endpoint.hide(r#"sk/a"b, "sk/a\"b", "sk\/a\"b""#);
        assert_eq!(hidden, "…, \"…\", \"…\"");
        assert!(!format!("{endpoint:?}").contains("sk/"));
    }

    /// A server that replies once with this many bytes of content.
    fn long_reply(bytes: usize) -> String {
        use std::io::Write;
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}/v1", listener.local_addr().unwrap());
        std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            drop(stream.read(&mut [0; 4096]));
            let content = format!("B {}", "é".repeat(bytes / 2));
            let body = json!({"choices": [{"message": {"content": content}}]}).to_string();
            let head = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n", body.len());
            // A client that has read enough goes away.
            drop(stream.write_all((head + &body).as_bytes()));
        });
        url
    }

    #[test]
    fn long_replies_are_read_and_kept_in_part() {
        let attempt = |bytes: usize| {
            let spec = json!({"url": long_reply(bytes), "model": "m", "timeout": 20.0});
            let mut endpoint = Endpoint::new(&serde_json::from_value(spec).unwrap()).unwrap();
            endpoint.attempt("Which?")
        };
        let Ok(short) = attempt(1000) else {
            panic!("a chat completion")
        };
        assert_eq!((short.verdict, short.raw.len()), (Verdict::Second, 1002));
        let Ok(long) = attempt(100_000) else {
            panic!("a chat completion")
        };
        assert_eq!(long.verdict, Verdict::Second);
        assert!(long.raw.len() < KEPT + 50 && long.raw.ends_with("… (100002 bytes)"));
        let Err(Failure::Strange(huge)) = attempt(4 << 20) else {
            panic!("no verdict")
        };
        assert!(huge.len() < KEPT + 50, "{}", huge.len());
    }
}
