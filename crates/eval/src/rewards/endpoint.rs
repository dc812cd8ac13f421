//! A server as a reward: vLLM's `/classify` and `/score`, text-embeddings-inference's `/predict`, or any that takes a
//! list of responses (see `outside.rs`) and replies with a list of numbers.
//!
//! | protocol | is asked | score |
//! |---|---|---|
//! | `VllmClassify` | `POST url/classify`, one conversation each, in the model's chat template | `probs[label]` |
//! | `VllmScore` | `POST url/score`, prompts as `text_1`, responses as `text_2` | `score` |
//! | `Tei` | `POST url/predict`, pairs of prompt and response, `raw_scores` | the score of `label` |
//! | `Json` | `POST url`, a list of responses | the number |

use std::path::{Path, PathBuf};

use lm::DeviceSpec;
use lm::source::cache_folder;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::outside::{Ask, Outside};
use super::{Definition, Reward, Scorer};
use crate::Result;
use crate::judges::EndpointSpec;

/// What a server is asked, and what it replies.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Protocol {
    /// vLLM's classification.
    VllmClassify,
    /// vLLM's scores of pairs.
    VllmScore,
    /// text-embeddings-inference's classification of pairs.
    Tei,
    /// A list of objects for a list of numbers.
    Json,
}

/// A server that scores.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Endpoint {
    /// Its address; what the protocol adds to it is left out.
    pub url: String,
    /// How it is asked.
    pub protocol: Protocol,
    /// Name of the model there, where the protocol has one.
    #[serde(default)]
    pub model: String,
    /// Number of the label whose score counts. Default 0.
    #[serde(default)]
    pub label: usize,
    /// Environment variable that holds the key; the key itself is written nowhere. Default: none is sent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key_variable: Option<String>,
    /// Seconds that a reply may take. Default 600 (ours).
    #[serde(default = "ten_minutes")]
    pub timeout: f64,
    /// Times that a batch is asked for before giving up. Default 6 (ours).
    #[serde(default = "six")]
    pub attempts: u32,
}

fn ten_minutes() -> f64 {
    600.0
}

fn six() -> u32 {
    6
}

impl Endpoint {
    /// What a judge behind this address would be checked for.
    fn spec(&self) -> Result<EndpointSpec> {
        let fields = json!({
            "url": self.url,
            "model": self.model,
            "key_variable": self.key_variable,
            "timeout": self.timeout,
            "attempts": self.attempts,
        });
        let spec: EndpointSpec = serde_json::from_value(fields).map_err(|error| {
            let path = PathBuf::from("Endpoint");
            crate::Error::Json { path, error }
        })?;
        spec.validate()?;
        Ok(spec)
    }

    /// The requests for some responses: each with what it asks, in their order.
    #[cfg_attr(
        not(feature = "http"),
        allow(dead_code, reason = "asked by the client")
    )]
    fn requests(&self, items: &[Value]) -> Vec<Value> {
        let list = |field: &str| -> Vec<&Value> { items.iter().map(|item| &item[field]).collect() };
        let pairs = || {
            items
                .iter()
                .map(|item| json!([item["prompt"], item["response"]]))
        };
        match self.protocol {
            Protocol::VllmClassify => items.iter().map(|item| self.conversation(item)).collect(),
            Protocol::VllmScore => vec![json!({
                "model": self.model,
                "text_1": list("prompt"),
                "text_2": list("response"),
            })],
            Protocol::Tei => {
                let pairs: Vec<Value> = pairs().collect();
                vec![json!({"inputs": pairs, "raw_scores": true, "truncate": true})]
            }
            Protocol::Json => vec![Value::from(items)],
        }
    }

    fn conversation(&self, item: &Value) -> Value {
        let response = item["response"].as_str().unwrap_or_default();
        match item["messages"].as_array() {
            None => {
                let prompt = item["prompt"].as_str().unwrap_or_default();
                json!({"model": self.model, "input": format!("{prompt}{response}")})
            }
            Some(messages) => {
                let mut messages = messages.clone();
                messages.push(json!({"role": "assistant", "content": response}));
                json!({"model": self.model, "messages": messages, "add_generation_prompt": false})
            }
        }
    }

    /// What the protocol adds to the address.
    #[cfg_attr(
        not(feature = "http"),
        allow(dead_code, reason = "asked by the client")
    )]
    fn path(&self) -> &'static str {
        match self.protocol {
            Protocol::VllmClassify => "/classify",
            Protocol::VllmScore => "/score",
            Protocol::Tei => "/predict",
            Protocol::Json => "",
        }
    }

    /// The scores of a reply; `None` for one that is not what the protocol says.
    #[cfg_attr(
        not(feature = "http"),
        allow(dead_code, reason = "asked by the client")
    )]
    fn read(&self, reply: &Value) -> Option<Vec<f64>> {
        // Servers may reply in another order, with the place of each.
        let in_order = || -> Option<Vec<&Value>> {
            let mut data: Vec<&Value> = reply.get("data")?.as_array()?.iter().collect();
            data.sort_by_key(|entry| entry.get("index").and_then(Value::as_u64));
            Some(data)
        };
        match self.protocol {
            Protocol::VllmClassify => {
                let probability = |entry: &Value| entry.get("probs")?.get(self.label)?.as_f64();
                in_order()?.into_iter().map(probability).collect()
            }
            Protocol::VllmScore => {
                let score = |entry: &Value| entry.get("score")?.as_f64();
                in_order()?.into_iter().map(score).collect()
            }
            Protocol::Tei => reply
                .as_array()?
                .iter()
                .map(|entry| self.of_labels(entry))
                .collect(),
            Protocol::Json => reply.as_array()?.iter().map(Value::as_f64).collect(),
        }
    }

    /// text-embeddings-inference sorts labels by score, so that they are told apart by name: `LABEL_0`, or by their only
    /// one.
    fn of_labels(&self, entry: &Value) -> Option<f64> {
        let labels = entry.as_array()?;
        let name = format!("LABEL_{}", self.label);
        let named = |label: &&Value| label.get("label").and_then(Value::as_str) == Some(&name);
        let only = (labels.len() == 1 && self.label == 0)
            .then(|| labels.first())
            .flatten();
        labels.iter().find(named).or(only)?.get("score")?.as_f64()
    }
}

impl Definition for &Endpoint {
    fn open(&self, _: &DeviceSpec) -> Result<Box<dyn Reward>> {
        let spec = self.spec()?;
        let definition = json!({
            "url": self.url,
            "protocol": self.protocol,
            "model": self.model,
            "label": self.label,
        });
        let program = server(self, &spec)?;
        let folder = cache_folder()?.join("scores");
        Ok(Box::new(Outside::new(
            self.url.clone(),
            program,
            &definition,
            &folder,
        )?))
    }

    fn validate(&self) -> Result<()> {
        self.spec().map(|_| ())
    }

    fn with_models(&self, _: &mut dyn FnMut(&Path) -> PathBuf) -> Scorer {
        Scorer::Endpoint((*self).clone())
    }
}

#[cfg(feature = "http")]
fn server(endpoint: &Endpoint, spec: &EndpointSpec) -> Result<client::Server> {
    client::Server::new(endpoint, spec)
}

/// Stands for a server where there is no network.
#[cfg(not(feature = "http"))]
struct NoServer;

#[cfg(not(feature = "http"))]
impl Ask for NoServer {
    fn ask(&mut self, _: &[Value]) -> Result<Vec<f64>, String> {
        Err("was built without feature http".into())
    }
}

#[cfg(not(feature = "http"))]
fn server(_: &Endpoint, _: &EndpointSpec) -> Result<NoServer> {
    Err(lm::Error::MissingFeature {
        what: "a server as a reward".into(),
        feature: "http",
    }
    .into())
}

#[cfg(feature = "http")]
mod client {
    use std::io::Read;
    use std::time::Duration;

    use super::{Ask, Endpoint, EndpointSpec, Value};
    use crate::Result;
    use crate::judges::key;

    /// Bytes of a reply that are read at most (ours): a batch's numbers need some kilobytes.
    const LONGEST: u64 = 1 << 24;

    /// A server that scores.
    pub(super) struct Server {
        endpoint: Endpoint,
        key: Option<String>,
        agent: ureq::Agent,
    }

    /// Why an attempt failed: the same question may be answered later, or never.
    enum Failure {
        Passing(String),
        Lasting(String),
    }

    impl Server {
        pub(super) fn new(endpoint: &Endpoint, spec: &EndpointSpec) -> Result<Self> {
            let config = ureq::Agent::config_builder()
                .timeout_global(Some(Duration::from_secs_f64(spec.timeout)))
                .http_status_as_error(false)
                // A question that is sent on would lose its body, or its key would go elsewhere.
                .max_redirects(0);
            Ok(Self {
                endpoint: endpoint.clone(),
                key: spec.key_variable.as_deref().map(key).transpose()?,
                agent: config.build().into(),
            })
        }

        /// The beginning of a text, without the key: a server may repeat what it was sent.
        fn shown(&self, text: &str) -> String {
            let text = match &self.key {
                Some(key) => text.replace(key.as_str(), "…"),
                None => text.into(),
            };
            text.chars().take(300).collect()
        }

        fn attempt(&self, body: &Value) -> Result<Vec<f64>, Failure> {
            let endpoint = &self.endpoint;
            let url = format!("{}{}", endpoint.url.trim_end_matches('/'), endpoint.path());
            let mut request = self
                .agent
                .post(&url)
                .header("content-type", "application/json");
            if let Some(key) = &self.key {
                request = request.header("authorization", format!("Bearer {key}"));
            }
            let passing = |e: &dyn std::fmt::Display| Failure::Passing(self.shown(&e.to_string()));
            let response = request.send(body.to_string().as_bytes());
            let mut response = response.map_err(|e| passing(&e))?;
            let status = response.status().as_u16();
            let mut bytes = Vec::new();
            let reader = response.body_mut().as_reader();
            let read = reader.take(LONGEST).read_to_end(&mut bytes);
            read.map_err(|e| passing(&e))?;
            let text = String::from_utf8_lossy(&bytes);
            let message = format!("replied with status {status}: {}", self.shown(&text));
            match status {
                200 => {}
                408 | 425 | 429 | 500.. => return Err(Failure::Passing(message)),
                _ => return Err(Failure::Lasting(message)),
            }
            let reply = serde_json::from_slice::<Value>(&bytes).ok();
            let scores = reply.and_then(|reply| endpoint.read(&reply));
            scores.ok_or_else(|| {
                let (protocol, text) = (endpoint.protocol, self.shown(&text));
                Failure::Lasting(format!(
                    "replied with no scores as {protocol:?} has them: {text}"
                ))
            })
        }
    }

    impl Ask for Server {
        fn ask(&mut self, items: &[Value]) -> Result<Vec<f64>, String> {
            let mut scores = Vec::with_capacity(items.len());
            for request in self.endpoint.requests(items) {
                let mut attempt = 1;
                loop {
                    match self.attempt(&request) {
                        Ok(some) => {
                            scores.extend(some);
                            break;
                        }
                        Err(Failure::Passing(_)) if attempt < self.endpoint.attempts => {
                            let seconds = 0.5 * 2f64.powi(attempt.min(8) as i32 - 1);
                            std::thread::sleep(Duration::from_secs_f64(seconds));
                            attempt += 1;
                        }
                        Err(Failure::Passing(message) | Failure::Lasting(message)) => {
                            return Err(message);
                        }
                    }
                }
            }
            Ok(scores)
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    fn endpoint(protocol: &str, label: usize) -> Endpoint {
        let fields = json!({"url": "http://x", "protocol": protocol, "model": "m", "label": label});
        serde_json::from_value(fields).unwrap()
    }

    fn items() -> [Value; 2] {
        let messages = json!([{"role": "user", "content": "Why?"}]);
        [
            json!({"prompt": "Why?", "messages": messages, "response": "So."}),
            json!({"prompt": "Raw ", "response": "text"}),
        ]
    }

    #[test]
    fn requests_of_each_protocol() {
        let classify = endpoint("VllmClassify", 0).requests(&items());
        let said =
            json!([{"role": "user", "content": "Why?"}, {"role": "assistant", "content": "So."}]);
        assert_eq!(classify[0]["messages"], said);
        assert_eq!(classify[1], json!({"model": "m", "input": "Raw text"}));
        assert_eq!(
            endpoint("VllmScore", 0).requests(&items()),
            [json!({"model": "m", "text_1": ["Why?", "Raw "], "text_2": ["So.", "text"]})]
        );
        let tei = endpoint("Tei", 0).requests(&items());
        assert_eq!(tei[0]["inputs"], json!([["Why?", "So."], ["Raw ", "text"]]));
        assert_eq!(endpoint("Json", 0).requests(&items()), [json!(items())]);
    }

    #[test]
    fn replies_of_each_protocol() {
        let read =
            |protocol: &str, label: usize, reply: Value| endpoint(protocol, label).read(&reply);
        let classes = json!({"data": [
            {"index": 1, "label": "a", "probs": [0.9, 0.1], "num_classes": 2},
            {"index": 0, "label": "b", "probs": [0.25, 0.75], "num_classes": 2},
        ]});
        assert_eq!(
            read("VllmClassify", 1, classes.clone()),
            Some(vec![0.75, 0.1])
        );
        assert_eq!(read("VllmClassify", 2, classes), None);
        let scores = json!({"data": [{"index": 0, "object": "score", "score": 2.5}]});
        assert_eq!(read("VllmScore", 0, scores.clone()), Some(vec![2.5]));
        assert_eq!(read("Json", 0, scores), None);
        let labels = json!([
            [{"score": 3.0, "label": "LABEL_1"}, {"score": -1.0, "label": "LABEL_0"}],
            [{"score": 0.5, "label": "LABEL_0"}, {"score": 0.25, "label": "LABEL_1"}],
        ]);
        assert_eq!(read("Tei", 1, labels), Some(vec![3.0, 0.25]));
        assert_eq!(
            read("Tei", 0, json!([[{"score": 7.0, "label": "good"}]])),
            Some(vec![7.0])
        );
        assert_eq!(read("Json", 0, json!([1, -2.5])), Some(vec![1.0, -2.5]));
        assert_eq!(read("Json", 0, json!([1, null])), None);
    }

    /// A server that says `replies` one after the other; its address, and paths and bodies that it was asked with.
    #[cfg(feature = "http")]
    fn listen(replies: Vec<(u16, String)>) -> (String, std::sync::mpsc::Receiver<(String, Value)>) {
        use std::io::{BufRead, BufReader, Read, Write};
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let (sender, asked) = std::sync::mpsc::channel();
        std::thread::spawn(move || {
            for (status, reply) in replies {
                let mut stream = listener.accept().unwrap().0;
                let mut reader = BufReader::new(stream.try_clone().unwrap());
                let (mut line, mut path, mut length) = (String::new(), String::new(), 0);
                while reader.read_line(&mut line).unwrap() > 2 {
                    if line.starts_with("POST ") {
                        path = line.split(' ').nth(1).unwrap().into();
                    }
                    if let Some(n) = line.to_lowercase().strip_prefix("content-length:") {
                        length = n.trim().parse().unwrap();
                    }
                    line.clear();
                }
                let mut body = vec![0; length];
                reader.read_exact(&mut body).unwrap();
                sender
                    .send((path, serde_json::from_slice(&body).unwrap()))
                    .unwrap();
                let length = reply.len();
                let head = format!(
                    "HTTP/1.1 {status} X\r\ncontent-length: {length}\r\nconnection: close\r\n\r\n"
                );
                stream.write_all((head + &reply).as_bytes()).unwrap();
            }
        });
        (url, asked)
    }

    /// What a server's replies come to.
    #[cfg(feature = "http")]
    fn ask(protocol: &str, url: &str) -> Result<Vec<f64>, String> {
        let fields = json!({"url": url, "protocol": protocol, "model": "m", "attempts": 2});
        let endpoint: Endpoint = serde_json::from_value(fields).unwrap();
        let mut server = server(&endpoint, &endpoint.spec().unwrap()).unwrap();
        server.ask(&items())
    }

    #[cfg(feature = "http")]
    #[test]
    fn servers_are_asked_in_batches_and_asked_again() {
        let (url, asked) = listen(vec![(503, "busy".into()), (200, "[1.5, -2]".into())]);
        assert_eq!(ask("Json", &url).unwrap(), [1.5, -2.0]);
        let asked: Vec<(String, Value)> = asked.iter().collect();
        assert_eq!(asked.len(), 2);
        assert_eq!(asked[1], ("/".into(), json!(items())));

        let classes =
            |p: f64| json!({"data": [{"index": 0, "probs": [p], "num_classes": 1}]}).to_string();
        let (url, asked) = listen(vec![(200, classes(0.25)), (200, classes(0.75))]);
        assert_eq!(ask("VllmClassify", &url).unwrap(), [0.25, 0.75]);
        let asked: Vec<(String, Value)> = asked.iter().collect();
        assert_eq!(asked[0].0, "/classify");
        assert_eq!(asked[0].1["messages"][1]["content"], "So.");
    }

    #[cfg(feature = "http")]
    #[test]
    fn what_is_no_answer_is_told() {
        for (status, reply, message) in [
            (
                400,
                "no such model",
                "replied with status 400: no such model",
            ),
            (
                200,
                "{\"data\": 3}",
                "replied with no scores as Json has them",
            ),
            (200, "[null, 1]", "replied with no scores as Json has them"),
        ] {
            let (url, _asked) = listen(vec![(status, reply.into())]);
            let error = ask("Json", &url).unwrap_err();
            assert!(error.contains(message), "{error}");
        }
    }
}
