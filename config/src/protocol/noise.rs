//! Keys of the Noise handshakes.

use std::fmt;
use std::path::PathBuf;

use tollgate_noise::{Kind as KeyKind, PrivateKey, PublicKey};

use super::{KEY_EXCHANGES, KeyExchange, MASK, require_one_source};
use crate::document::Report;
use crate::error::Place;
use crate::kind::{Kind, choice, path, quoted, text};
use crate::schema::{Declared, LIVE, RESTART, Shared, table};
use crate::setting::Setting;
use crate::table::Table;

const PRIVATE_KEY: &str = "write the key itself, in base64, as `tollgate identity noise genkey` prints it";

/// Where a private key is.
#[derive(Clone)]
pub enum NoiseKeySource {
    /// In a file, in base64. A relative path is relative to the working directory.
    File(PathBuf),
    /// In the configuration itself. Wiped from memory when dropped, and not shown by `Debug`.
    Inline(PrivateKey),
}

impl fmt::Debug for NoiseKeySource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            NoiseKeySource::File(path) => f.debug_tuple("File").field(path).finish(),
            NoiseKeySource::Inline(_) => f.write_str("Inline(masked)"),
        }
    }
}

impl KeyExchange {
    /// The handshake of this key exchange.
    pub fn noise(self) -> KeyKind {
        match self {
            KeyExchange::Standard => KeyKind::Standard,
            KeyExchange::Hybrid => KeyKind::Hybrid,
            KeyExchange::PostQuantum => KeyKind::PostQuantum,
        }
    }

    fn of_noise(kind: KeyKind) -> Self {
        match kind {
            KeyKind::Standard => KeyExchange::Standard,
            KeyKind::Hybrid => KeyExchange::Hybrid,
            KeyKind::PostQuantum => KeyExchange::PostQuantum,
        }
    }
}

/// A private key, which no error shows.
fn inline() -> Kind<NoiseKeySource> {
    let read = |setting: Setting<'_>, report: &mut Report<'_>| {
        let path = setting.path.clone();
        let (place, text) = setting.secret(report, PRIVATE_KEY)?;
        match PrivateKey::parse(&text) {
            Ok(key) => Some(key),
            Err(error) => {
                report.wrong(place, &path, format!("is not a private key: {error}"), PRIVATE_KEY);
                None
            }
        }
    };
    let key_of =
        |source: &NoiseKeySource| if let NoiseKeySource::Inline(key) = source { Some(key.clone()) } else { None };
    Kind::new(PRIVATE_KEY, read, |_| quoted(MASK)).map(NoiseKeySource::Inline, key_of)
}

/// A file with a private key.
fn file() -> Kind<NoiseKeySource> {
    let path_of =
        |source: &NoiseKeySource| if let NoiseKeySource::File(path) = source { Some(path.clone()) } else { None };
    path("write the path of a file with the line that `tollgate identity noise genkey` prints")
        .map(NoiseKeySource::File, path_of)
}

fn public_key() -> Kind<PublicKey> {
    let parse = |text: &str| PublicKey::parse(text).map_err(|error| format!("which is not a public key: {error}"));
    text("write the key in base64, as `tollgate identity noise pubkey` prints it", parse, PublicKey::to_string)
}

/// The kind of key in Quincy's form.
fn kind() -> Kind<KeyExchange> {
    choice(&KEY_EXCHANGES)
}

table! {
    /// One Noise handshake as Quincy has it, beside `mode`.
    #[derive(Debug, Clone)]
    pub(super) struct Alone of Quincy {
        /// The kind of the key.
        "key_exchange" => key_exchange: KeyExchange = KeyExchange::Standard, kind(), RESTART;
        /// With mode = "noise": the gateway's private key, of the kind that key_exchange names; without key_exchange, "standard". Make it with
        /// `tollgate identity noise genkey`, and give clients the public key, which `tollgate identity noise pubkey` makes of it.
        "private_key" => private_key: Option<NoiseKeySource> = None, inline().optional(""), LIVE;
    }
}

table! {
    /// In place of `[protocol]`: Noise, beside TLS or alone. Each kind of key serves the clients of that kind.
    #[derive(Debug, Clone)]
    pub(super) struct ServerNoise of Tollgate {
    }
    into {
        /// Files with the gateway's private keys, one of each kind that is to be served. `tollgate identity noise genkey` makes a key of kind
        /// "standard", with -k one of another; its length tells the kind.
        "private_key_files" => keys, file().placed(), LIVE.example("[\"noise_standard.key\", \"noise_hybrid.key\"]");
        /// Such keys themselves.
        "private_keys" => keys, inline().placed(), LIVE;
    }
    and {
        /// All keys.
        keys: Vec<(Place, NoiseKeySource)> = Vec::new();
    }
}

table! {
    /// The client's side of a Noise handshake.
    #[derive(Debug, Clone)]
    pub struct ClientNoise of Quincy {
        /// The kind of both keys.
        "key_exchange" => key_exchange: KeyExchange = KeyExchange::Standard, kind(), RESTART;
        /// With mode = "noise": the gateway's public key.
        "server_public_key" => server_public_key: Option<PublicKey> = None, public_key().optional(""), RESTART;
    }
    into {
        /// With mode = "noise": this client's private key. Make it with `tollgate identity noise genkey`, and give the public key, which
        /// `tollgate identity noise pubkey` makes of it, to whoever keeps the gateway's users.toml.
        "private_key" => private_key, inline().optional(""), RESTART;
        /// The file of that key instead of the key itself. Quincy does not know it.
        "private_key_file" => private_key, file().optional(""), RESTART;
    }
    and {
        /// The client's private key.
        private_key: Option<NoiseKeySource> = None;
    }
}

impl Shared for Vec<(Place, NoiseKeySource)> {
    fn add(&mut self, other: Self) {
        self.extend(other);
    }
}

impl Shared for Option<NoiseKeySource> {
    fn add(&mut self, other: Self) {
        *self = other;
    }
}

impl Alone {
    /// What Quincy's form has for `keys`.
    pub(super) fn of(keys: &[NoiseKeySource]) -> Self {
        let key = keys.first();
        let key_exchange = match key {
            Some(NoiseKeySource::Inline(key)) => KeyExchange::of_noise(key.kind()),
            _ => KeyExchange::Standard,
        };
        Alone { key_exchange, private_key: key.cloned() }
    }
}

impl ServerNoise {
    /// What the table has for `keys`.
    pub(super) fn of(keys: &[NoiseKeySource]) -> Self {
        ServerNoise { keys: keys.iter().map(|key| (Place::Variable(String::new()), key.clone())).collect() }
    }
}

/// Reads a server's one key, as Quincy has it.
pub(super) fn read_alone(table: &mut Table<'_>, report: &mut Report<'_>) -> Option<NoiseKeySource> {
    let mut alone = Alone::initial();
    alone.read_keys(table, report);
    let Some(taken) = table.taken("private_key") else {
        report.wrong(table.place(), &table.path_of("private_key"), "is missing", PRIVATE_KEY);
        return None;
    };
    let place = taken.value.clone();
    let key = alone.private_key?;
    require_kind(table, report, "private_key", place, &key, alone.key_exchange);
    Some(key)
}

/// Reads the table of a server's keys: one of each kind, and at least one.
pub(super) fn read_server(table: &mut Table<'_>, report: &mut Report<'_>) -> Vec<NoiseKeySource> {
    let mut noise = ServerNoise::initial();
    noise.read_keys(table, report);
    if noise.keys.is_empty() && !report.is_wrong(&table.path_of("private_key")) {
        let remedy = "name a file with a key for each kind of clients: private_key_files = [\"noise_standard.key\"]";
        report.wrong(table.place(), &table.path_of("private_key_files"), "is missing", remedy);
    }
    let mut first: [Option<Place>; KeyKind::ALL.len()] = Default::default();
    for (place, source) in &noise.keys {
        let NoiseKeySource::Inline(key) = source else { continue };
        let slot = &mut first[key.kind() as usize];
        if let Some(first) = slot {
            let what = format!("has a second key of kind \"{}\"; the first is at {first}", key.kind());
            let remedy = "keep one: the gateway has one key of each kind";
            report.wrong(place.clone(), &table.path_of("private_keys"), what, remedy);
        }
        slot.get_or_insert_with(|| place.clone());
    }
    noise.keys.into_iter().map(|(_, key)| key).collect()
}

/// Reads a client's keys. What is given after a problem is not to be used.
pub(super) fn read_client(table: &mut Table<'_>, report: &mut Report<'_>) -> ClientNoise {
    let mut noise = ClientNoise::initial();
    noise.read_keys(table, report);
    require_one_source(table, report, ["private_key_file", "private_key"], PRIVATE_KEY);
    match (&noise.server_public_key, table.taken("server_public_key").map(|taken| taken.value.clone())) {
        (_, None) => {
            let remedy = "write the gateway's public key, in base64, as `tollgate identity noise pubkey` prints it";
            report.wrong(table.place(), &table.path_of("server_public_key"), "is missing", remedy);
        }
        (Some(key), Some(place)) if key.kind() != noise.key_exchange.noise() => {
            let (path, kind) = (table.path_of("server_public_key"), key.kind());
            wrong_kind(report, place, &path, kind, noise.key_exchange);
        }
        _ => {}
    }
    if let Some((key, taken)) = noise.private_key.as_ref().zip(table.taken("private_key")) {
        require_kind(table, report, "private_key", taken.value.clone(), key, noise.key_exchange);
    }
    noise
}

/// Notes a problem with `key` if it is another kind's. What is in a file is not known yet.
fn require_kind(
    table: &Table<'_>,
    report: &mut Report<'_>,
    name: &str,
    place: Place,
    key: &NoiseKeySource,
    key_exchange: KeyExchange,
) {
    if let NoiseKeySource::Inline(key) = key
        && key.kind() != key_exchange.noise()
    {
        wrong_kind(report, place, &table.path_of(name), key.kind(), key_exchange);
    }
}

fn wrong_kind(report: &mut Report<'_>, place: Place, path: &str, kind: KeyKind, key_exchange: KeyExchange) {
    let what = format!("is of kind \"{kind}\", but key_exchange is \"{}\"", key_exchange.noise());
    report.wrong(place, path, what, format!("set key_exchange = \"{kind}\", or give a key of the other kind"));
}
