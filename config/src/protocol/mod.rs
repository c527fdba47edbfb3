//! The table `[protocol]`: which handshakes are served or spoken, and with which keys. Nothing is loaded here.
//!
//! A server's has two forms. Quincy's names one mode and has that mode's keys beside it; ours has a table for each mode that is served.

mod noise;
mod tls;

use std::path::Path;

use crate::document::Report;
use crate::error::Place;
use crate::kind::{Kind, choice};
use crate::schema::{Declared, RESTART, Section, read_key, table};
use crate::table::{Table, Taken};

use noise::{Alone, ServerNoise};
pub use noise::{ClientNoise, NoiseKeySource};
pub use tls::{ClientTls, PemSource, ServerTls};

/// Which key exchange a handshake uses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KeyExchange {
    /// TLS: elliptic curves, X25519, P-256, P-384, and as a last choice X25519MLKEM768. Noise: X25519.
    Standard,
    /// TLS: X25519MLKEM768 only. Noise: X25519 and ML-KEM-768 together.
    Hybrid,
    /// ML-KEM-768 only.
    PostQuantum,
}

const KEY_EXCHANGES: [(&str, KeyExchange); 6] = [
    ("standard", KeyExchange::Standard),
    ("hybrid", KeyExchange::Hybrid),
    ("post_quantum", KeyExchange::PostQuantum),
    ("Standard", KeyExchange::Standard),
    ("Hybrid", KeyExchange::Hybrid),
    ("PostQuantum", KeyExchange::PostQuantum),
];

/// What stands in place of a secret.
pub(crate) const MASK: &str = "(masked)";

const TLS_TABLE: &str = "protocol.tls";
const NOISE_TABLE: &str = "protocol.noise";

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mode {
    Tls,
    Noise,
}

const MODES: [(&str, Mode); 2] = [("tls", Mode::Tls), ("noise", Mode::Noise)];

fn mode() -> Kind<Option<Mode>> {
    choice(&MODES).optional("the tables [protocol.tls] and [protocol.noise]")
}

table! {
    /// How the two sides prove who they are. One mode, with its keys, as Quincy has it; a gateway that serves both has the two tables below in
    /// place of this one.
    #[derive(Debug)]
    struct ServerHandshake of Quincy {
        /// The one mode that is served: "tls" or "noise".
        "mode" => mode: Option<Mode> = None, mode(), RESTART.in_example("\"tls\"");
    }
}

table! {
    /// How the two sides prove who they are.
    #[derive(Debug)]
    struct ClientHandshake of Quincy {
        /// What the gateway speaks with this client: "tls" or "noise".
        "mode" => mode: Option<Mode> = None, mode(), RESTART.required("\"tls\"");
    }
}

/// The handshakes that a gateway serves, all on one port: at least one.
#[derive(Debug, Clone)]
pub struct ServerProtocol {
    /// TLS; `None` if it is not served.
    pub tls: Option<ServerTls>,
    /// Where the private keys of Noise handshakes are, of one kind each; none if Noise is not served.
    pub noise: Vec<NoiseKeySource>,
    form: Form,
}

/// How a file says which modes are served.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Form {
    /// As Quincy does: one mode.
    One(Mode),
    /// With a table for each.
    Tables,
}

impl ServerProtocol {
    /// What holds until a file is read.
    pub(crate) fn initial() -> Self {
        ServerProtocol { tls: None, noise: Vec::new(), form: Form::One(Mode::Tls) }
    }

    /// All that may stand in the tables, in either form.
    pub(crate) fn sections(&self) -> Vec<Section> {
        let unset = ServerTls::initial();
        let tls = self.tls.as_ref().unwrap_or(&unset);
        let mode = match self.form {
            Form::One(mode) if self.tls.is_some() || !self.noise.is_empty() => Some(mode),
            _ => None,
        };
        let alone = Alone::of(&self.noise);
        let mut one = ServerHandshake { mode }.section("protocol").and(tls.section("protocol"));
        one.entries.extend(alone.entries().into_iter().filter(|entry| entry.name != "key_exchange"));
        if mode == Some(Mode::Noise) {
            let key_exchange = alone.entries().into_iter().find(|entry| entry.name == "key_exchange");
            one.entry("key_exchange").value = key_exchange.and_then(|entry| entry.value);
        }
        let noise = ServerNoise::of(&self.noise);
        let tables = [tls.section(TLS_TABLE), noise.section(NOISE_TABLE)];
        std::iter::once(one).chain(tables.map(|table| Section { is_alternative: true, ..table })).collect()
    }

    /// The files that it names.
    pub fn files(&self) -> impl Iterator<Item = &Path> {
        let of_tls = self.tls.iter().flat_map(|tls| tls.certificates.iter().chain([&tls.key]));
        let of_tls = of_tls.filter_map(|source| match source {
            PemSource::File(path) => Some(path),
            PemSource::Inline(_) => None,
        });
        let of_noise = self.noise.iter().filter_map(|key| match key {
            NoiseKeySource::File(path) => Some(path),
            NoiseKeySource::Inline(_) => None,
        });
        of_tls.chain(of_noise).map(|path| &**path)
    }

    /// Hides what of `section` does not hold in this form and these modes.
    pub(crate) fn hide_unused(&self, section: &mut Section) {
        let is_used = |key: &str| match (self.form, section.name) {
            (Form::One(mode), "protocol") => key == "mode" || mode.has(key),
            (Form::Tables, TLS_TABLE) => self.tls.is_some(),
            (Form::Tables, NOISE_TABLE) => !self.noise.is_empty(),
            _ => false,
        };
        let unused = section.entries.iter_mut().filter(|entry| !is_used(entry.name));
        unused.for_each(|entry| (entry.value, entry.absent) = (None, ""));
    }
}

impl Mode {
    fn name(self) -> &'static str {
        MODES.iter().find(|(_, mode)| *mode == self).map_or("", |(name, _)| *name)
    }

    /// Whether a server's `key` means something in this mode.
    fn has(self, key: &str) -> bool {
        let entries = match self {
            Mode::Tls => ServerTls::initial().entries(),
            Mode::Noise => Alone::initial().entries(),
        };
        entries.iter().any(|entry| entry.name == key)
    }
}

/// What stands for the handshakes that a client speaks.
#[derive(Debug, Clone)]
pub enum ClientProtocol {
    /// TLS.
    Tls(ClientTls),
    /// Noise.
    Noise(ClientNoise),
}

impl ClientProtocol {
    /// What holds until a file is read.
    pub(crate) fn initial() -> Self {
        ClientProtocol::Tls(ClientTls::initial())
    }

    /// All that may stand in the table.
    pub(crate) fn section(&self) -> Section {
        let (mode, tls, noise) = match self {
            ClientProtocol::Tls(tls) => (Mode::Tls, tls.clone(), ClientNoise::initial()),
            ClientProtocol::Noise(noise) => (Mode::Noise, ClientTls::initial(), noise.clone()),
        };
        let mut section = ClientHandshake { mode: Some(mode) }.section("protocol").and(tls.section("protocol"));
        section.entries.extend(noise.entries().into_iter().filter(|entry| entry.name != "key_exchange"));
        section
    }

    /// Hides what of `section` does not hold in this mode.
    pub(crate) fn hide_unused(&self, section: &mut Section) {
        let (of_mode, key_exchange) = match self {
            ClientProtocol::Tls(tls) => (tls.entries(), None),
            ClientProtocol::Noise(noise) => {
                (noise.entries(), noise.entries().into_iter().find(|entry| entry.name == "key_exchange"))
            }
        };
        for entry in section.entries.iter_mut().filter(|entry| entry.name != "mode") {
            if !of_mode.iter().any(|other| other.name == entry.name) {
                (entry.value, entry.absent) = (None, "");
            }
        }
        if let Some(key_exchange) = key_exchange {
            section.entry("key_exchange").value = key_exchange.value;
        }
    }
}

/// Takes a server's table out of `root`. What is given after a problem is not to be used.
pub(crate) fn read_server(root: &mut Table<'_>, report: &mut Report<'_>) -> ServerProtocol {
    let expected = "write a table [protocol] with mode = \"tls\", certificate_file and certificate_key_file, or with mode = \
                    \"noise\" and private_key; or tables [protocol.tls] and [protocol.noise]";
    if !root.requires(report, "protocol", expected) {
        return ServerProtocol::initial();
    }
    let mut table = root.table(report, "protocol");
    let tables = [TLS_TABLE, NOISE_TABLE].map(|path| Some((path, table.place_of(report, below(path))?)));
    let protocol = match tables.iter().flatten().next() {
        Some((path, place)) => {
            refuse_other_form(&mut table, report, path, place);
            read_tables(&mut table, report, tables.each_ref().map(Option::is_some))
        }
        None => {
            let Some(protocol) = read_one(&mut table, report) else {
                table.abandon(report);
                return ServerProtocol::initial();
            };
            protocol
        }
    };
    table.finish(report);
    protocol
}

/// The name of a table within `[protocol]`.
fn below(path: &'static str) -> &'static str {
    path.rsplit('.').next().unwrap_or(path)
}

/// Notes each key of Quincy's form that is set beside the table `path`, which is at `place`.
fn refuse_other_form(table: &mut Table<'_>, report: &mut Report<'_>, path: &str, place: &Place) {
    let quincy = ServerProtocol::initial().sections().swap_remove(0);
    for key in quincy.entries.iter().map(|entry| entry.name) {
        let Some(at) = table.take(report, key).and_then(|_| table.taken(key)).map(|taken| taken.key.clone()) else {
            continue;
        };
        let what = format!("is set beside [{path}], which is at {place}");
        let remedy = match key {
            "mode" => {
                "keep one of the two: mode serves one kind of clients, the tables serve each the clients of its own"
            }
            _ => "move it into the table of its mode: [protocol.tls] or [protocol.noise]",
        };
        report.wrong(at, &format!("protocol.{key}"), what, remedy);
    }
}

/// Reads the tables that are there: of TLS, of Noise.
fn read_tables(table: &mut Table<'_>, report: &mut Report<'_>, [has_tls, has_noise]: [bool; 2]) -> ServerProtocol {
    let mut protocol = ServerProtocol { form: Form::Tables, ..ServerProtocol::initial() };
    let mut tls = table.table(report, below(TLS_TABLE));
    if has_tls && !report.is_wrong(TLS_TABLE) {
        protocol.tls = Some(ServerTls::read_required(&mut tls, report));
    }
    tls.finish(report);
    let mut noise = table.table(report, below(NOISE_TABLE));
    if has_noise && !report.is_wrong(NOISE_TABLE) {
        protocol.noise = noise::read_server(&mut noise, report);
    }
    noise.finish(report);
    protocol
}

/// Reads one mode and its keys; `None` where no mode is given.
fn read_one(table: &mut Table<'_>, report: &mut Report<'_>) -> Option<ServerProtocol> {
    let mode = read_mode(table, report)?;
    let mut protocol = ServerProtocol { form: Form::One(mode), ..ServerProtocol::initial() };
    match mode {
        Mode::Tls => protocol.tls = Some(ServerTls::read_required(table, report)),
        Mode::Noise => protocol.noise.extend(noise::read_alone(table, report)),
    }
    let others = ServerProtocol::initial().sections().swap_remove(0);
    pass_over(table, report, mode, others.entries.iter().map(|entry| entry.name).filter(|key| !mode.has(key)));
    Some(protocol)
}

/// Takes a client's table out of `root`. What is given after a problem is not to be used.
pub(crate) fn read_client(root: &mut Table<'_>, report: &mut Report<'_>) -> ClientProtocol {
    let expected = "write a table [protocol] with mode = \"tls\", trusted_certificate_paths, client_certificate_file and \
                    client_certificate_key_file, or with mode = \"noise\", server_public_key and private_key";
    let mut protocol = ClientProtocol::initial();
    if !root.requires(report, "protocol", expected) {
        return protocol;
    }
    let mut table = root.table(report, "protocol");
    let Some(mode) = read_mode(&mut table, report) else {
        table.abandon(report);
        return protocol;
    };
    let (tls, noise) = (ClientTls::initial().entries(), ClientNoise::initial().entries());
    let (own, others) = match mode {
        Mode::Tls => {
            protocol = ClientProtocol::Tls(tls::read_client(&mut table, report));
            (tls, noise)
        }
        Mode::Noise => {
            protocol = ClientProtocol::Noise(noise::read_client(&mut table, report));
            (noise, tls)
        }
    };
    let is_own = |key: &str| own.iter().any(|entry| entry.name == key);
    pass_over(&mut table, report, mode, others.iter().map(|entry| entry.name).filter(|key| !is_own(key)));
    table.finish(report);
    protocol
}

/// The mode that `table` names; a problem otherwise.
fn read_mode(table: &mut Table<'_>, report: &mut Report<'_>) -> Option<Mode> {
    if !table.requires(report, "mode", "write mode = \"tls\" or mode = \"noise\"") {
        return None;
    }
    read_key("mode", mode, RESTART, table, report).flatten()
}

/// Takes out `keys`, which mean nothing in `mode`. Quincy reads a file that has them, and so does this program.
fn pass_over<'k>(table: &mut Table<'_>, report: &mut Report<'_>, mode: Mode, keys: impl Iterator<Item = &'k str>) {
    for key in keys {
        if table.take(report, key).is_none() {
            continue;
        }
        let place = table.taken(key).map_or(table.place(), |taken| taken.key.clone());
        let what = format!("means nothing with mode = \"{}\"", mode.name());
        report.warn(place, &format!("protocol.{key}"), what, "remove it");
    }
}

/// A key comes from a file or from the configuration, but not from both. `missing` says what to write where it comes from neither.
fn require_one_source(table: &Table<'_>, report: &mut Report<'_>, [file, inline]: [&str; 2], missing: &str) {
    let [file_path, inline_path] = [file, inline].map(|key| table.path_of(key));
    match (table.taken(file), table.taken(inline)) {
        (None, None) => report.wrong(table.place(), &file_path, "is missing", missing),
        (Some(_), Some(Taken { value, .. })) => {
            let (what, remedy) =
                (format!("is given beside {file_path}"), format!("keep either {file_path} or {inline_path}"));
            report.wrong(value.clone(), &inline_path, what, remedy);
        }
        _ => {}
    }
}
