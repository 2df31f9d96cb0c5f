//! What BIRD says about its BGP sessions, typed, and what changed between two readings.

use std::collections::BTreeMap;
use std::fmt;

use super::control::Reply;

const PROTOCOL_ROW: u16 = 1002;
const PROTOCOL_DETAIL: u16 = 1006;

/// The state of a session, in the words of the protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum State {
    Established,
    OpenConfirm,
    OpenSent,
    Connect,
    Active,
    Passive,
    Idle,
    Down,
    Other,
}

impl State {
    pub const ALL: [State; 9] = [
        State::Established,
        State::OpenConfirm,
        State::OpenSent,
        State::Connect,
        State::Active,
        State::Passive,
        State::Idle,
        State::Down,
        State::Other,
    ];

    pub fn name(self) -> &'static str {
        match self {
            State::Established => "Established",
            State::OpenConfirm => "OpenConfirm",
            State::OpenSent => "OpenSent",
            State::Connect => "Connect",
            State::Active => "Active",
            State::Passive => "Passive",
            State::Idle => "Idle",
            State::Down => "Down",
            State::Other => "Other",
        }
    }

    fn from_name(name: &str) -> Option<State> {
        Self::ALL.into_iter().find(|state| state.name() == name)
    }
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A BGP protocol of the running BIRD.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Session {
    pub name: String,
    pub state: State,
    pub since: String,
    /// Why it is not up, in BIRD's words.
    pub reason: Option<String>,
    /// Routes that it gave us; only in a full reading.
    pub imported: Option<u64>,
    pub exported: Option<u64>,
}

impl Session {
    pub fn is_up(&self) -> bool {
        self.state == State::Established
    }

    /// Keeps the time of the last reading if it is the same one: BIRD computes it anew from its clocks each time, and may
    /// say a millisecond more or less.
    pub(super) fn steady(&mut self, last: &Session) {
        let same = match (milliseconds(&self.since), milliseconds(&last.since)) {
            (Some(now), Some(then)) => now.abs_diff(then) <= 2,
            _ => false,
        };
        if same && self.state == last.state {
            self.since.clone_from(&last.since);
        }
    }

    /// The same, for the datastore. A peer's address and type are in the session's name.
    pub fn report(&self) -> typha_client::BgpSession {
        let name = self.name.strip_prefix("Local_").unwrap_or(&self.name);
        let (origin, rest) = name.split_once('_').unwrap_or(("", name));
        let rest = rest.split("_port_").next().unwrap_or(rest);
        let dots = rest.replace('_', ".");
        let peer = match dots.parse::<std::net::Ipv4Addr>() {
            Ok(_) => dots,
            Err(_) => rest.replace('_', ":"),
        };
        let kind = match origin {
            "Mesh" => "node-to-node mesh",
            "Node" => "node specific",
            "Workload" => "local workload",
            _ => "global",
        };
        typha_client::BgpSession {
            peer,
            r#type: kind.to_owned(),
            state: self.state.name().to_owned(),
            info: self.reason.clone().unwrap_or_default(),
            since: self.since.split('.').next().unwrap_or_default().to_owned(),
        }
    }
}

/// Of a time of day as BIRD prints it, `04:59:40.123`; older ones are dates.
fn milliseconds(since: &str) -> Option<u64> {
    let (time, fraction) = since.split_once('.')?;
    let mut seconds = 0;
    for part in time.split(':') {
        seconds = seconds * 60 + part.parse::<u64>().ok()?;
    }
    (fraction.len() == 3).then_some(())?;
    Some(seconds * 1_000 + fraction.parse::<u64>().ok()?)
}

/// Reads `show protocols` and `show protocols all`; protocols that are not BGP are passed over.
pub fn parse(reply: &Reply) -> Vec<Session> {
    let mut sessions: Vec<Session> = Vec::new();
    // Details follow the row of their protocol, which may be one that is passed over.
    let mut in_session = false;
    for line in &reply.lines {
        match line.code {
            PROTOCOL_ROW => {
                let session = row(&line.text);
                in_session = session.is_some();
                sessions.extend(session);
            }
            PROTOCOL_DETAIL if in_session => {
                if let Some(session) = sessions.last_mut() {
                    detail(session, line.text.trim());
                }
            }
            _ => {}
        }
    }
    sessions
}

/// `name proto table state since info`, the info being the BGP state and, if there is one, the last error.
fn row(text: &str) -> Option<Session> {
    let mut words = text.split_whitespace();
    let name = words.next()?;
    let protocol = words.next()?;
    let _table = words.next()?;
    let running = words.next()?;
    let since = words.next()?;
    if protocol != "BGP" {
        return None;
    }
    let info: Vec<&str> = words.collect();
    let (state, reason) = match info.first().and_then(|first| State::from_name(first)) {
        Some(state) => (state, info[1..].join(" ")),
        None if running == "down" => (State::Down, info.join(" ")),
        None => (State::Other, info.join(" ")),
    };
    Some(Session {
        name: name.to_owned(),
        state,
        since: since.to_owned(),
        reason: (!reason.is_empty() && state != State::Established).then_some(reason),
        imported: None,
        exported: None,
    })
}

fn detail(session: &mut Session, text: &str) {
    if let Some(error) = text.strip_prefix("Last error:") {
        if !session.is_up() && session.reason.is_none() {
            session.reason = Some(error.trim().to_owned());
        }
    } else if let Some(counts) = text.strip_prefix("Routes:") {
        for count in counts.split(',') {
            let mut words = count.split_whitespace();
            let (Some(Ok(number)), Some(what)) = (words.next().map(str::parse::<u64>), words.next()) else {
                continue;
            };
            match what {
                "imported" => session.imported = Some(session.imported.unwrap_or(0) + number),
                "exported" => session.exported = Some(session.exported.unwrap_or(0) + number),
                _ => {}
            }
        }
    }
}

/// A session that came up, went down, or is gone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    Up { name: String },
    Down { name: String, state: State, reason: Option<String> },
    Removed { name: String },
}

/// What changed from one reading to the next. A session that was never up is not reported as down.
pub fn changes(before: &[Session], after: &[Session]) -> Vec<Change> {
    let was: BTreeMap<&str, &Session> =
        before.iter().map(|session| (session.name.as_str(), session)).collect();
    let is: BTreeMap<&str, &Session> = after.iter().map(|session| (session.name.as_str(), session)).collect();
    let mut changes = Vec::new();
    for (name, session) in &is {
        let was_up = was.get(name).is_some_and(|session| session.is_up());
        match (was_up, session.is_up()) {
            (false, true) => changes.push(Change::Up { name: (*name).to_owned() }),
            (true, false) => changes.push(Change::Down {
                name: (*name).to_owned(),
                state: session.state,
                reason: session.reason.clone(),
            }),
            _ => {}
        }
    }
    for name in was.keys().filter(|name| !is.contains_key(*name)) {
        changes.push(Change::Removed { name: (*name).to_owned() });
    }
    changes
}

#[cfg(test)]
mod tests {
    use super::super::control::ReplyLine;
    use super::*;

    fn reply(lines: &[(u16, &str)]) -> Reply {
        Reply {
            lines: lines.iter().map(|(code, text)| ReplyLine { code: *code, text: (*text).into() }).collect(),
        }
    }

    #[test]
    fn reports_name_the_peer_and_its_type() {
        for (name, peer, kind) in [
            ("Mesh_10_0_0_2", "10.0.0.2", "node-to-node mesh"),
            ("Node_fd00__2", "fd00::2", "node specific"),
            ("Node_10_0_0_3_port_1790", "10.0.0.3", "node specific"),
            ("Local_Workload_10_0_0_4", "10.0.0.4", "local workload"),
            ("Global_fd00_0_0_0_0_0_0_1", "fd00:0:0:0:0:0:0:1", "global"),
        ] {
            let row = format!("{name} BGP --- up 04:59:40.218 Established");
            let report = parse(&reply(&[(1002, &row)]))[0].report();
            assert_eq!((report.peer.as_str(), report.r#type.as_str()), (peer, kind));
            assert_eq!((report.state.as_str(), report.since.as_str()), ("Established", "04:59:40"));
        }
    }

    #[test]
    fn rows_give_state_and_reason() {
        let sessions = parse(&reply(&[
            (2002, "Name       Proto      Table      State  Since         Info"),
            (1002, "device1    Device     ---        up     04:59:40.217  "),
            (1002, "    Mesh_10_0_0_2 BGP        ---        up     04:59:40.218  Established   "),
            (
                1002,
                "    Mesh_10_0_0_3 BGP  ---   start  04:59:40.218  Active        Socket: Connection refused",
            ),
            (1002, "    Node_10_0_0_4 BGP  ---   down   2026-11-20    Error: No listening socket"),
            (1002, "    Node_10_0_0_5 BGP  ---   start  04:59:40.217  Passive       "),
            (0, ""),
        ]));
        let seen: Vec<(&str, State, Option<&str>)> = sessions
            .iter()
            .map(|session| (session.name.as_str(), session.state, session.reason.as_deref()))
            .collect();
        assert_eq!(
            seen,
            [
                ("Mesh_10_0_0_2", State::Established, None),
                ("Mesh_10_0_0_3", State::Active, Some("Socket: Connection refused")),
                ("Node_10_0_0_4", State::Down, Some("Error: No listening socket")),
                ("Node_10_0_0_5", State::Passive, None),
            ]
        );
    }

    #[test]
    fn details_give_the_routes_of_their_own_session_only() {
        let sessions = parse(&reply(&[
            (1002, "kernel4    Kernel     master4    up     04:59:40.217"),
            (1006, "      Routes:         9 imported, 9 exported, 9 preferred"),
            (1002, "Mesh_10_0_0_2 BGP        ---        up     04:59:40.218  Established"),
            (1006, "  BGP state:          Established"),
            (1006, "  Channel ipv4"),
            (1006, "    Routes:         2 imported, 1 filtered, 3 exported, 2 preferred"),
            (0, ""),
        ]));
        assert_eq!(sessions.len(), 1);
        assert_eq!((sessions[0].imported, sessions[0].exported), (Some(2), Some(3)));
    }

    #[test]
    fn a_time_that_only_jitters_stays_the_same() {
        let session = |since: &str, state: &str| {
            parse(&reply(&[(1002, &format!("Mesh_10_0_0_2 BGP --- up {since} {state}"))])).remove(0)
        };
        let steady = |then: &str, now: &str, state: &str| {
            let mut read = session(now, state);
            read.steady(&session(then, "Established"));
            read.since
        };
        assert_eq!(steady("04:59:59.999", "05:00:00.000", "Established"), "04:59:59.999");
        assert_eq!(steady("04:59:59.999", "05:00:00.002", "Established"), "05:00:00.002", "another session");
        assert_eq!(steady("04:59:59.999", "05:00:00.000", "Active"), "05:00:00.000", "another state");
        assert_eq!(steady("04:59:59.999", "2026-11-20", "Established"), "2026-11-20");
    }

    #[test]
    fn changes_are_reported_once_and_a_first_failure_is_none() {
        let session = |name: &str, state| Session {
            name: name.into(),
            state,
            since: String::new(),
            reason: Some("Hold timer expired".into()).filter(|_| state != State::Established),
            imported: None,
            exported: None,
        };
        let before =
            [session("a", State::Established), session("b", State::Active), session("c", State::Established)];
        let after =
            [session("a", State::Idle), session("b", State::Established), session("d", State::Active)];
        assert_eq!(
            changes(&before, &after),
            [
                Change::Down {
                    name: "a".into(),
                    state: State::Idle,
                    reason: Some("Hold timer expired".into())
                },
                Change::Up { name: "b".into() },
                Change::Removed { name: "c".into() },
            ]
        );
        assert!(changes(&after, &after).is_empty());
    }
}
