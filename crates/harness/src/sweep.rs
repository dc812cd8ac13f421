//! Sweeps: one file, many runs, with fields set from outside.
//!
//! ```
//! use mope_harness::experiment::Experiment;
//! use mope_harness::sweep::{Setting, grid};
//!
//! let folder = tempfile::tempdir()?;
//! let experiment = Experiment::load(&pico::experiment(folder.path()))?;
//! let settings: Vec<Setting> = ["seed=1,2", "generation.max_new_tokens=8"]
//!     .map(|text| text.parse().unwrap())
//!     .into();
//! let runs = grid(&experiment, &settings)?;
//! let names: Vec<&str> = runs.iter().map(|(name, _)| name.as_str()).collect();
//! assert_eq!(names, ["seed=1", "seed=2"]);
//! assert_eq!((runs[1].1.seed, runs[1].1.generation.max_new_tokens), (2, 8));
//! # anyhow::Ok(())
//! ```

use std::str::FromStr;

use anyhow::Result;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::experiment::Experiment;
use crate::failure::usage;

/// A field and the values that it takes: `generation.sampling.temperature=0.5,0.7`.
#[derive(Debug, Clone, PartialEq)]
pub struct Setting {
    path: Vec<String>,
    values: Vec<(String, Value)>,
}

impl FromStr for Setting {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wanted = "expected FIELD=VALUE or FIELD=VALUE,VALUE, such as seed=1,2,3";
        let (path, values) = text.split_once('=').ok_or(wanted)?;
        let path: Vec<String> = path.split('.').map(|p| p.trim().to_string()).collect();
        if path.iter().any(String::is_empty) || values.is_empty() {
            return Err(wanted.into());
        }
        let read = |text: &str| {
            let text = text.trim();
            // A number, a list, a quoted text; anything else is a name.
            let value = serde_json::from_str(text).unwrap_or_else(|_| Value::from(text));
            (text.to_string(), value)
        };
        let values = separate(values).into_iter().map(|v| read(&v)).collect();
        Ok(Self { path, values })
    }
}

/// Parts between commas that are in no brackets and no quotes.
fn separate(text: &str) -> Vec<String> {
    let (mut parts, mut depth, mut quoted) = (vec![String::new()], 0i32, false);
    for c in text.chars() {
        match c {
            '"' => quoted = !quoted,
            '[' | '{' | '(' if !quoted => depth += 1,
            ']' | '}' | ')' if !quoted => depth -= 1,
            _ => {}
        }
        match parts.last_mut() {
            Some(_) if c == ',' && depth == 0 && !quoted => parts.push(String::new()),
            Some(part) => part.push(c),
            None => {}
        }
    }
    parts
}

/// Every combination of the settings: a name for those that vary, and the experiment.
///
/// # Errors
/// A field that is not there, or a value that does not fit.
pub fn grid(experiment: &Experiment, settings: &[Setting]) -> Result<Vec<(String, Experiment)>> {
    let open = |(name, mut set): (String, Experiment)| {
        // A document sorts by name; the file's order says what tables begin with and compare to.
        set.dimensions.sort_like(&experiment.dimensions.names());
        set.experts.sort_like(&experiment.experts.names());
        set.preferences.sort_like(&experiment.preferences.names());
        set.strategies.sort_like(&experiment.strategies.names());
        set.validate().map_err(|e| usage(format!("--set: {e:#}")))?;
        Ok((name, set))
    };
    combinations(experiment, settings)?
        .into_iter()
        .map(open)
        .collect()
}

/// Every combination of the settings over any file: a name for those that vary, and the file with its names sorted.
///
/// # Errors
/// A field that is not there, or a value that does not fit.
pub fn combinations<T>(file: &T, settings: &[Setting]) -> Result<Vec<(String, T)>>
where
    T: Serialize + DeserializeOwned,
{
    let mut runs = vec![(String::new(), serde_json::to_value(file)?)];
    for setting in settings {
        let mut next = Vec::new();
        for (name, document) in &runs {
            for (text, value) in &setting.values {
                let mut document = document.clone();
                set(&mut document, &setting.path, value.clone())?;
                let plain = |c: char| {
                    if c.is_alphanumeric() || ".-+_".contains(c) {
                        c
                    } else {
                        '_'
                    }
                };
                let text: String = text.chars().map(plain).collect();
                let field = setting.path.last().map_or("", String::as_str);
                let name = match (setting.values.len(), name.as_str()) {
                    (1, _) => name.clone(),
                    (_, "") => format!("{field}={text}"),
                    (_, before) => format!("{before},{field}={text}"),
                };
                next.push((name, document));
            }
        }
        runs = next;
    }
    let open = |(name, document): (String, Value)| {
        let set = serde_json::from_value(document).map_err(|e| usage(format!("--set: {e}")))?;
        Ok((name, set))
    };
    runs.into_iter().map(open).collect()
}

fn set(document: &mut Value, path: &[String], value: Value) -> Result<()> {
    let Some((first, rest)) = path.split_first() else {
        *document = value;
        return Ok(());
    };
    let fields = document.as_object_mut().ok_or_else(|| {
        usage(format!(
            "--set: '{first}' is looked for where there are no fields"
        ))
    })?;
    if rest.is_empty() {
        // Fields that are left out are not in the document; unknown ones are found when it is read.
        fields.insert(first.clone(), value);
        return Ok(());
    }
    let names: Vec<String> = fields.keys().cloned().collect();
    let inner = fields.get_mut(first).ok_or_else(|| {
        let hint = crate::failure::nearest(first, names.iter().map(String::as_str));
        let known = names.join(", ");
        usage(format!(
            "--set: no field '{first}'{hint}; there are: {known}"
        ))
    })?;
    set(inner, rest, value)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[test]
    fn settings_are_read() {
        let setting: Setting = "a.b=1,\"x,y\",[1,2],Log".parse().unwrap();
        assert_eq!(setting.path, ["a", "b"]);
        let values: Vec<&Value> = setting.values.iter().map(|(_, v)| v).collect();
        let expected = serde_json::json!([1, "x,y", [1, 2], "Log"]);
        assert_eq!(
            values,
            expected.as_array().unwrap().iter().collect::<Vec<_>>()
        );
        for wrong in ["a", "=1", "a.=1", "a="] {
            assert!(wrong.parse::<Setting>().is_err(), "{wrong}");
        }
    }
}
