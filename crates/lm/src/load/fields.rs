//! Typed access to the fields of a JSON object, with errors that name file and field.

use std::path::Path;

use serde_json::{Map, Value};

use crate::{Error, Result};

/// The fields of an object in a file. A null is an absent field, where nothing else is said.
#[derive(Clone, Copy)]
pub(super) struct Fields<'a> {
    pub path: &'a Path,
    pub map: &'a Map<String, Value>,
}

impl<'a> Fields<'a> {
    /// A field that says something.
    pub fn get(&self, name: &str) -> Option<&'a Value> {
        self.map.get(name).filter(|value| !value.is_null())
    }

    pub fn unsupported(&self, what: String, supported: &str) -> Error {
        Error::unsupported(self.path, what, supported)
    }

    fn read<T>(
        &self,
        name: &str,
        what: &str,
        read: impl Fn(&'a Value) -> Option<T>,
    ) -> Result<Option<T>> {
        let Some(value) = self.get(name) else {
            return Ok(None);
        };
        let shown: String = value.to_string().chars().take(60).collect();
        let wrong = || Error::format(self.path, format!("field '{name}' is {shown}, not {what}"));
        read(value).map(Some).ok_or_else(wrong)
    }

    /// A whole number from 0 on.
    pub fn size(&self, name: &str, default: usize) -> Result<usize> {
        Ok(self.read(name, "a whole number", size)?.unwrap_or(default))
    }

    /// The same where null is not the default, but none.
    pub fn size_or_null(&self, name: &str, default: Option<usize>) -> Result<Option<usize>> {
        match self.map.contains_key(name) {
            true => self.read(name, "a whole number", size),
            false => Ok(default),
        }
    }

    pub fn number(&self, name: &str, default: f64) -> Result<f32> {
        Ok(self
            .read(name, "a number", Value::as_f64)?
            .unwrap_or(default) as f32)
    }

    /// The same where null is not the default, but none.
    pub fn number_or_null(&self, name: &str, default: Option<f64>) -> Result<Option<f32>> {
        let number = match self.map.contains_key(name) {
            true => self.read(name, "a number", Value::as_f64)?,
            false => default,
        };
        Ok(number.map(|v| v as f32))
    }

    pub fn flag(&self, name: &str, default: bool) -> Result<bool> {
        let read = self.read(name, "true or false", Value::as_bool)?;
        Ok(read.unwrap_or(default))
    }

    pub fn text(&self, name: &str) -> Result<Option<&'a str>> {
        self.read(name, "a text", Value::as_str)
    }

    pub fn list(&self, name: &str) -> Result<Option<&'a Vec<Value>>> {
        self.read(name, "a list", Value::as_array)
    }

    pub fn sizes(&self, name: &str) -> Result<Option<Vec<usize>>> {
        let all = |value: &Value| value.as_array()?.iter().map(size).collect();
        self.read(name, "a list of whole numbers", all)
    }

    pub fn numbers(&self, name: &str) -> Result<Option<Vec<f32>>> {
        let one = |value: &Value| value.as_f64().map(|v| v as f32);
        let all = |value: &Value| value.as_array()?.iter().map(one).collect();
        self.read(name, "a list of numbers", all)
    }
}

fn size(value: &Value) -> Option<usize> {
    // Some files write sizes as 4096.0.
    let whole =
        |v: f64| (v.fract() == 0.0 && (0.0..=2f64.powi(52)).contains(&v)).then_some(v as u64);
    let value = value.as_u64().or_else(|| whole(value.as_f64()?))?;
    usize::try_from(value).ok()
}
