use std::hash::{BuildHasher, RandomState};
use std::time::{Duration, Instant, SystemTime};

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::{Judge, Question, Reply, Verdict, retry_after};
use crate::{Error, Result};

/// An OpenAI-compatible server, and how patient one is with it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EndpointSpec {
    /// Up to and including `/v1`.
    pub url: String,
    /// Name of the model there.
    pub model: String,
    /// Environment variable that holds the key; the key itself is written nowhere. Default: none is sent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key_variable: Option<String>,
    /// Longest reply in tokens. Default 8 (ours: one letter and what comes around it).
    #[serde(default = "eight")]
    pub max_tokens: u32,
    /// Seconds that a reply may take. Default 60 (ours).
    #[serde(default = "minute")]
    pub timeout: f64,
    /// Times that a question is asked before giving up. Default 6 (ours).
    #[serde(default = "six")]
    pub attempts: u32,
    /// Seconds before the second attempt; doubled each time, give or take half. Default 0.5 (ours).
    #[serde(default = "half")]
    pub backoff: f64,
    /// Longest wait in seconds; a server that asks for more ends the command. Default 600 (ours).
    #[serde(default = "ten_minutes")]
    pub longest_wait: f64,
    /// Requests a minute at most. Default: no limit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub requests_per_minute: Option<f64>,
}

fn eight() -> u32 {
    8
}

fn minute() -> f64 {
    60.0
}

fn six() -> u32 {
    6
}

fn half() -> f64 {
    0.5
}

fn ten_minutes() -> f64 {
    600.0
}

/// Replies in a row that are no chat completions before the server is taken for something else (ours).
const STRANGE: u32 = 3;

/// The longest time that a setting may name, in seconds: a day.
const DAY: f64 = 86_400.0;

impl EndpointSpec {
    /// Checks address and numbers.
    ///
    /// # Errors
    /// What is wrong, in words.
    pub fn validate(&self) -> Result<(), String> {
        let rest = ["http://", "https://"].map(|scheme| self.url.strip_prefix(scheme));
        let Some(rest) = rest.into_iter().flatten().next() else {
            let url = &self.url;
            return Err(format!(
                "url '{url}' begins with neither http:// nor https://"
            ));
        };
        if rest
            .split('/')
            .next()
            .is_some_and(|host| host.contains('@'))
        {
            let message = "url holds a name or password, which would be written to files; \
                           use key_variable";
            return Err(message.into());
        }
        for (name, value) in [
            ("timeout", self.timeout),
            ("backoff", self.backoff),
            ("longest_wait", self.longest_wait),
        ] {
            if !(0.0..=DAY).contains(&value) {
                return Err(format!(
                    "{name} is {value}, not between 0 and {DAY} seconds"
                ));
            }
        }
        if let Some(rate) = self.requests_per_minute
            && !(60.0 / DAY..=f64::MAX).contains(&rate)
        {
            return Err(format!("requests_per_minute is {rate}, not above 0"));
        }
        if self.attempts == 0 || self.max_tokens == 0 || self.timeout == 0.0 {
            return Err("attempts, max_tokens and timeout must be above 0".into());
        }
        Ok(())
    }
}

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
    /// It refuses all questions.
    Lasting(String),
}

/// The key of a variable.
fn key(variable: &str) -> Result<String> {
    let fail = |what: &str| {
        Error::Argument(format!(
            "the environment variable {variable}, which is to hold the judge's key, {what}"
        ))
    };
    let key = std::env::var_os(variable).ok_or_else(|| fail("is not set"))?;
    let key = key.to_str().map(str::trim).unwrap_or_default();
    if key.is_empty() || !key.chars().all(|c| c.is_ascii_graphic()) {
        return Err(fail("is empty or holds what no key consists of"));
    }
    Ok(key.into())
}

/// The beginning of what a server said.
fn beginning(text: &str) -> String {
    text.chars().take(200).collect()
}

impl Endpoint {
    /// Ready to ask.
    ///
    /// # Errors
    /// A key's variable that is not set, settings that make no sense.
    pub fn new(spec: &EndpointSpec) -> Result<Self> {
        spec.validate().map_err(Error::Argument)?;
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

    /// One request; texts come back without the key.
    fn attempt(&self, question: &str) -> Result<Reply, Failure> {
        let url = format!("{}/chat/completions", self.spec.url.trim_end_matches('/'));
        let body = json!({
            "model": self.spec.model,
            "messages": [{"role": "user", "content": question}],
            "temperature": 0,
            "max_tokens": self.spec.max_tokens,
        });
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
        let bytes = response.body_mut().read_to_vec().map_err(passing)?;
        let body = String::from_utf8_lossy(&bytes);
        let text = self.hide(&body);
        let message = format!("status {status}: {}", beginning(&text));
        match (status, wait) {
            (200, _) => {}
            (408 | 409 | 425 | 429 | 500.., Some(wait)) if wait > self.spec.longest_wait => {
                return Err(Failure::Lasting(format!(
                    "the server asks to wait {wait:.0} s, longer than longest_wait; {message}"
                )));
            }
            (408 | 409 | 425 | 429 | 500.., _) => return Err(Failure::Passing(message, wait)),
            (400 | 413 | 422, _) => return Err(Failure::Refused(text)),
            _ => return Err(Failure::Lasting(message)),
        }
        let document: Option<Value> = serde_json::from_str(&body).ok();
        let reply = document
            .as_ref()
            .and_then(|d| d.pointer("/choices/0/message"));
        match reply.map(|r| r.get("content").and_then(Value::as_str)) {
            None => Err(Failure::Strange(text)),
            // Models that refuse or think too long have no content; they would again.
            Some(None) => Ok(Reply {
                verdict: Verdict::Unreadable,
                raw: text,
            }),
            Some(Some(content)) => Ok(Reply {
                verdict: Verdict::read(content),
                raw: self.hide(content),
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

    fn keep_the_rate(&mut self) {
        let rate = self.spec.requests_per_minute;
        let gap = rate.map(|r| Duration::from_secs_f64(60.0 / r));
        if let (Some(gap), Some(asked)) = (gap, self.asked) {
            std::thread::sleep(gap.saturating_sub(asked.elapsed()));
        }
        self.asked = Some(Instant::now());
    }

    fn fail(&self, message: &str) -> Error {
        Error::Argument(format!(
            "{}: {message}; verdicts so far are kept, and the same command goes on from them",
            self.spec.url
        ))
    }
}

impl Judge for Endpoint {
    fn ask(&mut self, question: &Question<'_>) -> Result<Reply> {
        if self.strange >= STRANGE {
            return Err(self.fail(&format!(
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
                    return Err(self.fail(&message));
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

    fn spec() -> EndpointSpec {
        EndpointSpec {
            url: "http://127.0.0.1:1/v1".into(),
            model: "m".into(),
            key_variable: None,
            max_tokens: eight(),
            timeout: minute(),
            attempts: six(),
            backoff: half(),
            longest_wait: ten_minutes(),
            requests_per_minute: None,
        }
    }

    #[test]
    fn settings_that_make_no_sense_are_refused() {
        assert_eq!(spec().validate(), Ok(()));
        type Change = fn(&mut EndpointSpec);
        let wrong: [(Change, &str); 9] = [
            (|s| s.url = "ftp://x".into(), "neither http:// nor https://"),
            (
                |s| s.url = "http://me:secret@host/v1".into(),
                "key_variable",
            ),
            (|s| s.timeout = f64::NAN, "timeout"),
            (|s| s.timeout = 0.0, "timeout"),
            (|s| s.backoff = f64::INFINITY, "backoff"),
            (|s| s.longest_wait = -1.0, "longest_wait"),
            (|s| s.requests_per_minute = Some(0.0), "requests_per_minute"),
            (
                |s| s.requests_per_minute = Some(f64::NAN),
                "requests_per_minute",
            ),
            (|s| s.attempts = 0, "attempts"),
        ];
        for (change, message) in wrong {
            let mut spec = spec();
            change(&mut spec);
            let error = spec.validate().unwrap_err();
            assert!(
                error.contains(message) && !error.contains("secret"),
                "{error}"
            );
        }
    }

    #[test]
    fn the_key_is_hidden_however_it_is_written() {
        let mut endpoint = Endpoint::new(&spec()).unwrap();
        endpoint.key = Some("sk/a\"b".into());
        let hidden = endpoint.hide(r#"sk/a"b, "sk/a\"b", "sk\/a\"b""#);
        assert_eq!(hidden, "…, \"…\", \"…\"");
        assert!(!format!("{endpoint:?}").contains("sk/"));
    }
}
