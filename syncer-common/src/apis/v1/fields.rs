//! Members of an old object, taken one by one, so that what nobody took can be named.

use serde_json::{Map, Value};

use super::{FieldError, Result};

pub(super) struct Fields {
    path: String,
    members: Map<String, Value>,
}

impl Fields {
    /// Nothing at all is an object without members.
    pub fn of(value: Option<Value>, path: impl Into<String>) -> Result<Self> {
        let path = path.into();
        match value {
            None => Ok(Fields { path, members: Map::new() }),
            Some(Value::Object(members)) => Ok(Fields { path, members }),
            Some(other) => Err(FieldError::new(path, format!("{other} is not an object"))),
        }
    }

    pub fn path(&self, name: &str) -> String {
        format!("{}.{name}", self.path)
    }

    pub fn error(&self, name: &str, reason: impl Into<String>) -> FieldError {
        FieldError::new(self.path(name), reason)
    }

    pub fn take(&mut self, name: &str) -> Option<Value> {
        self.members.remove(name)
    }

    /// Text; numbers count as their digits, which YAML makes of unquoted names.
    pub fn text(&mut self, name: &str) -> Result<Option<String>> {
        match self.take(name) {
            None => Ok(None),
            Some(Value::String(text)) if text.is_empty() => Ok(None),
            Some(Value::String(text)) => Ok(Some(text)),
            Some(Value::Number(number)) => Ok(Some(number.to_string())),
            Some(other) => Err(self.error(name, format!("{other} is not text"))),
        }
    }

    pub fn need(&mut self, name: &str) -> Result<String> {
        self.text(name)?.ok_or_else(|| self.error(name, "missing"))
    }

    pub fn truth(&mut self, name: &str) -> Result<bool> {
        match self.take(name) {
            None => Ok(false),
            Some(Value::Bool(truth)) => Ok(truth),
            Some(other) => Err(self.error(name, format!("{other} is neither true nor false"))),
        }
    }

    pub fn list(&mut self, name: &str) -> Result<Vec<Value>> {
        match self.take(name) {
            None => Ok(Vec::new()),
            Some(Value::Array(items)) => Ok(items),
            Some(other) => Err(self.error(name, format!("{other} is not a list"))),
        }
    }

    pub fn texts(&mut self, name: &str) -> Result<Vec<String>> {
        let path = self.path(name);
        let text = |(index, item)| match item {
            Value::String(text) => Ok(text),
            other => Err(FieldError::new(format!("{path}[{index}]"), format!("{other} is not text"))),
        };
        self.list(name)?.into_iter().enumerate().map(text).collect()
    }

    pub fn object(&mut self, name: &str) -> Result<Option<Fields>> {
        let path = self.path(name);
        self.take(name).map(|value| Fields::of(Some(value), path)).transpose()
    }

    /// Labels: text by text.
    pub fn labels(&mut self, name: &str) -> Result<Map<String, Value>> {
        let Some(labels) = self.object(name)? else { return Ok(Map::new()) };
        match labels.members.iter().find(|(_, value)| !value.is_string()) {
            Some((label, value)) => {
                Err(labels.error(label, format!("{value} is not text: put it in quotes")))
            }
            None => Ok(labels.members),
        }
    }

    /// Paths of what nobody took.
    pub fn left(&self) -> Vec<String> {
        self.members.keys().map(|name| self.path(name)).collect()
    }

    pub fn nothing_left(&self) -> Result<()> {
        match self.members.keys().next() {
            None => Ok(()),
            Some(name) => Err(self
                .error(name, "not known: without it this might match more; remove it if it does not matter")),
        }
    }
}
