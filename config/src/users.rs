//! The users file: who may connect, how fast, and with which addresses.

use std::collections::HashMap;
use std::net::IpAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;
use tollgate_noise::{KeyError, Kind as KeyKind, PublicKey};
use tollgate_shards::{AddressRange, Fingerprint, Rate, User, Users};

use crate::document::Report;
use crate::error::{ConfigError, Place, Problem};
use crate::kind::{Kind, quoted, rate, text};
use crate::schema::{Declared, LIVE, Section, table};
use crate::sessions::{Sessions, UserSessions};
use crate::setting::Setting;
use crate::table::{Table, quoted_key};
use crate::usage::Quotas;
use crate::value;

/// Longest users file, in bytes.
pub const USERS_FILE_BYTES_MAX: u64 = 64 << 20;

const NAME_BYTES_MAX: usize = 128;

fn fingerprint() -> Kind<Fingerprint> {
    text(value::FINGERPRINT, value::fingerprint, Fingerprint::to_string)
}

/// A Noise public key. Quincy passes over what is none, and so does this program.
fn noise_key() -> Kind<PublicKey> {
    let expected = "write the base64 of a Noise public key, as `tollgate identity noise pubkey` prints it";
    let read = move |setting: Setting<'_>, report: &mut Report<'_>| {
        let (path, place) = (setting.path.clone(), setting.place.clone());
        let key = setting.parsed(report, expected, |text| Ok(PublicKey::parse(text)))?;
        let warn = |error: &KeyError| report.warn(place, &path, format!("is passed over: it is {error}"), expected);
        key.inspect_err(warn).ok()
    };
    Kind::new(expected, read, |key: &PublicKey| quoted(key))
}

fn range() -> Kind<AddressRange> {
    text(value::RANGE, value::range, |range| shown(*range))
}

table! {
    /// A user. Every key is optional.
    #[derive(Debug)]
    pub(crate) struct UserKeys of Quincy {
        /// Fingerprints of the certificates that log the user in, as `tollgate identity fingerprint CERTIFICATE` prints them.
        "authorized_certs" => certificates: Vec<(Place, Fingerprint)> = Vec::new(), fingerprint().placed(), LIVE;
        /// Noise public keys that log the user in, as `tollgate identity noise pubkey` prints them: of any kind, beside certificates or alone.
        /// What is no such key is passed over with a warning.
        "authorized_keys" => noise_keys: Vec<(Place, PublicKey)> = Vec::new(), noise_key().placed(), LIVE;
        /// The user's own limit.
        "bandwidth_limit" => limit: Option<Rate> = None, rate().optional("the server's default_bandwidth_limit"), LIVE.example("\"250 mbps\"");
        /// The only addresses that the user's connections get, and nobody else's do.
        "address_pool" => pool: Vec<(Place, AddressRange)> = Vec::new(), range().placed(), LIVE;
    }
}

/// What a user's table may hold.
pub(crate) fn table() -> Section {
    let (sessions, quotas) = (UserSessions::initial(), Quotas::default());
    UserKeys::initial().section("users.NAME").and(sessions.section("users.NAME")).and(quotas.section("users.NAME"))
}

/// Reads the `text` of the users file at `path` for a tunnel network whose host part is the server's address. What users do not have of
/// their own is as in `defaults`.
///
/// # Errors
///
/// If any of it is wrong: see [`ConfigError`].
pub(crate) fn parse(path: &Path, text: &str, network: IpNet, defaults: Defaults) -> Result<UsersFile, ConfigError> {
    let (mut report, mut root) = Report::open(path, text, std::iter::empty())?;
    let mut reading = Reading { network, defaults, ..Reading::default() };
    let mut table = root.table(&mut report, "users");
    for (name, user) in table.tables(&mut report) {
        reading.user(name, user, &mut report);
    }
    table.finish(&mut report);
    root.finish(&mut report);
    reading.refuse_overlaps(&mut report);
    let (_, ignored) = report.finish(())?;
    let users = Users::new(reading.users).map_err(|error| {
        ConfigError::one(Problem {
            place: Place::File(path.into()),
            key: "users".into(),
            what: format!("contradict each other: {error}"),
            remedy: "remove one of the two".into(),
        })
    })?;
    let (bursts, quotas) = (Arc::new(reading.bursts), Arc::new(reading.quotas));
    let credentials = reading.credentials.into();
    Ok(UsersFile { users: Arc::new(users), credentials, bursts, quotas, warnings: ignored.warnings })
}

/// What a users file says.
#[derive(Default)]
pub(crate) struct UsersFile {
    pub users: Arc<Users>,
    /// In the order of `users`.
    pub credentials: Arc<[Credentials]>,
    /// Of those who have a burst of their own.
    pub bursts: Arc<HashMap<String, Duration>>,
    /// Of those who have quotas of their own.
    pub quotas: Arc<HashMap<String, Quotas>>,
    pub warnings: Vec<String>,
}

/// What a user can log in with.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Credentials {
    /// How many certificates.
    pub certificates: usize,
    /// How many Noise keys of each kind, in the order of [`KeyKind::ALL`].
    pub noise_keys: [usize; KeyKind::ALL.len()],
}

/// What users have who have nothing of their own.
#[derive(Debug, Clone, Copy, Default)]
pub struct Defaults {
    /// The limit; `None` for no limit.
    pub limit: Option<Rate>,
    /// Connections and bursts.
    pub sessions: Sessions,
    /// What they may carry.
    pub quotas: Quotas,
    /// Whether usage is kept.
    pub keeps_usage: bool,
}

#[derive(Default)]
struct Reading {
    network: IpNet,
    defaults: Defaults,
    users: Vec<User>,
    credentials: Vec<Credentials>,
    bursts: HashMap<String, Duration>,
    quotas: HashMap<String, Quotas>,
    by_certificate: HashMap<Fingerprint, usize>,
    by_noise_key: HashMap<Fingerprint, usize>,
    claims: Vec<Claim>,
}

/// A user's claim to addresses.
struct Claim {
    range: AddressRange,
    user: usize,
    place: Place,
    path: String,
}

impl Reading {
    fn user(&mut self, name: String, mut table: Table<'_>, report: &mut Report<'_>) {
        let path = format!("users.{}", quoted_key(&name));
        let index = self.users.len();
        if name.is_empty() || name.len() > NAME_BYTES_MAX || name.chars().any(char::is_control) {
            let remedy = format!("give the user a name of 1 to {NAME_BYTES_MAX} bytes without control characters");
            report.wrong(table.place(), &path, "is not a usable name", remedy);
        }
        // First the user, so that problems can name it.
        self.users.push(User { name, ..User::default() });
        let mut keys = UserKeys::initial();
        keys.read_keys(&mut table, report);
        let mut credentials = Credentials::default();
        for (place, certificate) in keys.certificates {
            credentials.certificates += 1;
            if let Some(first) = self.by_certificate.insert(certificate, index) {
                self.refuse_twice(index, first, "authorized_certs", place, &certificate.to_string(), report);
            }
            self.users[index].credentials.push(certificate);
        }
        for (place, key) in keys.noise_keys {
            credentials.noise_keys[key.kind() as usize] += 1;
            let fingerprint = Fingerprint::of_key(&key);
            if let Some(first) = self.by_noise_key.insert(fingerprint, index) {
                self.refuse_twice(index, first, "authorized_keys", place, "a key", report);
            }
            self.users[index].credentials.push(fingerprint);
        }
        self.credentials.push(credentials);
        let Defaults { limit, sessions, quotas, keeps_usage } = self.defaults;
        let mut own_quotas = quotas;
        own_quotas.read_own(&mut table, report, keeps_usage);
        if own_quotas != quotas {
            self.quotas.insert(self.users[index].name.clone(), own_quotas);
        }
        let mut own = sessions.user;
        own.read_own(&mut table, report);
        if own.burst != sessions.user.burst {
            self.bursts.insert(self.users[index].name.clone(), own.burst);
        }
        self.users[index].limit = keys.limit.or(limit).map(|rate| sessions.limit(&own, rate));
        self.users[index].connection_limit = own.connection_limit();
        for (place, range) in keys.pool {
            let path = format!("{path}.address_pool");
            if self.is_usable(range, &place, &path, report) {
                self.users[index].pool.push(range);
                self.claims.push(Claim { range, user: index, place, path });
            }
        }
        let name = self.users[index].name.clone();
        for (place, rest) in table.take_nested() {
            let (dotted, path) = (format!("{name}.{rest}"), format!("{path}.{rest}"));
            let remedy = format!("if the user is {dotted}, quote the name: [users.{}]", quoted_key(&dotted));
            report.wrong(place, &path, "is a table within a user's", remedy);
        }
        table.finish(report);
    }

    fn refuse_twice(
        &self,
        user: usize,
        first: usize,
        key: &str,
        place: Place,
        credential: &str,
        report: &mut Report<'_>,
    ) {
        let (name, first) = (&self.users[user].name, &self.users[first].name);
        let path = format!("users.{}.{key}", quoted_key(name));
        let what = format!("lists {credential} again, which user '{first}' has already");
        report.wrong(place, &path, what, "list it once: it tells the gateway who connects");
    }

    /// Whether a client can have every address of `range`; notes the problem otherwise.
    fn is_usable(&self, range: AddressRange, place: &Place, path: &str, report: &mut Report<'_>) -> bool {
        let network = self.network;
        let (first, last) = (range.first(), range.last());
        let remedy = format!("stay within {} and leave the server's address {} out", network.trunc(), network.addr());
        if !network.contains(&first) || !network.contains(&last) {
            let what = format!("has {}, which is not inside the tunnel network {}", shown(range), network.trunc());
            report.wrong(place.clone(), path, what, remedy);
            return false;
        }
        let reserved = [
            (network.addr(), "the server's address"),
            (network.network(), "the network's own address"),
            (network.broadcast(), "the broadcast address"),
        ];
        if let Some((address, role)) = reserved.into_iter().find(|(address, _)| range.contains(*address)) {
            let what = format!("has {}, which contains {role} {address}", shown(range));
            report.wrong(place.clone(), path, what, remedy);
            return false;
        }
        true
    }

    /// Notes each claim that overlaps one below it.
    fn refuse_overlaps(&mut self, report: &mut Report<'_>) {
        self.claims.sort_by_key(|claim| (claim.range.first(), claim.range.last()));
        // The claim that reaches furthest so far: any claim that overlaps an earlier one overlaps this one.
        let mut reach: Option<&Claim> = None;
        for claim in &self.claims {
            if let Some(other) = reach.filter(|other| other.range.last() >= claim.range.first()) {
                // Blame the one further down in the file.
                let (blamed, first) = if other.place > claim.place { (other, claim) } else { (claim, other) };
                let (name, first_name) = (&self.users[blamed.user].name, &self.users[first.user].name);
                let what = format!(
                    "gives user '{name}' {}, which overlaps {} of user '{first_name}'",
                    shown(blamed.range),
                    shown(first.range)
                );
                report.wrong(blamed.place.clone(), &blamed.path, what, "give each address to one user, once");
            }
            if reach.is_none_or(|other| other.range.last() < claim.range.last()) {
                reach = Some(claim);
            }
        }
    }
}

fn shown(range: AddressRange) -> String {
    let (first, last): (IpAddr, IpAddr) = (range.first(), range.last());
    if first == last { first.to_string() } else { format!("{first} - {last}") }
}
