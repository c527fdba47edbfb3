//! The table `[connection_ids]`.

use std::fmt;

use sha2::{Digest, Sha256};
use tollgate_shards::{ConnectionIdKey, ID_LENGTHS, IdLayout, IdLayoutError, QuicLb};
use zeroize::Zeroizing;

use crate::document::Report;
use crate::kind::{Kind, choice, count, quoted, text, whole};
use crate::protocol::MASK;
use crate::schema::{Declared, RESTART, table};
use crate::setting::Setting;
use crate::shards::ShardCount;
use crate::table::Table;

const ROTATION_MAX: u64 = 6;
const SERVER_ID: &str = "write its bytes in hex, for example \"0a0b\"";
const KEY: &str = "write 32 hex digits, as `openssl rand -hex 16` prints them";

/// What surrounds the byte that steers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum IdLayoutName {
    /// Nothing that means anything.
    Plain,
    /// What a balancer reads (draft-ietf-quic-load-balancers).
    QuicLb,
}

/// The key that hides a server ID. Wiped from memory when dropped, and not shown by `Debug`.
#[derive(Clone, PartialEq, Eq)]
pub struct ServerIdKey(Zeroizing<[u8; 16]>);

impl fmt::Debug for ServerIdKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ServerIdKey(masked)")
    }
}

table! {
    /// Connection IDs, for a gateway behind a balancer that reads QUIC-LB (draft-ietf-quic-load-balancers).
    #[derive(Debug, Clone, PartialEq, Eq)]
    pub struct ConnectionIds of Tollgate {
        /// What is in them: nothing for others with "plain", a server ID with "quic_lb".
        "layout" => layout: IdLayoutName = IdLayoutName::Plain, choice(&LAYOUTS), RESTART;
        /// Their length. With "quic_lb", 9 more than the server ID's, or 8 more where that has 7 bytes or more and there is no key.
        "length" => id_bytes: usize = *ID_LENGTHS.start(), count(*ID_LENGTHS.start() as u64..=*ID_LENGTHS.end() as u64, "bytes"), RESTART;
        /// What the balancer calls this gateway, of up to 12 bytes, or 11 with a key. With 7 and more and no key there are 16 shards at most.
        "server_id" => server_id: Option<Vec<u8>> = None, server_id().optional("none"), RESTART;
        /// Which of the balancer's configurations this is.
        "rotation" => rotation: u8 = 0, whole(0..=ROTATION_MAX, "a codepoint").map(|it| it as u8, |it| Some((*it).into())), RESTART;
        /// The key by which the balancer decrypts the server ID. Without one it is readable. Keep it secret.
        "key" => key: Option<ServerIdKey> = None, key().optional("none"), RESTART;
    }
}

const LAYOUTS: [(&str, IdLayoutName); 2] = [("plain", IdLayoutName::Plain), ("quic_lb", IdLayoutName::QuicLb)];

impl ConnectionIds {
    /// The layout, with the key of the tags.
    ///
    /// # Errors
    ///
    /// None, for what was read from a file.
    pub fn layout(&self, tag_key: ConnectionIdKey) -> Result<IdLayout, IdLayoutError> {
        match self.layout {
            IdLayoutName::Plain => IdLayout::plain(self.id_bytes, tag_key),
            IdLayoutName::QuicLb => {
                let server_id = self.server_id.clone().unwrap_or_default();
                let config = QuicLb { rotation: self.rotation, server_id, key: self.key.as_ref().map(|key| *key.0) };
                IdLayout::quic_lb(self.id_bytes, &config, tag_key)
            }
        }
    }

    /// The first digits of the key's SHA-256.
    pub(crate) fn key_hash(&self) -> Option<String> {
        let hash = Sha256::digest(*self.key.as_ref()?.0);
        Some(hash[..4].iter().map(|byte| format!("{byte:02x}")).collect())
    }

    pub(crate) fn read_table(mut table: Table<'_>, report: &mut Report<'_>, shards: ShardCount) -> Self {
        let mut ids = ConnectionIds::initial();
        ids.read_keys(&mut table, report);
        let keys = ["layout", "length", "server_id", "rotation", "key"].map(|key| table.path_of(key));
        if !keys.iter().any(|key| report.is_wrong(key)) {
            ids.judge(&table, report, shards);
        }
        table.finish(report);
        ids
    }

    /// Notes what does not fit together.
    fn judge(&self, table: &Table<'_>, report: &mut Report<'_>, shards: ShardCount) {
        let mut wrong = |key: &str, what: String, remedy: &str| {
            let place = table.taken(key).map_or(table.place(), |taken| taken.value.clone());
            report.wrong(place, &table.path_of(key), what, remedy);
        };
        if self.layout == IdLayoutName::Plain {
            let set =
                [("server_id", self.server_id.is_some()), ("rotation", self.rotation > 0), ("key", self.key.is_some())];
            for (key, _) in set.into_iter().filter(|(_, is_set)| *is_set) {
                let remedy = "set layout = \"quic_lb\" beside it, or leave it out";
                wrong(key, "is set, though nobody reads it".into(), remedy);
            }
            return;
        }
        let shards_max = match self.layout(ConnectionIdKey([0; 16])) {
            Ok(layout) => layout.steering().shards_max(),
            Err(IdLayoutError::NoServerId) => return wrong("server_id", "is missing".into(), SERVER_ID),
            Err(IdLayoutError::TooShort { server_id_bytes, bytes, bytes_min }) => {
                let what = format!("is {bytes}, too short for a server ID of {server_id_bytes}");
                return wrong("length", what, &format!("write {bytes_min} or more"));
            }
            Err(error) => return wrong("server_id", format!("does not fit: {error}"), "write a shorter one"),
        };
        if let ShardCount::Fixed(count) = shards
            && count.get() > shards_max
        {
            let what = format!("leaves room for {shards_max} shards, of {count}");
            wrong("server_id", what, "give a key beside it, or set count in [shards] to what there is room for");
        }
    }
}

fn hex(text: &str) -> Result<Vec<u8>, String> {
    let text = text.trim();
    if text.is_empty() || text.len() % 2 == 1 || !text.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return Err("which is not an even number of hex digits".into());
    }
    let byte = |at: usize| u8::from_str_radix(&text[at..at + 2], 16);
    (0..text.len()).step_by(2).map(byte).collect::<Result<_, _>>().map_err(|error| error.to_string())
}

fn server_id() -> Kind<Vec<u8>> {
    text(SERVER_ID, hex, |bytes| bytes.iter().map(|byte| format!("{byte:02x}")).collect())
}

/// A key, which no error shows.
fn key() -> Kind<ServerIdKey> {
    let read = |setting: Setting<'_>, report: &mut Report<'_>| {
        let path = setting.path.clone();
        let (place, text) = setting.secret(report, KEY)?;
        let bytes = hex(&text).map(Zeroizing::new).ok().and_then(|bytes| <[u8; 16]>::try_from(&bytes[..]).ok());
        if bytes.is_none() {
            report.wrong(place, &path, "is not a key of 16 bytes", KEY);
        }
        bytes.map(|bytes| ServerIdKey(Zeroizing::new(bytes)))
    };
    Kind::new(KEY, read, |_| quoted(MASK))
}
