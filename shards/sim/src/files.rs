//! Reloads as an operator has them: the text of a server file and of a users file, from which the shell makes the shards' snapshot. What is in force
//! then is held against what was meant, and what is wrong in the files must change nothing.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::net::IpAddr;
use std::time::Duration;

use ipnet::IpNet;
use tollgate::gateway::reload::successor;
use tollgate_config::ServerConfig;
use tollgate_shards::{ConnectionLimit, Fingerprint, Rate, SessionLimits, Snapshot, User, WhenReached};

use crate::oracle::Violation;
use crate::population::Population;
use crate::random::{Draws, Stream};

/// Of a thousand reloads, so many have a mistake.
const MISTAKEN_PERMILLE: u32 = 250;
const FORCED_PERMILLE: u32 = 500;
/// A second's worth; the longest burst that a file may name is far longer.
const BURST_MS_MAX: u64 = 1000;

/// What an operator does wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mistake {
    CutOff,
    UnknownKey,
    UserTwice,
    CredentialTwice,
    ForeignPool,
    NoRate,
    LimitWithoutNumber,
    NeedsRestart,
    Emptied,
}

const MISTAKES: [Mistake; 9] = [
    Mistake::CutOff,
    Mistake::UnknownKey,
    Mistake::UserTwice,
    Mistake::CredentialTwice,
    Mistake::ForeignPool,
    Mistake::NoRate,
    Mistake::LimitWithoutNumber,
    Mistake::NeedsRestart,
    Mistake::Emptied,
];

#[derive(Debug)]
pub struct Files {
    random: Stream,
    tunnel: IpNet,
    /// What the files in force say.
    config: ServerConfig,
}

impl Files {
    pub fn new(draws: &Draws, tunnel: IpNet, population: &Population) -> Self {
        let (server, users) = texts(tunnel, population, None);
        let config = ServerConfig::from_texts(&server, &users).expect("the files are right at first");
        Files { random: draws.stream("files"), tunnel, config }
    }

    /// Reads what the operator has written of `population`, to succeed `now`. `None` where that is refused, as it must be.
    pub fn reload(&mut self, now: &Snapshot, population: &Population) -> Result<Option<Snapshot>, Violation> {
        let mistake = self.random.permille(MISTAKEN_PERMILLE).then(|| self.random.pick(&MISTAKES));
        // Where there is no user, nobody is lost with the file.
        let mistake = mistake.filter(|mistake| *mistake != Mistake::Emptied || now.users.users().next().is_some());
        let is_forced = self.random.permille(FORCED_PERMILLE) && mistake != Some(Mistake::Emptied);
        let (server, users) = texts(self.tunnel, population, mistake);
        let result = ServerConfig::from_texts(&server, &users).map_err(|error| error.to_string());
        let result = result.and_then(|next| {
            let load = |_: &mut Vec<String>| Some(((), now.handshakes.clone()));
            let (snapshot, ()) =
                successor(now, &self.config, &next, is_forced, load).map_err(|reasons| reasons.join("; "))?;
            Ok((snapshot, next))
        });
        let is_right = mistake.is_none() && (is_forced || !few_remain(now, population));
        match result {
            Ok((snapshot, mut next)) if is_right => {
                as_meant(now, &snapshot, population).map_err(violation)?;
                next.users = snapshot.users.clone();
                self.config = next;
                Ok(Some(snapshot))
            }
            Ok(_) => Err(violation(format!("files were taken that have a mistake, {mistake:?}:\n{server}\n{users}"))),
            Err(_) if !is_right => Ok(None),
            Err(reasons) => Err(violation(format!("files were refused that are right: {reasons}\n{server}\n{users}"))),
        }
    }
}

/// Whether fewer than half of the users in force are meant to stay.
fn few_remain(now: &Snapshot, population: &Population) -> bool {
    let before = now.users.users().count();
    let stays = |name: &str| population.present().any(|user| user.name == name);
    let after = now.users.users().filter(|(_, user)| stays(&user.name)).count();
    2 * after < before
}

/// What decides who may log in, where and how fast.
type Meant = (Vec<Fingerprint>, Vec<(IpAddr, IpAddr)>, Option<ConnectionLimit>, Option<Rate>);

fn meant(user: &User) -> (String, Meant) {
    let mut credentials = user.credentials.clone();
    credentials.sort_unstable();
    let pool = user.pool.iter().map(|range| (range.first(), range.last())).collect();
    (user.name.clone(), (credentials, pool, user.connection_limit, user.limit.map(|limit| limit.rate)))
}

fn as_meant(now: &Snapshot, snapshot: &Snapshot, population: &Population) -> Result<(), String> {
    let should: BTreeMap<_, _> = population.present().map(meant).collect();
    let is: BTreeMap<_, _> = snapshot.users.users().map(|(_, user)| meant(user)).collect();
    let number = snapshot.version;
    let are_limits_meant = snapshot.session_limits == population.session_limits;
    if is != should
        || !are_limits_meant
        || snapshot.isolate_clients != population.isolate_clients
        || number != now.version + 1
    {
        let isolates = (snapshot.isolate_clients, population.isolate_clients);
        return Err(format!("snapshot {number} is {is:?}, and should be {should:?}; isolation {isolates:?}"));
    }
    Ok(())
}

/// The server file and the users file.
fn texts(tunnel: IpNet, population: &Population, mistake: Option<Mistake>) -> (String, String) {
    let isolates = population.isolate_clients;
    let port = if mistake == Some(Mistake::NeedsRestart) { 4433 } else { 55555 };
    let server = format!(
        "name = \"gateway\"\ntunnel_network = \"{tunnel}\"\nusers_file = \"users.toml\"\nbind_port = {port}\n\
         isolate_clients = {isolates}\n[protocol]\nmode = \"tls\"\ncertificate_file = \"certificate.pem\"\n\
         certificate_key_file = \"key.pem\"\n[sessions]\n{}",
        sessions(&population.session_limits)
    );
    let mut users = String::new();
    population.present().filter(|_| mistake != Some(Mistake::Emptied)).for_each(|user| write_user(&mut users, user));
    let more = match mistake {
        None | Some(Mistake::NeedsRestart | Mistake::Emptied) => "",
        Some(Mistake::CutOff) => "[users.last]\nauthorized_certs = [\"sha256:2f0d3f6f1c9a4b",
        Some(Mistake::UnknownKey) => "[users.last]\nbandwith_limit = \"1 mbps\"\n",
        Some(Mistake::UserTwice) => "[users.last]\n[users.last]\n",
        Some(Mistake::CredentialTwice) => {
            "[users.last]\nauthorized_certs = [\"CERTIFICATE\"]\n[users.very_last]\nauthorized_certs = [\"CERTIFICATE\"]\n"
        }
        Some(Mistake::ForeignPool) => "[users.last]\naddress_pool = [\"203.0.113.7/32\"]\n",
        Some(Mistake::NoRate) => "[users.last]\nbandwidth_limit = \"fast\"\n",
        Some(Mistake::LimitWithoutNumber) => "[users.last]\nwhen_reached = \"close_oldest\"\n",
    };
    users.push_str(&more.replace("CERTIFICATE", &format!("sha256:{}", "2f".repeat(32))));
    (server, users)
}

/// What the server file's `[sessions]` says.
fn sessions(limits: &SessionLimits) -> String {
    let SessionLimits { idle_max, length_max, ends_with_certificate } = *limits;
    let line = |key: &str, time: Option<Duration>| time.map(|time| format!("{key} = {}\n", time.as_secs()));
    let [idle, length] =
        [line("idle_timeout_s", idle_max), line("max_duration_s", length_max)].map(Option::unwrap_or_default);
    format!("{idle}{length}enforce_certificate_expiry = {ends_with_certificate}\n")
}

fn write_user(text: &mut String, user: &User) {
    let listed = |items: Vec<String>| items.iter().map(|item| format!("\"{item}\"")).collect::<Vec<_>>().join(", ");
    let certificates = listed(user.credentials.iter().map(ToString::to_string).collect());
    let pool = listed(user.pool.iter().map(|range| format!("{} - {}", range.first(), range.last())).collect());
    let _ = write!(text, "[users.{}]\nauthorized_certs = [{certificates}]\naddress_pool = [{pool}]\n", user.name);
    if let Some(limit) = user.limit {
        let bits_per_s = limit.rate.bits_per_s();
        let burst_ms = (limit.burst_bytes.saturating_mul(8000) / bits_per_s).clamp(1, BURST_MS_MAX);
        let _ = write!(text, "bandwidth_limit = \"{bits_per_s} bps\"\nburst_ms = {burst_ms}\n");
    }
    if let Some(ConnectionLimit { connections_max, when_reached }) = user.connection_limit {
        let reached = if when_reached == WhenReached::RefuseNew { "refuse_new" } else { "close_oldest" };
        let _ = write!(text, "max_connections = {connections_max}\nwhen_reached = \"{reached}\"\n");
    }
}

fn violation(what: String) -> Violation {
    Violation::new("files", what)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::gateway::Gateway;
    use crate::plan::{Features, Plan};

    #[test]
    fn right_files_are_in_force_as_meant_and_each_mistake_is_refused() {
        for seed in 0..20 {
            let plan = Plan::new(seed, Features::ALL, Duration::ZERO);
            let now = Gateway::new(&plan, crate::world::origin()).snapshot;
            let population = Population::new(&plan);
            let read = |mistake| {
                let (server, users) = texts(plan.tunnel, &population, mistake);
                ServerConfig::from_texts(&server, &users).map_err(|error| error.to_string())
            };
            let config = read(None).unwrap();
            let succeed = |next: &ServerConfig| {
                let load = |_: &mut Vec<String>| Some(((), now.handshakes.clone()));
                successor(&now, &config, next, false, load).map(|(snapshot, ())| snapshot)
            };
            let snapshot = succeed(&config).unwrap();
            as_meant(&now, &snapshot, &population).unwrap();
            let mut other = population.clone();
            other.set_present(0, false);
            assert!(as_meant(&now, &snapshot, &other).is_err());
            for mistake in MISTAKES {
                let is_refused = read(Some(mistake)).map_or(true, |next| succeed(&next).is_err());
                assert!(is_refused, "{mistake:?}");
            }
        }
    }
}
