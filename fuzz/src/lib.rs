//! What must hold of any input: key paths, selectors, stored values, manifests, old forms, wire messages.
//!
//! A target is a plain function from bytes to what they led to, or to the property that they broke; a panic is
//! a broken property too. Two drivers feed the targets: `driver` here, seeded and on any toolchain
//! (`make fuzz`, and a short run in `cargo test`), and cargo-fuzz (`cargo-fuzz/`, needs nightly Rust).

pub mod driver;
mod mutate;
mod seeds;
mod targets;

pub use mutate::Form;

/// What an input led to, a line for each part of it, in a few words without the details; or the property that it
/// broke. Inputs that lead to something new are worth mutating further.
pub type Outcome = Result<String, String>;

#[derive(Clone, Copy)]
pub struct Target {
    pub name: &'static str,
    /// How its inputs are built, and so how they are mutated.
    pub form: Form,
    /// Inputs that are good.
    pub seeds: fn() -> Vec<Vec<u8>>,
    pub check: fn(&[u8]) -> Outcome,
    /// Executions of the short run.
    pub short: u64,
}

pub const TARGETS: [Target; 8] = [
    Target { name: "keys", form: Form::Text, seeds: seeds::keys, check: targets::keys::check, short: 60_000 },
    Target {
        name: "selectors",
        form: Form::Text,
        seeds: seeds::selectors,
        check: targets::selectors::check,
        short: 20_000,
    },
    // Objects as the datastore holds them, in the order in which they are written and deleted.
    Target {
        name: "values",
        form: Form::Objects,
        seeds: seeds::values,
        check: targets::values::check,
        short: 8_000,
    },
    // Values of the v1 model as JSON, below their keys.
    Target {
        name: "stored",
        form: Form::Objects,
        seeds: seeds::stored,
        check: targets::stored::check,
        short: 30_000,
    },
    Target {
        name: "manifests",
        form: Form::Text,
        seeds: seeds::manifests,
        check: targets::manifests::check,
        short: 2_000,
    },
    Target { name: "old", form: Form::Json, seeds: seeds::old, check: targets::old::check, short: 20_000 },
    Target {
        name: "kubernetes",
        form: Form::Objects,
        seeds: seeds::kubernetes,
        check: targets::kubernetes::check,
        short: 3_000,
    },
    Target {
        name: "wire",
        form: Form::Bytes,
        seeds: seeds::wire,
        check: targets::wire::check,
        short: 60_000,
    },
];

impl Target {
    pub fn by_name(name: &str) -> Option<Target> {
        TARGETS.into_iter().find(|target| target.name == name)
    }
}

/// For cargo-fuzz.
///
/// # Panics
/// When the input breaks a property of the target.
pub fn must_hold(name: &str, input: &[u8]) {
    let target = Target::by_name(name).expect("fuzz targets are named after targets");
    if let Err(broken) = (target.check)(input) {
        panic!("{broken}");
    }
}
