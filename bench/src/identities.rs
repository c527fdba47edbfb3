//! Identities for thousands of users: a certificate and a key each, and the users file that lets them in. `tollgate-bench identities`.
//!
//! The users file is Quincy's, and so are the certificates: any gateway that speaks its protocol reads them. Keys are written for their
//! owner alone and never shown.

use std::fmt::Write as _;
use std::fs::{self, File};
use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, Result};
use quinn_proto::crypto::rustls::QuicClientConfig;
use tollgate::identity::Identity;
use tollgate::tls::{self, Clients};
use tollgate_config::reading::{RATE, rate};
use tollgate_config::{KeyExchange, PemSource};
use tollgate_shards::Fingerprint;
use zeroize::Zeroizing;

use crate::progress::Progress;
use crate::record::print;
use crate::scratch::ScratchFolder;

/// Most users of one run.
pub const USERS_MAX: u32 = 60_000;

/// The users file, in the folder that `identities` writes.
pub const USERS_FILE: &str = "users.toml";

/// The folder with certificates and keys, in it.
const CLIENTS: &str = "clients";

/// What to issue.
#[derive(Debug, clap::Args)]
pub struct Options {
    /// How many users: 1 to 60000.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=i64::from(USERS_MAX)))]
    users: u32,
    /// The bandwidth limit of each user, for example "80 mbps" [default: none].
    #[arg(long, value_name = "RATE", value_parser = checked_rate)]
    limit: Option<String>,
    /// The folder to write, which must not be there yet.
    #[arg(value_name = "OUT")]
    folder: PathBuf,
}

/// Certificates and keys of users, numbered from 0.
#[derive(Debug)]
pub struct Identities {
    identities: Vec<Identity>,
}

/// Issues what `options` ask for, and says on standard output what to do with it.
///
/// # Errors
///
/// When the folder is there already or cannot be written: then nothing of it is left.
pub fn run(options: &Options) -> Result<()> {
    let Options { users, limit, folder } = options;
    let mut progress = Progress::new();
    let identities = Identities::generate(*users, |made| progress.update(|| format!("{made} of {users} identities")))?;
    progress.clear();
    identities.write(folder, limit.as_deref())?;
    let absolute = std::path::absolute(folder)?;
    print(&next_steps(*users, &absolute))
}

impl Identities {
    /// Makes `users` of them; calls `progress` with the number that is done.
    ///
    /// # Errors
    ///
    /// When a certificate cannot be made.
    pub fn generate(users: u32, mut progress: impl FnMut(u32)) -> Result<Self> {
        let make = |user| {
            let identity = Identity::generate(&name(user), &[]);
            progress(user + 1);
            identity
        };
        Ok(Identities { identities: (0..users).map(make).collect::<Result<_, _>>()? })
    }

    /// Reads the first `users` of those that [`Identities::write`] wrote into `folder`.
    ///
    /// # Errors
    ///
    /// When one is missing or damaged.
    pub fn load(folder: &Path, users: u32) -> Result<Self> {
        let load = |user| {
            let (certificate, key) = files(folder, user);
            let read = |path: &Path| {
                fs::read_to_string(path).with_context(|| {
                    format!(
                        "cannot read {}, of user {} of {users}: `tollgate-bench identities --users {users} OUT` makes enough",
                        path.display(),
                        user + 1
                    )
                })
            };
            let certificate_pem = read(&certificate)?;
            let key_pem = Zeroizing::new(read(&key)?);
            let inline = PemSource::Inline(Zeroizing::new(certificate_pem.clone()));
            let chain = tls::certificates("certificate", &inline).with_context(|| certificate.display().to_string())?;
            Ok(Identity { certificate_pem, key_pem, fingerprint: Fingerprint::of(&chain[0]) })
        };
        Ok(Identities { identities: (0..users).map(load).collect::<Result<_>>()? })
    }

    /// How many users there are.
    pub fn users(&self) -> u32 {
        self.identities.len() as u32
    }

    /// How a gateway knows `user`, who must be below [`Identities::users`].
    pub fn fingerprint(&self, user: u32) -> Fingerprint {
        self.identities[user as usize].fingerprint
    }

    /// The users file: all of these, each with the bandwidth limit `limit`, and `absent` more whose keys nobody has.
    pub fn users_file(&self, limit: Option<&str>, absent: u32) -> String {
        let mut text = String::new();
        let mut user = |name: &str, fingerprint: Fingerprint| {
            let _ = writeln!(text, "[users.{name}]\nauthorized_certs = [\"{fingerprint}\"]");
            if let Some(limit) = limit {
                let _ = writeln!(text, "bandwidth_limit = \"{limit}\"");
            }
        };
        for (number, identity) in (0..).zip(&self.identities) {
            user(&name(number), identity.fingerprint);
        }
        for number in 1..=absent {
            let name = format!("absent{number:05}");
            user(&name, Fingerprint::of(name.as_bytes()));
        }
        text
    }

    /// Writes the users file, with the limit `limit` for each, and certificates and keys into the new folder `folder`. The keys are for
    /// their owner alone.
    ///
    /// # Errors
    ///
    /// When there is something of that name, or a file cannot be written: then nothing is left of it.
    pub fn write(&self, folder: &Path, limit: Option<&str>) -> Result<()> {
        let scratch = ScratchFolder::beside(folder)?;
        let users_file = scratch.path().join(USERS_FILE);
        fs::write(&users_file, self.users_file(limit, 0)).with_context(|| format!("cannot write {USERS_FILE}"))?;
        fs::create_dir(scratch.path().join(CLIENTS)).with_context(|| format!("cannot make a folder {CLIENTS}"))?;
        for (user, identity) in (0..).zip(&self.identities) {
            let (certificate, key) = files(scratch.path(), user);
            write_new(&certificate, &identity.certificate_pem, 0o644)?;
            write_new(&key, &identity.key_pem, 0o600)?;
        }
        scratch.keep_as(folder, 0o755)
    }

    /// TLS of `user`'s connections to a gateway of [`trusted`] certificate.
    ///
    /// # Errors
    ///
    /// When certificate and key do not fit together.
    ///
    /// # Panics
    ///
    /// When there is no such user.
    pub fn client_tls(&self, user: u32, trusted: &Clients) -> Result<Arc<QuicClientConfig>> {
        let identity = &self.identities[user as usize];
        let certificate = PemSource::Inline(Zeroizing::new(identity.certificate_pem.clone()));
        let key = PemSource::Inline(identity.key_pem.clone());
        trusted.client(&[certificate], &key).with_context(|| format!("user {}", name(user)))
    }
}

/// What clients share that trust only the certificates in the PEM file `certificates`, and offer what Quincy's client does by default.
///
/// # Errors
///
/// When there is no usable certificate in it.
pub fn trusted(certificates: &Path) -> Result<Clients> {
    Ok(Clients::new(&[PemSource::File(certificates.to_owned())], KeyExchange::Hybrid)?)
}

/// The name of a user, numbered from 0.
pub fn name(user: u32) -> String {
    format!("u{:05}", user + 1)
}

/// The files with a user's certificate and key.
fn files(folder: &Path, user: u32) -> (PathBuf, PathBuf) {
    let (clients, name) = (folder.join(CLIENTS), name(user));
    (clients.join(format!("{name}_cert.pem")), clients.join(format!("{name}_key.pem")))
}

/// Not [`Identity::write`], which waits for the disk twice a user: here the folder as a whole appears or does not.
fn write_new(path: &Path, text: &str, mode: u32) -> Result<()> {
    let file = File::options().write(true).create_new(true).mode(mode).open(path);
    file.and_then(|mut file| file.write_all(text.as_bytes()))
        .with_context(|| format!("cannot write {}", path.display()))
}

fn checked_rate(text: &str) -> Result<String, String> {
    rate(text).map(|_| text.to_owned()).map_err(|what| format!("{what}; {RATE}"))
}

fn next_steps(users: u32, folder: &Path) -> String {
    let folder = folder.display();
    let (first, last) = (name(0), name(users - 1));
    format!(
        "{folder}/{USERS_FILE} lets {users} users in, {first} to {last}; their certificates and keys are in {folder}/{CLIENTS}.\n\
         1. Give the gateway the users file: users_file = \"{folder}/{USERS_FILE}\" in its configuration. No key leaves this machine.\n\
         2. Behind the gateway, run: tollgate-bench far-end --listen ADDRESS:PORT\n\
         3. In a scenario, name all three (bench/scenarios/named.toml is an example): [gateway] address, trusted, \
         identities = \"{folder}\" and far_end.\n\
         4. Here, run: tollgate-bench load SCENARIO\n"
    )
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use tollgate_config::{Defaults, UsersFile};

    use super::*;

    fn generate(users: u32) -> Identities {
        Identities::generate(users, |_| ()).unwrap()
    }

    fn parsed(text: &str) -> UsersFile {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(USERS_FILE);
        fs::write(&path, text).unwrap();
        UsersFile::load(&path, "198.19.128.1/24".parse().unwrap(), Defaults::default()).unwrap()
    }

    #[test]
    fn what_is_written_is_read_again_and_keys_are_for_their_owner_alone() {
        let parent = tempfile::tempdir().unwrap();
        let folder = parent.path().join("fleet");
        let made = generate(3);
        made.write(&folder, Some("80 mbps")).unwrap();
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        let (certificate, key) = files(&folder, 2);
        assert_eq!((mode(&certificate), mode(&key)), (0o644, 0o600));
        assert_eq!(fs::read_dir(parent.path()).unwrap().count(), 1, "nothing is left over");
        let read = Identities::load(&folder, 2).unwrap();
        assert_eq!(read.users(), 2);
        assert_eq!([0, 1].map(|user| read.fingerprint(user)), [0, 1].map(|user| made.fingerprint(user)));
        assert_eq!(parsed(&fs::read_to_string(folder.join(USERS_FILE)).unwrap()).directory.len(), 3);
        let error = Identities::load(&folder, 4).unwrap_err().to_string();
        assert!(
            error.contains("u00004_cert.pem, of user 4 of 4: `tollgate-bench identities --users 4 OUT`"),
            "{error}"
        );
    }

    #[test]
    fn a_folder_that_is_there_is_left_alone() {
        let parent = tempfile::tempdir().unwrap();
        let error = generate(1).write(parent.path(), None).unwrap_err().to_string();
        assert!(error.contains("exists already"), "{error}");
        assert_eq!(fs::read_dir(parent.path()).unwrap().count(), 0);
        let nowhere = parent.path().join("none/fleet");
        assert!(generate(1).write(&nowhere, None).unwrap_err().to_string().contains("cannot make a folder in "));
    }

    #[test]
    fn the_users_file_has_everybody_with_the_limit_and_those_who_never_come() {
        let made = generate(2);
        let users = parsed(&made.users_file(Some("80 mbps"), 3));
        assert_eq!(users.directory.len(), 5);
        let found = users.directory.find(&made.fingerprint(1)).expect("the second user");
        let user = users.directory.user(found).unwrap();
        assert_eq!((user.name.as_str(), user.limit.map(|limit| limit.rate.bits_per_s())), ("u00002", Some(80_000_000)));
    }

    #[test]
    fn a_user_gets_tls_with_the_key_of_the_certificate_and_no_other() {
        let folder = tempfile::tempdir().unwrap();
        let server = folder.path().join("server.pem");
        fs::write(&server, generate(1).identities[0].certificate_pem.as_bytes()).unwrap();
        let trusted = trusted(&server).unwrap();
        let mut made = generate(2);
        made.client_tls(1, &trusted).unwrap();
        made.identities[1].key_pem = made.identities[0].key_pem.clone();
        let error = format!("{:#}", made.client_tls(1, &trusted).err().expect("a refusal"));
        assert!(error.starts_with("user u00002: the key") && !error.contains("PRIVATE"), "{error}");
    }

    #[test]
    fn progress_ends_with_the_number_asked_for() {
        let mut seen = Vec::new();
        Identities::generate(3, |made| seen.push(made)).unwrap();
        assert_eq!(seen, [1, 2, 3]);
    }

    #[test]
    fn a_limit_that_no_gateway_reads_is_refused() {
        assert_eq!(checked_rate("80 mbps").unwrap(), "80 mbps");
        assert!(checked_rate("80").unwrap_err().contains("which has no unit; write a number and bps"));
        assert!(checked_rate("1 mbps\"\nx = \"").is_err());
    }
}
