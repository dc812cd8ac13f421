use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::{Judge, Question, Reply, Verdict};
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

/// Longest wait that a server may ask for, in seconds (ours).
const LONGEST_WAIT: f64 = 120.0;

/// A model behind a server.
pub struct Endpoint {
    spec: EndpointSpec,
    key: Option<String>,
    agent: ureq::Agent,
    asked: Option<Instant>,
    waits: u64,
}

impl std::fmt::Debug for Endpoint {
    /// Without the key.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Endpoint")
            .field("spec", &self.spec)
            .finish_non_exhaustive()
    }
}

/// Why an attempt failed, and whether another may not.
enum Failure {
    /// With seconds that the server asks to wait.
    Passing(String, Option<f64>),
    Lasting(String),
}

impl Endpoint {
    /// Ready to ask.
    ///
    /// # Errors
    /// A key's variable that is not set, settings that make no sense.
    pub fn new(spec: &EndpointSpec) -> Result<Self> {
        let key = match &spec.key_variable {
            None => None,
            Some(name) => Some(std::env::var(name).map_err(|_| {
                Error::Argument(format!(
                    "the environment variable {name}, which is to hold the judge's key, is not set"
                ))
            })?),
        };
        if spec.attempts == 0 || spec.timeout <= 0.0 || spec.backoff < 0.0 {
            let message = "attempts and timeout must be above 0, backoff not below";
            return Err(Error::Argument(message.into()));
        }
        let config = ureq::Agent::config_builder()
            .timeout_global(Some(Duration::from_secs_f64(spec.timeout)))
            .http_status_as_error(false)
            // Sent on, the key would go elsewhere.
            .max_redirects(0);
        Ok(Self {
            agent: config.build().into(),
            spec: spec.clone(),
            key,
            asked: None,
            waits: 0,
        })
    }

    fn attempt(&self, question: &str) -> Result<String, Failure> {
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
        let passing = |e: ureq::Error| Failure::Passing(e.to_string(), None);
        let mut response = request.send(body.to_string().as_bytes()).map_err(passing)?;
        let status = response.status().as_u16();
        let header = response.headers().get("retry-after");
        let wait = header.and_then(|v| v.to_str().ok()?.trim().parse::<f64>().ok());
        let text = response.body_mut().read_to_string().map_err(passing)?;
        let said = || text.chars().take(200).collect::<String>();
        match status {
            200 => {}
            408 | 409 | 425 | 429 | 500.. => {
                return Err(Failure::Passing(
                    format!("status {status}: {}", said()),
                    wait,
                ));
            }
            _ => return Err(Failure::Lasting(format!("status {status}: {}", said()))),
        }
        let document: Value = serde_json::from_str(&text)
            .map_err(|e| Failure::Passing(format!("the reply is no JSON ({e})"), None))?;
        let content = document.pointer("/choices/0/message/content");
        let content = content.and_then(Value::as_str).map(String::from);
        content.ok_or_else(|| {
            let message = format!("the reply has no choices[0].message.content: {}", said());
            Failure::Passing(message, None)
        })
    }

    /// A server may repeat what it was sent; the key is written nowhere.
    fn without_key(&self, text: String) -> String {
        match self.key.as_deref().filter(|k| !k.is_empty()) {
            Some(key) => text.replace(key, "…"),
            None => text,
        }
    }

    /// Between a half and one and a half of the time that is due, so that many who wait don't come at once.
    fn pause(&mut self, attempt: u32, asked_for: Option<f64>) {
        self.waits += 1;
        let spread =
            (self.waits.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 40) as f64 / (1u64 << 24) as f64;
        let due = self.spec.backoff * 2f64.powi(attempt as i32) * (0.5 + spread);
        let seconds = asked_for.unwrap_or(0.0).max(due).min(LONGEST_WAIT);
        std::thread::sleep(Duration::from_secs_f64(seconds));
    }

    fn keep_the_rate(&mut self) {
        let gap = self
            .spec
            .requests_per_minute
            .map(|r| Duration::from_secs_f64(60.0 / r.max(1e-3)));
        if let (Some(gap), Some(asked)) = (gap, self.asked) {
            std::thread::sleep(gap.saturating_sub(asked.elapsed()));
        }
        self.asked = Some(Instant::now());
    }
}

impl Judge for Endpoint {
    fn ask(&mut self, question: &Question<'_>) -> Result<Reply> {
        let text = question.text();
        let mut last = String::new();
        for attempt in 0..self.spec.attempts {
            self.keep_the_rate();
            match self.attempt(&text) {
                Ok(raw) => {
                    let raw = self.without_key(raw);
                    let verdict = Verdict::read(&raw);
                    return Ok(Reply { verdict, raw });
                }
                Err(Failure::Passing(message, wait)) => {
                    last = message;
                    if attempt + 1 < self.spec.attempts {
                        self.pause(attempt, wait);
                    }
                }
                Err(Failure::Lasting(message)) => {
                    last = message;
                    break;
                }
            }
        }
        let last = self.without_key(last);
        Err(Error::Argument(format!(
            "{}: {last}; verdicts so far are kept, and the same command goes on from them",
            self.spec.url
        )))
    }
}
