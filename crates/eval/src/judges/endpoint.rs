//! An OpenAI-compatible server as a judge: how it is named and what is asked of it. The client needs the feature
//! `http`.

#[cfg(feature = "http")]
mod client;
#[cfg(feature = "http")]
mod retry_after;

#[cfg(feature = "http")]
pub use client::Endpoint;
#[cfg(feature = "http")]
pub(crate) use client::key;
use serde::{Deserialize, Serialize};

use crate::error::above_zero;
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
    #[serde(default = "default_max_tokens")]
    pub max_tokens: u32,
    /// Name the length `max_completion_tokens`, as servers of reasoning models want it. Default: no, until the
    /// server refuses `max_tokens`.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub max_completion_tokens: bool,
    /// Send no temperature, because the server accepts none but its own. Default: 0 is sent, until the server
    /// refuses it.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub no_temperature: bool,
    /// Seconds that a reply may take. Default 60 (ours).
    #[serde(default = "default_timeout")]
    pub timeout: f64,
    /// Times that a question is asked before giving up. Default 6 (ours).
    #[serde(default = "default_attempts")]
    pub attempts: u32,
    /// Seconds before the second attempt; doubled each time, give or take half. Default 0.5 (ours).
    #[serde(default = "default_backoff")]
    pub backoff: f64,
    /// Longest wait in seconds; a server that asks for more ends the command. Default 600 (ours).
    #[serde(default = "default_longest_wait")]
    pub longest_wait: f64,
    /// Requests a minute at most. Default: no limit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub requests_per_minute: Option<f64>,
}

fn default_max_tokens() -> u32 {
    8
}

fn default_timeout() -> f64 {
    60.0
}

fn default_attempts() -> u32 {
    6
}

fn default_backoff() -> f64 {
    0.5
}

fn default_longest_wait() -> f64 {
    600.0
}

/// The longest time that a setting may name, in seconds: a day.
const DAY: f64 = 86_400.0;

impl EndpointSpec {
    /// Checks address and numbers.
    ///
    /// # Errors
    /// [`Error::Url`], [`Error::UrlWithSecret`], [`Error::UrlWithQuery`], [`Error::Parameter`].
    pub fn validate(&self) -> Result<()> {
        let rest = ["http://", "https://"].map(|scheme| self.url.strip_prefix(scheme));
        let Some(rest) = rest.into_iter().flatten().next() else {
            return Err(Error::Url {
                url: self.url.clone(),
            });
        };
        let host = rest.split('/').next();
        if host.is_some_and(|host| host.contains('@')) {
            return Err(Error::UrlWithSecret);
        }
        if rest.contains(['?', '#']) {
            return Err(Error::UrlWithQuery);
        }
        for (name, value) in [
            ("timeout", self.timeout),
            ("backoff", self.backoff),
            ("longest_wait", self.longest_wait),
        ] {
            if !(0.0..=DAY).contains(&value) {
                let expected = "between 0 and 86400 seconds";
                return Err(Error::Parameter {
                    name,
                    value,
                    expected,
                });
            }
        }
        if let Some(value) = self.requests_per_minute
            && !(60.0 / DAY..=f64::MAX).contains(&value)
        {
            return Err(Error::Parameter {
                name: "requests_per_minute",
                value,
                expected: "at least one a day",
            });
        }
        above_zero("attempts", self.attempts.into())?;
        above_zero("max_tokens", self.max_tokens.into())?;
        above_zero("timeout", self.timeout)
    }
}

impl EndpointSpec {
    /// Whether the key goes unencrypted over a network: to another machine, by http.
    ///
    /// ```
    /// use mope_eval::judges::EndpointSpec;
    /// let spec = |url: &str| -> EndpointSpec {
    ///     let text = format!(r#"{{"url": "{url}", "model": "m", "key_variable": "KEY"}}"#);
    ///     serde_json::from_str(&text).unwrap()
    /// };
    /// assert!(spec("http://judges.example/v1").sends_key_in_clear());
    /// assert!(!spec("https://judges.example/v1").sends_key_in_clear());
    /// assert!(!spec("http://localhost:8000/v1").sends_key_in_clear());
    /// ```
    pub fn sends_key_in_clear(&self) -> bool {
        let Some(rest) = self.url.strip_prefix("http://") else {
            return false;
        };
        let authority = rest.split('/').next().unwrap_or_default();
        // An IPv6 address has colons of its own, and stands in brackets.
        let host = match authority.strip_prefix('[') {
            Some(rest) => rest.split(']').next(),
            None => authority.split(':').next(),
        };
        let host = host.unwrap_or_default();
        let here = match host.parse::<std::net::IpAddr>() {
            Ok(address) => address.is_loopback(),
            Err(_) => host.eq_ignore_ascii_case("localhost"),
        };
        self.key_variable.is_some() && !here
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
            max_tokens: default_max_tokens(),
            max_completion_tokens: false,
            no_temperature: false,
            timeout: default_timeout(),
            attempts: default_attempts(),
            backoff: default_backoff(),
            longest_wait: default_longest_wait(),
            requests_per_minute: None,
        }
    }

    #[test]
    fn settings_that_make_no_sense_are_refused() {
        spec().validate().unwrap();
        type Change = fn(&mut EndpointSpec);
        let wrong: [(Change, &str); 11] = [
            (|s| s.url = "https://host/v1?key=secret".into(), "query"),
            (|s| s.url = "https://host/v1#secret".into(), "query"),
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
            let error = spec.validate().unwrap_err().to_string();
            assert!(
                error.contains(message) && !error.contains("secret"),
                "{error}"
            );
        }
    }

    #[test]
    fn keys_in_clear_are_seen_wherever_the_server_is() {
        let clear = |url: &str, key: bool| {
            let spec = EndpointSpec {
                url: url.into(),
                key_variable: key.then(|| "KEY".into()),
                ..spec()
            };
            spec.sends_key_in_clear()
        };
        for here in [
            "127.0.0.1:1",
            "127.9.9.9",
            "localhost",
            "LOCALHOST:8000",
            "[::1]:80",
        ] {
            assert!(!clear(&format!("http://{here}/v1"), true), "{here}");
        }
        for there in [
            "10.0.0.1",
            "localhost.example",
            "127.0.0.1.example:80",
            "[2001:db8::1]:80",
            "[::ffff:10.0.0.1]",
        ] {
            assert!(clear(&format!("http://{there}/v1"), true), "{there}");
            assert!(!clear(&format!("http://{there}/v1"), false), "{there}");
            assert!(!clear(&format!("https://{there}/v1"), true), "{there}");
        }
    }
}
