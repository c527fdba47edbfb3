//! The keys that all shards share and that outlive a restart.
//!
//! One master secret in a file; everything else is derived (RFC 5869). A gateway that comes back with the same file can tell its old clients
//! at once, by stateless reset (RFC 9000, section 10.3), that their connections are gone.
//!
//! This module never prints a key.

use std::fs;
use std::io::{self, Read};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use aws_lc_rs::{hkdf, hmac};
use quinn_proto::crypto::HmacKey;
use tollgate_config::{FilePlace, Open};
use tollgate_shards::{ConnectionIdKey, TokenKey};
use tracing::warn;
use zeroize::Zeroizing;

use crate::whole_file;

const MAGIC: &str = "tollgate-keys-1";
const MASTER_BYTES: usize = 32;
/// A key file is one short line.
const FILE_BYTES_MAX: u64 = 1024;

/// The keys of a gateway.
pub struct Keys {
    /// What all others are derived from.
    pub master: Zeroizing<[u8; MASTER_BYTES]>,
    /// Key of the tags in connection IDs.
    pub connection_id: ConnectionIdKey,
    /// Key of the stateless reset tokens.
    pub reset: Arc<dyn HmacKey>,
    /// Key of the Retry tokens.
    pub token: TokenKey,
}

/// Why there are no keys.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    /// The file cannot be read or made.
    #[error("key file {}: {action}: {source}; set [shards] key_file to a path that this user may write", path.display())]
    Unusable {
        /// The path of the key file.
        path: PathBuf,
        /// The operation that failed.
        action: &'static str,
        /// The system's reason.
        source: io::Error,
    },
    /// Other users may read the key file.
    #[error("key file {} is open to others (mode {mode:04o}): chmod 600 it, or remove it to have new keys made", path.display())]
    Exposed {
        /// The path of the key file.
        path: PathBuf,
        /// The permission bits of the file.
        mode: u32,
    },
    /// The file has another format.
    #[error("key file {} is not one of ours (`{MAGIC}` and 64 hex digits): remove it to have new keys made", path.display())]
    Malformed {
        /// The path of the key file.
        path: PathBuf,
    },
}

/// The key file, as it is found or made before the process gives up its privileges. Its keys are not kept here.
#[derive(Debug)]
pub struct KeyFile(Result<(), KeyError>);

impl KeyFile {
    /// Has one made where there is none, with new keys, readable by their owner only.
    pub fn make_missing(place: &FilePlace) -> Self {
        let path = &place.path;
        let unusable = |action| move |source| KeyError::Unusable { path: path.to_owned(), action, source };
        KeyFile(match fs::exists(path) {
            Ok(true) => Ok(()),
            Ok(false) => create(path, &random()).map_err(unusable("cannot be created")),
            Err(error) => Err(unusable("cannot be read")(error)),
        })
    }
}

impl KeyError {
    /// Whether the place is to blame, and not what was found there.
    fn is_of_the_place(&self) -> bool {
        matches!(self, KeyError::Unusable { .. })
    }
}

impl Keys {
    /// The keys in the `file` at `place`, which `open` opens, or else, where no file is configured and none can be read or made,
    /// new ones that this process takes with it.
    ///
    /// # Errors
    ///
    /// If the file is unusable, open to others, or something else.
    pub fn of(place: &FilePlace, file: KeyFile, open: &Open<'_>) -> Result<Self, KeyError> {
        match file.0.and_then(|()| Keys::load(&place.path, open)) {
            Err(error) if error.is_of_the_place() && !place.is_configured => {
                warn!(
                    "clients will notice a restart of this gateway only by its silence, for its keys end with it: {error}"
                );
                Ok(Keys::derive(&random()))
            }
            keys => keys,
        }
    }

    fn load(path: &Path, open: &Open<'_>) -> Result<Self, KeyError> {
        let unusable = |source| KeyError::Unusable { path: path.to_owned(), action: "cannot be read", source };
        let malformed = || KeyError::Malformed { path: path.to_owned() };
        let file = open(path).map_err(unusable)?;
        let mode = file.metadata().map_err(unusable)?.permissions().mode() & 0o777;
        if mode & 0o077 != 0 {
            return Err(KeyError::Exposed { path: path.to_owned(), mode });
        }
        // Of full size from the start: growing would leave copies of a key behind.
        let mut line = Zeroizing::new(Vec::with_capacity(FILE_BYTES_MAX as usize + 1));
        file.take(FILE_BYTES_MAX + 1).read_to_end(&mut line).map_err(unusable)?;
        if line.len() as u64 > FILE_BYTES_MAX {
            return Err(malformed());
        }
        let text = std::str::from_utf8(&line).map_err(|_| malformed())?;
        Ok(Keys::derive(&*parse(text).ok_or_else(malformed)?))
    }

    /// Those of a master secret.
    pub fn derive(master: &[u8; MASTER_BYTES]) -> Self {
        let root = hkdf::Salt::new(hkdf::HKDF_SHA256, b"tollgate").extract(master);
        let mut id_key = [0; 16];
        expand(&root, b"connection id", &mut id_key);
        let mut reset_key = Zeroizing::new([0; 64]);
        expand(&root, b"stateless reset", &mut *reset_key);
        let mut token_key = Zeroizing::new([0; 32]);
        expand(&root, b"retry token", &mut *token_key);
        Keys {
            master: Zeroizing::new(*master),
            connection_id: ConnectionIdKey(id_key),
            reset: Arc::new(hmac::Key::new(hmac::HMAC_SHA256, &*reset_key)),
            token: TokenKey::new(&token_key),
        }
    }
}

/// A reset key for a client, which has nothing to remember.
pub fn ephemeral_reset_key() -> Arc<dyn HmacKey> {
    Arc::new(hmac::Key::new(hmac::HMAC_SHA256, &*random()))
}

/// 32 bytes of the system's entropy.
///
/// # Panics
///
/// If the system has none, which does not happen once it has booted.
pub fn random() -> Zeroizing<[u8; 32]> {
    let mut bytes = Zeroizing::new([0; 32]);
    aws_lc_rs::rand::fill(&mut *bytes).expect("the system has entropy");
    bytes
}

fn create(path: &Path, master: &[u8; MASTER_BYTES]) -> io::Result<()> {
    fs::create_dir_all(whole_file::folder(path))?;
    let hex: Zeroizing<String> = Zeroizing::new(master.iter().map(|byte| format!("{byte:02x}")).collect());
    let line = Zeroizing::new(format!("{MAGIC} {}\n", *hex));
    whole_file::prepare(path, line.as_bytes(), 0o600)?.persist(path).map_err(|error| error.error)?;
    Ok(())
}

fn parse(line: &str) -> Option<Zeroizing<[u8; MASTER_BYTES]>> {
    let hex = line.trim().strip_prefix(MAGIC)?.trim();
    if hex.len() != 2 * MASTER_BYTES || !hex.is_ascii() {
        return None;
    }
    let mut master = Zeroizing::new([0; MASTER_BYTES]);
    for (index, byte) in master.iter_mut().enumerate() {
        *byte = u8::from_str_radix(&hex[2 * index..2 * index + 2], 16).ok()?;
    }
    Some(master)
}

struct Bytes(usize);

impl hkdf::KeyType for Bytes {
    fn len(&self) -> usize {
        self.0
    }
}

fn expand(root: &hkdf::Prk, label: &[u8], out: &mut [u8]) {
    let labels = [label];
    let okm = root.expand(&labels, Bytes(out.len())).expect("64 bytes are fewer than HKDF can make");
    okm.fill(out).expect("asked for just this length");
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::os::unix::fs::OpenOptionsExt;

    use tollgate_config::open_file;

    use super::*;

    fn load_or_create(path: &Path) -> Result<Keys, KeyError> {
        let place = FilePlace { path: path.to_owned(), is_configured: true };
        Keys::of(&place, KeyFile::make_missing(&place), &open_file)
    }

    fn tag_of(keys: &Keys) -> Vec<u8> {
        let mut tag = vec![0; keys.reset.signature_len()];
        keys.reset.sign(b"id", &mut tag);
        tag.extend(keys.connection_id.0);
        tag
    }

    #[test]
    fn keys_survive_a_restart_and_are_nobody_elses() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("state/keys");
        let first = load_or_create(&path).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        let second = load_or_create(&path).unwrap();
        assert_eq!(tag_of(&first), tag_of(&second));
        let other = load_or_create(&folder.path().join("other")).unwrap();
        assert_ne!(tag_of(&first), tag_of(&other));
        assert_eq!(fs::read_dir(path.parent().unwrap()).unwrap().count(), 1, "nothing half-written is left");
    }

    #[test]
    fn a_file_that_others_may_read_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("keys");
        load_or_create(&path).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
        let error = load_or_create(&path).err().unwrap().to_string();
        assert!(error.contains("chmod 600") && error.contains("0644"), "{error}");
    }

    #[test]
    fn something_else_is_not_taken_for_keys() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("keys");
        let long = format!("{MAGIC} {}{}", "0".repeat(2 * MASTER_BYTES), " ".repeat(FILE_BYTES_MAX as usize));
        for content in ["", "tollgate-keys-1 12", "tollgate-keys-1 zz", &"é".repeat(40), &"x".repeat(5000), &long] {
            let mut file =
                fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&path).unwrap();
            file.write_all(content.as_bytes()).unwrap();
            let error = load_or_create(&path).err().unwrap();
            assert!(matches!(error, KeyError::Malformed { .. }), "{error}");
        }
    }
}
