//! A template's text, from the store. Pure but for reading the template itself.
//!
//! Functions: `getv(path, default)`, `exists(path)`, `gets(path)` (every entry below, with `key` and `value`),
//! `ls(path)` (the names of what is one level below), `base(path)`. Paths are below the resource's prefix.

use std::collections::BTreeSet;

use anyhow::Context;
use minijinja::syntax::SyntaxConfig;
use minijinja::value::Serde;
use minijinja::{Environment, Error, ErrorKind, UndefinedBehavior, Value};

use super::resource::{Resource, join};
use super::store::Store;

pub fn render(resource: &Resource, store: &Store) -> anyhow::Result<String> {
    let source =
        std::fs::read_to_string(&resource.src).with_context(|| resource.src.display().to_string())?;
    render_source(&source, &resource.prefix, store)
}

fn render_source(source: &str, prefix: &str, store: &Store) -> anyhow::Result<String> {
    // What a template looks at is gathered first: its functions outlive no borrow.
    let below: Vec<(String, Value)> = store
        .below(prefix)
        .map(|(path, json)| (path.to_owned(), Value::from(Serde(json))))
        .chain(store.get(prefix).map(|json| (prefix.to_owned(), Value::from(Serde(json)))))
        .collect();
    let entries = std::sync::Arc::new(below);
    let mut environment = Environment::new();
    environment.set_undefined_behavior(UndefinedBehavior::Strict);
    // A line that holds nothing but a block leaves no line behind.
    let mut syntax = SyntaxConfig::builder();
    syntax.keep_trailing_newline(true).trim_blocks(true).lstrip_blocks(true);
    environment.set_syntax(syntax.build()?);
    let absolute = {
        let prefix = prefix.to_owned();
        move |path: &str| join(&prefix, path)
    };
    let find = {
        let (entries, absolute) = (entries.clone(), absolute.clone());
        move |path: &str| {
            let path = absolute(path);
            entries.iter().find(|(key, _)| *key == path).map(|(_, value)| value.clone())
        }
    };
    let relative = {
        let prefix = prefix.trim_end_matches('/').to_owned();
        move |path: &str| path.strip_prefix(&prefix).unwrap_or(path).to_owned()
    };
    let children = {
        let (entries, absolute) = (entries.clone(), absolute.clone());
        move |path: &str| -> Vec<(String, Value)> {
            let above = absolute(path);
            let above = if above == "/" { above } else { above + "/" };
            entries.iter().filter(|(key, _)| key.starts_with(&above)).cloned().collect()
        }
    };
    let get = find.clone();
    environment.add_function("getv", move |path: &str, default: Option<Value>| {
        get(path).or(default).ok_or_else(|| {
            Error::new(ErrorKind::UndefinedError, format!("{path} is not there, and no default is given"))
        })
    });
    environment.add_function("exists", move |path: &str| find(path).is_some());
    let all = children.clone();
    environment.add_function("gets", move |path: &str| {
        all(path)
            .into_iter()
            .map(|(key, value)| Value::from_pairs([("key", Value::from(relative(&key))), ("value", value)]))
            .collect::<Vec<Value>>()
    });
    environment.add_function("ls", move |path: &str| {
        let above = absolute(path).trim_end_matches('/').len() + 1;
        let names: BTreeSet<String> = children(path)
            .iter()
            .filter_map(|(key, _)| key.get(above..)?.split('/').next().map(str::to_owned))
            .collect();
        names.into_iter().collect::<Vec<String>>()
    });
    environment.add_function("base", |path: &str| path.rsplit('/').next().unwrap_or_default().to_owned());
    Ok(environment.render_str(source, minijinja::context! {})?)
}
