//! Runs the built program, as an operator would.

#![allow(dead_code)] // each test binary uses its part

use std::io::Write as _;
use std::process::{Child, Command, Output, Stdio};

/// `bulrushctl` with an environment of its own: nothing of the machine's settings gets in.
#[derive(Clone, Debug)]
pub struct Ctl {
    pub variables: Vec<(String, String)>,
    pub config: String,
}

/// How a command ended.
#[derive(Debug)]
pub struct Ended {
    pub code: i32,
    pub out: String,
    pub err: String,
}

impl Ctl {
    pub fn new(variables: &[(&str, &str)]) -> Self {
        let variables = variables.iter().map(|(n, v)| ((*n).to_owned(), (*v).to_owned())).collect();
        Self { variables, config: "kind: CalicoAPIConfig\nspec: {}\n".into() }
    }

    pub fn run(&self, args: &[&str]) -> Ended {
        self.run_with(args, "")
    }

    /// With a standard input.
    pub fn run_with(&self, args: &[&str], input: &str) -> Ended {
        self.start(args, input).end()
    }

    /// The output of a command that has to succeed.
    #[track_caller]
    pub fn ok(&self, args: &[&str]) -> String {
        let ended = self.run(args);
        assert_eq!(ended.code, 0, "{args:?}: {ended:?}");
        ended.out
    }

    /// `apply` of a text, which has to succeed.
    #[track_caller]
    pub fn apply(&self, text: &str) -> String {
        let ended = self.run_with(&["apply", "-f", "-"], text);
        assert_eq!(ended.code, 0, "{ended:?}");
        ended.out
    }

    pub fn start(&self, args: &[&str], input: &str) -> Running {
        let mut config = tempfile::NamedTempFile::new().expect("a temporary file");
        config.write_all(self.config.as_bytes()).expect("a temporary file");
        let mut child = Command::new(env!("CARGO_BIN_EXE_bulrushctl"))
            .env_clear()
            .envs(self.variables.iter().cloned())
            .arg("--config")
            .arg(config.path())
            .args(args)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("the program starts");
        let mut stdin = child.stdin.take().expect("stdin is piped");
        // A command that reads none may have ended already.
        stdin.write_all(input.as_bytes()).ok();
        drop(stdin);
        Running { child, _config: config }
    }
}

/// A command under way.
pub struct Running {
    pub child: Child,
    _config: tempfile::NamedTempFile,
}

impl Running {
    pub fn end(self) -> Ended {
        let Output { status, stdout, stderr } = self.child.wait_with_output().expect("the program ends");
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).expect("output in UTF-8");
        Ended { code: status.code().expect("no signal"), out: text(stdout), err: text(stderr) }
    }
}
