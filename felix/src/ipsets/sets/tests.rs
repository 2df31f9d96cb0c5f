use std::net::Ipv4Addr;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};

use async_trait::async_trait;

use super::*;
use crate::commands::OnLine;

/// Remembers what it was asked to do; `save` answers a given text, or half of it and fails; restores fail as often as told.
#[derive(Default)]
struct FakeIpset {
    saved: Mutex<String>,
    breaks_off: AtomicBool,
    restores: Mutex<Vec<String>>,
    failures: Mutex<usize>,
}

#[async_trait]
impl Commands for FakeIpset {
    async fn lines(
        &self,
        _program: &str,
        args: &[&str],
        stdin: &str,
        line: &mut OnLine<'_>,
    ) -> Result<(), CommandError> {
        match args {
            ["save"] => {
                let saved = self.saved.lock().unwrap();
                let breaks_off = self.breaks_off.load(Ordering::SeqCst);
                let all = saved.lines().count();
                saved.lines().take(if breaks_off { all / 2 } else { all }).for_each(line);
                if breaks_off { Err(failed("save")) } else { Ok(()) }
            }
            ["restore"] => {
                let mut failures = self.failures.lock().unwrap();
                if *failures > 0 {
                    *failures -= 1;
                    return Err(failed("restore"));
                }
                self.restores.lock().unwrap().push(stdin.into());
                Ok(())
            }
            other => {
                self.restores.lock().unwrap().push(other.join(" "));
                Ok(())
            }
        }
    }
}

fn failed(verb: &str) -> CommandError {
    CommandError::Failed { command: format!("ipset {verb}"), status: 1, stderr: "no".into() }
}

impl FakeIpset {
    fn take(&self) -> String {
        std::mem::take(&mut *self.restores.lock().unwrap()).join("--\n")
    }
}

fn setup(saved: &str) -> (Arc<FakeIpset>, IpSets) {
    let fake = Arc::new(FakeIpset { saved: Mutex::new(saved.into()), ..FakeIpset::default() });
    (fake.clone(), IpSets::new(IpVersion::V4, fake, 100))
}

#[tokio::test]
async fn a_set_that_is_right_is_not_written() {
    let (fake, mut sets) = setup("create cali40a hash:net family inet maxelem 100\nadd cali40a 10.0.0.0/8\n");
    sets.replace("a", IpSetKind::Net, ["10.0.0.0/8", "fe80::/10"]);
    assert_eq!(sets.apply_updates().await.unwrap(), 0);
    assert_eq!(fake.take(), "");
    assert!(!sets.has_updates() && !sets.has_deletions());
}

#[tokio::test]
async fn only_the_difference_is_written() {
    let (fake, mut sets) = setup(
        "create cali40a hash:net family inet maxelem 100\nadd cali40a 10.0.0.0/8\nadd cali40a 1.1.1.1\n",
    );
    sets.replace("a", IpSetKind::Net, ["10.0.0.0/8", "2.2.2.2/32"]);
    sets.apply_updates().await.unwrap();
    assert_eq!(fake.take(), "del cali40a 1.1.1.1 -exist\nadd cali40a 2.2.2.2 -exist\n");
    sets.change("a", ["3.3.3.3", "10.0.0.0/8"], ["2.2.2.2", "9.9.9.9"]);
    sets.change("a", ["4.4.4.4"], ["3.3.3.3"]);
    sets.apply_updates().await.unwrap();
    assert_eq!(fake.take(), "del cali40a 2.2.2.2 -exist\nadd cali40a 4.4.4.4 -exist\n");
}

#[tokio::test]
async fn other_parameters_are_swapped_in() {
    let (fake, mut sets) = setup("create cali40a hash:net family inet maxelem 5\nadd cali40a 10.0.0.0/8\n");
    sets.replace("a", IpSetKind::Net, ["10.0.0.0/8"]);
    sets.apply_updates().await.unwrap();
    assert_eq!(
        fake.take(),
        "create cali4t0 hash:net family inet maxelem 100\nadd cali4t0 10.0.0.0/8 -exist\nswap cali4t0 cali40a\ndestroy cali4t0\n"
    );
}

#[tokio::test]
async fn leftovers_are_deleted_and_what_returns_is_only_changed() {
    let (fake, mut sets) = setup("create cali40old hash:ip family inet maxelem 100\n");
    sets.replace("a", IpSetKind::Ip, ["10.0.0.1"]);
    sets.apply_updates().await.unwrap();
    assert!(sets.has_deletions());
    assert_eq!(sets.apply_deletions().await, 1);
    assert!(fake.take().ends_with("destroy cali40old"));

    sets.remove("a");
    assert!(!sets.has_updates() && sets.has_deletions());
    sets.replace("a", IpSetKind::Ip, ["10.0.0.1", "10.0.0.2"]);
    assert!(!sets.has_deletions());
    sets.apply_updates().await.unwrap();
    assert_eq!(fake.take(), "add cali40a 10.0.0.2 -exist\n");
}

#[tokio::test]
async fn after_a_failure_the_kernel_is_read_and_each_set_written_alone() {
    let (fake, mut sets) = setup("");
    sets.apply_updates().await.unwrap();
    *fake.failures.lock().unwrap() = 1;
    sets.replace("a", IpSetKind::Ip, ["10.0.0.1"]);
    sets.replace("b", IpSetKind::Ip, ["10.0.0.2"]);
    assert!(sets.apply_updates().await.is_err());
    assert!(sets.has_updates());
    *fake.saved.lock().unwrap() = "create cali40a hash:ip family inet maxelem 100\n".into();
    assert_eq!(sets.apply_updates().await.unwrap(), 3);
    assert_eq!(
        fake.take(),
        "add cali40a 10.0.0.1 -exist\n--\ncreate cali40b hash:ip family inet maxelem 100\nadd cali40b 10.0.0.2 -exist\n"
    );
}

#[tokio::test]
async fn nonsense_members_leave_the_rest_in_place() {
    let (fake, mut sets) = setup("");
    sets.replace("a", IpSetKind::Ip, ["10.0.0.1", "example.com"]);
    sets.apply_updates().await.unwrap();
    assert_eq!(fake.take(), "create cali40a hash:ip family inet maxelem 100\nadd cali40a 10.0.0.1 -exist\n");
}

#[tokio::test]
async fn a_reading_that_breaks_off_says_nothing() {
    let saved = "create cali40a hash:ip family inet maxelem 100\nadd cali40a 10.0.0.1\n\
        create cali40b hash:ip family inet maxelem 100\nadd cali40b 10.0.0.2\n";
    let (fake, mut sets) = setup(saved);
    sets.replace("a", IpSetKind::Ip, ["10.0.0.1"]);
    sets.replace("b", IpSetKind::Ip, ["10.0.0.2"]);
    sets.apply_updates().await.unwrap();
    fake.breaks_off.store(true, Ordering::SeqCst);
    sets.queue_resync();
    assert!(sets.apply_updates().await.is_err());
    assert!(sets.has_updates() && sets.dirty.is_empty());
    fake.breaks_off.store(false, Ordering::SeqCst);
    assert_eq!(sets.apply_updates().await.unwrap(), 0);
    assert_eq!(fake.take(), "");
}

#[tokio::test]
async fn many_members_are_written_in_parts() {
    let (fake, mut sets) = setup("");
    let members: Vec<String> = (0..BATCH_LINES).map(|n| Ipv4Addr::from(n as u32).to_string()).collect();
    for (id, count) in [("a", 10), ("b", BATCH_LINES - 20), ("c", 10), ("d", BATCH_LINES), ("e", 1)] {
        sets.replace(id, IpSetKind::Ip, members[..count].iter().map(String::as_str));
    }
    sets.apply_updates().await.unwrap();
    let parts = std::mem::take(&mut *fake.restores.lock().unwrap());
    let made = |text: &String| -> Vec<String> {
        text.lines()
            .filter_map(|line| line.strip_prefix("create cali40"))
            .map(|line| line[..1].to_owned())
            .collect()
    };
    let made: Vec<_> = parts.iter().map(made).collect();
    assert_eq!(made, [&["a", "b"][..], &["c"], &["d"], &["e"]]);
    assert!(!sets.has_updates());
}
