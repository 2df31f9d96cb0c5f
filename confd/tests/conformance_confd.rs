//! The BGP conformance cases. Classic syntax: token for token the expected files, from the program and from a
//! model that is kept and fed differences. BIRD 2: every step parses, and holds the same routes, filters and
//! options.
// Helpers of tests are tests as well.
#![allow(clippy::unwrap_used)]

mod support;

use std::collections::{BTreeMap, BTreeSet};
use std::process::Command;

use confd::bgp::{LocalSettings, Model};
use confd::render::{Rendered, Syntax, render};
use syncer_common::model::{Key, Update, Value};

use support::cases::{Case, Step, cases, required, tokens};
use support::lab::bird;

fn file(rendered: &[Rendered], name: &str) -> Option<String> {
    let mut files = rendered.iter().flat_map(|one| &one.files);
    files.find(|file| file.name == name).map(|file| file.text.clone())
}

#[test]
fn the_program_writes_the_expected_tokens() {
    let Some(cases) = cases() else { return };
    let (mut steps, mut wrong) = (0, Vec::new());
    let out = tempfile::tempdir().unwrap();
    for (case, step) in all_steps(&cases) {
        let out = out.path().join(&step.name);
        let ran = Command::new(env!("CARGO_BIN_EXE_confd"))
            .args(["render", "--syntax", "classic", "--node", &case.environment["NODENAME"], "--manifests"])
            .arg(step.dir.join("input.yaml"))
            .arg("--out")
            .arg(&out)
            .env_clear()
            .envs(&case.environment)
            .current_dir(&case.dir)
            .output()
            .unwrap();
        assert!(ran.status.success(), "{}: {}", step.name, String::from_utf8_lossy(&ran.stderr));
        wrong.extend(step.differences(|name| std::fs::read_to_string(out.join(name)).ok()));
        steps += 1;
    }
    println!("{steps} steps compared");
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn a_model_that_is_fed_differences_ends_at_the_same_tokens() {
    let Some(cases) = cases() else { return };
    let mut wrong = Vec::new();
    for case in &cases {
        let (mut model, mut held) = (Model::default(), BTreeMap::<Key, Value>::new());
        for step in &case.steps {
            let read = step.manifests();
            let mut wanted = BTreeMap::new();
            for Update { key, value } in read.updates {
                match value {
                    Ok(value) => wanted.insert(key, value),
                    Err(_) => wanted.remove(&key),
                };
            }
            for (key, value) in &wanted {
                if held.get(key) != Some(value) {
                    model.on_update(Update::set(key.clone(), value.clone()));
                }
            }
            for key in held.keys().filter(|key| !wanted.contains_key(key)) {
                model.on_update(Update::delete(key.clone()));
            }
            held = wanted;
            model.set_secrets(read.secrets);
            model.set_workloads(case.state().workloads);
            let rendered = render(&model.compute(&case.local()), Syntax::Classic);
            wrong.extend(step.differences(|name| file(&rendered, name)));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn every_step_renders_to_a_file_that_stock_bird_parses() {
    let Some(cases) = cases() else { return };
    let Some(bird) = bird() else {
        assert!(!required(), "BIRD is not installed");
        println!("SKIPPED: BIRD is not installed");
        return;
    };
    let out = tempfile::tempdir().unwrap();
    let (mut parsed, mut failures) = (0, Vec::new());
    for (case, step) in all_steps(&cases) {
        let path = out.path().join("bird.cfg");
        std::fs::write(&path, bird2(case, step, &case.local())).unwrap();
        let check = Command::new(&bird).arg("-p").arg("-c").arg(&path).output().unwrap();
        if check.status.success() {
            parsed += 1;
        } else {
            failures.push(format!("{}: {}", step.name, String::from_utf8_lossy(&check.stderr)));
        }
    }
    println!("{parsed} steps parse");
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

#[test]
fn what_both_syntaxes_say_alike_is_the_same_for_bird2() {
    let Some(cases) = cases() else { return };
    let mut wrong = Vec::new();
    for (case, step) in all_steps(&cases) {
        if step.expected("bird.cfg").is_none() {
            continue;
        }
        let text = bird2(case, step, &case.local());
        let files = ["bird.cfg", "bird6.cfg", "bird_aggr.cfg", "bird6_aggr.cfg"];
        let theirs: BTreeSet<String> =
            files.iter().flat_map(|name| statements(&step.expected(name).unwrap())).collect();
        let ours = statements(&text);
        wrong.extend(theirs.difference(&ours).map(|text| format!("{}: lacks {text}", step.name)));
        wrong.extend(ours.difference(&theirs).map(|text| format!("{}: has {text}", step.name)));

        let theirs: BTreeMap<String, BTreeSet<String>> =
            files.iter().flat_map(|name| peers(&step.expected(name).unwrap(), false)).collect();
        let ours = peers(&text, true);
        for name in ours.keys().chain(theirs.keys()).collect::<BTreeSet<_>>() {
            let (ours, theirs) = (ours.get(name), theirs.get(name));
            if ours != theirs {
                wrong.push(format!("{}: {name}: ours {ours:?}, not {theirs:?}", step.name));
            }
        }
        let functions = |text: &str| -> BTreeSet<String> { functions(text).into_iter().collect() };
        let theirs: BTreeSet<String> =
            files.iter().flat_map(|name| functions(&step.expected(name).unwrap())).collect();
        // Filters that nobody uses are left out.
        wrong.extend(functions(&text).difference(&theirs).map(|text| format!("{}: has {text}", step.name)));
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn without_its_password_or_filter_no_peering_is_opened() {
    let Some(cases) = cases() else { return };
    let case = cases.iter().find(|case| case.id == "password").expect("the case of passwords");
    let local = LocalSettings { incomplete_peers: Default::default(), ..case.local() };
    let names = |step: &Step| peers(&bird2(case, step, &local), true).into_keys().collect::<Vec<_>>();
    assert!(names(&case.steps[0]).is_empty(), "no Secret");
    assert_eq!(names(&case.steps[1]), ["Node_10_24_0_3"], "one key of one Secret");
    assert_eq!(names(&case.steps[2]).len(), 3);
    let case = cases.iter().find(|case| case.id == "bgpfilter__filter_deletion").expect("a deleted filter");
    assert!(!peers(&bird2(case, &case.steps[0], &local_of(case)), true).is_empty());
    assert!(peers(&bird2(case, &case.steps[1], &local_of(case)), true).is_empty());
}

fn local_of(case: &Case) -> LocalSettings {
    LocalSettings { incomplete_peers: Default::default(), ..case.local() }
}

fn all_steps(cases: &[Case]) -> impl Iterator<Item = (&Case, &Step)> {
    cases.iter().flat_map(|case| case.steps.iter().map(move |step| (case, step)))
}

fn bird2(case: &Case, step: &Step, local: &LocalSettings) -> String {
    let read = step.manifests();
    let mut model = Model::default();
    read.updates.into_iter().for_each(|update| {
        model.on_update(update);
    });
    model.set_secrets(read.secrets);
    model.set_workloads(case.state().workloads);
    render(&model.compute(local), Syntax::Bird2)[0].text().to_owned()
}

/// Static routes, block filters, communities and the router ID.
fn statements(text: &str) -> BTreeSet<String> {
    const KNOWN: [&str; 3] = ["route ", "router id ", "if net = "];
    let plain = text.lines().map(|line| line.split('#').next().unwrap_or_default());
    plain
        .flat_map(|line| line.split([';', '{', '}']))
        .map(|part| part.replace("( net", "net").replace(" ) then", " then"))
        .map(|part| part.split_whitespace().collect::<Vec<_>>().join(" "))
        .map(|part| part.strip_suffix(" accept").map(str::to_owned).unwrap_or(part))
        .filter(|part| KNOWN.iter().any(|known| part.starts_with(known)))
        .collect()
}

/// The functions of BGPFilters, as tokens.
fn functions(text: &str) -> Vec<String> {
    let tokens = tokens(text);
    let starts =
        (0..tokens.len()).filter(|at| tokens[*at] == "function" && tokens[at + 1].starts_with("'bgp_"));
    let function = |start: usize| {
        let mut depth = 0;
        let length = tokens[start..].iter().position(|token| {
            depth += i32::from(*token == "{") - i32::from(*token == "}");
            depth == 0 && *token == "}"
        });
        tokens[start..=start + length.unwrap()].join(" ")
    };
    starts.map(function).collect()
}

/// The peers of a file with their options, in the words of BIRD 1.
fn peers(text: &str, bird2: bool) -> BTreeMap<String, BTreeSet<String>> {
    const ALIKE: [&str; 8] = [
        "neighbor ",
        "graceful restart time ",
        "keepalive time ",
        "rr client",
        "rr cluster id ",
        "password ",
        "allow local as ",
        "next hop ",
    ];
    let plain: Vec<&str> = text.lines().map(|line| line.split(" #").next().unwrap_or_default()).collect();
    let plain = plain.join("\n");
    let mut peers = BTreeMap::new();
    for part in plain.split("protocol bgp ").skip(1) {
        let (name, body) = part.split_once(" from ").unwrap();
        let words = |text: &str| text.split_whitespace().collect::<Vec<_>>().join(" ");
        let statements: Vec<String> = body.split([';', '{', '}']).map(words).collect();
        let mut options: BTreeSet<String> = statements
            .iter()
            .filter(|statement| ALIKE.iter().any(|known| statement.starts_with(known)))
            .cloned()
            .collect();
        // Said in other words: the kind of peer, its filters, and how far away it may be.
        let internal =
            if bird2 { body.starts_with("ibgp") } else { body.contains("calico_export_to_bgp_peers(true)") };
        options.insert(format!("internal {internal}"));
        if let Some(multihop) = statements.iter().find(|statement| statement.starts_with("multihop ")) {
            assert!(statements.contains(&"ttl security on".to_owned()), "{name}");
            options.insert(multihop.clone());
        }
        peers.insert(name.trim().to_owned(), options);
    }
    peers
}
