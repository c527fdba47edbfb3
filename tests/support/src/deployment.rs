//! The files of a gateway and its clients, in a folder of their own.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use aws_lc_rs::rand::SystemRandom;
use tempfile::TempDir;
use tollgate_noise::{Kind, PrivateKey};

use crate::client::Login;
use crate::peers::Peers;
pub use tollgate_testkit::deploy::{CLIENT_TUN, PORT};
use tollgate_testkit::deploy::{ConfigFile, Identity, authorized_keys, user_entry};

/// What a gateway's configuration says.
#[derive(Debug, Clone)]
pub struct Plan {
    pub shards: u16,
    /// The gateway's inner address with its prefix length.
    pub tunnel: &'static str,
    pub bind: &'static str,
    /// The one key exchange of TLS to accept; `None` accepts all.
    pub key_exchange: Option<&'static str>,
    /// Whether Noise is served beside TLS, with keys of all kinds; each user has one of each kind then.
    pub serves_noise: bool,
    /// Whether clients are kept apart.
    pub isolate_clients: bool,
    /// Users, each with an address pool of its own or none.
    pub users: Vec<(String, Option<&'static str>)>,
}

impl Default for Plan {
    fn default() -> Self {
        Plan {
            shards: 2,
            tunnel: "198.19.128.1/24",
            bind: "0.0.0.0",
            key_exchange: None,
            serves_noise: false,
            isolate_clients: true,
            users: vec![("alice".to_owned(), None), ("bob".to_owned(), None)],
        }
    }
}

/// A folder with a gateway's configuration, and with the identities of all.
#[derive(Debug)]
pub struct Deployment {
    folder: TempDir,
    tunnel: &'static str,
    fingerprints: BTreeMap<String, String>,
    /// Noise keys, by their owner's name, then in the order of [`Kind::ALL`].
    keys: BTreeMap<String, Vec<PrivateKey>>,
}

impl Deployment {
    /// Writes everything that `plan` asks for. The gateway's certificate bears all addresses of it that the lab has.
    pub fn write(plan: &Plan) -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let mut deployment =
            Deployment { folder, tunnel: plan.tunnel, fingerprints: BTreeMap::new(), keys: BTreeMap::new() };
        deployment.write_identity("server", &["198.18.0.1", "fd00:18::1", "198.18.1.1", "fd00:18:1::1"]);
        for (name, _) in &plan.users {
            deployment.write_identity(name, &[]);
        }
        if plan.serves_noise {
            let names = plan.users.iter().map(|(name, _)| &name[..]).chain(["server"]);
            names.for_each(|name| deployment.write_noise_keys(name));
        }
        deployment.write_users(&plan.users);
        deployment.write_server(plan);
        deployment
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    pub fn edit_server(&self, from: &str, to: &str) {
        self.edit("server.toml", from, to);
    }

    /// Replaces `from` in the file `name`.
    pub fn edit(&self, name: &str, from: &str, to: &str) {
        let path = self.path(name);
        let text = fs::read_to_string(&path).expect("a file to edit");
        assert!(text.contains(from), "{from} is not in {text}");
        fs::write(&path, text.replace(from, to)).expect("a file to edit");
    }

    /// Gives `user` the further `setting` in users.toml, as in `bandwidth_limit = "1 mbps"`.
    pub fn edit_user(&self, user: &str, setting: &str) {
        let heading = format!("[users.{user}]\n");
        self.edit("users.toml", &heading, &format!("{heading}{setting}\n"));
    }

    pub fn write_identity(&mut self, name: &str, sans: &[&str]) {
        let identity = Identity::generate(name, sans).expect("an identity");
        identity.write(self.folder(), name).expect("an identity");
        self.fingerprints.insert(name.to_owned(), identity.fingerprint);
    }

    /// Gives `name` a certificate that is valid for no longer than that from now on.
    pub fn write_identity_for(&mut self, name: &str, valid: Duration) {
        let identity = Identity::generate_for(name, &[], Some(valid)).expect("an identity");
        identity.write(self.folder(), name).expect("an identity");
        self.fingerprints.insert(name.to_owned(), identity.fingerprint);
    }

    /// Replaces `name`'s certificate and key by such as Quincy's own program makes.
    pub fn write_quincy_identity(&mut self, peers: &Peers, name: &str) {
        let (certificate, key) = (&format!("{name}_cert.pem"), &format!("{name}_key.pem"));
        // It does not overwrite.
        [certificate, key].iter().for_each(|file| fs::remove_file(self.path(file)).expect("an identity to replace"));
        let quincy = |arguments: &[&str]| {
            let mut command = Command::new(peers.identity());
            let output =
                command.arg("tls").args(arguments).current_dir(self.folder()).output().expect("quincy-identity");
            assert!(output.status.success(), "{output:?}");
            String::from_utf8_lossy(&output.stdout).into_owned()
        };
        quincy(&["gencert", "--out-cert", certificate, "--out-key", key]);
        let said = quincy(&["fingerprint", "--cert", certificate]);
        let fingerprint = said.split_whitespace().find(|word| word.starts_with("sha256:"));
        let fingerprint = fingerprint.unwrap_or_else(|| panic!("no fingerprint in {said:?}"));
        self.fingerprints.insert(name.to_owned(), fingerprint.to_owned());
    }

    /// Gives `name` new Noise keys of all kinds, in `{name}_{kind}.key`.
    pub fn write_noise_keys(&mut self, name: &str) {
        let key = |kind: Kind| PrivateKey::generate(kind, &SystemRandom::new()).expect("random numbers");
        let keys: Vec<PrivateKey> = Kind::ALL.into_iter().map(key).collect();
        for key in &keys {
            let path = self.path(&format!("{name}_{}.key", key.kind()));
            fs::write(path, format!("{}\n", *key.to_base64())).expect("a key's file");
        }
        self.keys.insert(name.to_owned(), keys);
    }

    /// The public Noise key of `name`.
    pub fn public_key(&self, name: &str, kind: Kind) -> String {
        self.keys[name][kind as usize].public().to_string()
    }

    /// As files have it.
    pub fn private_key(&self, name: &str, kind: Kind) -> String {
        self.keys[name][kind as usize].to_base64().to_string()
    }

    /// Writes users.toml: each user with the certificate and the keys of that name.
    pub fn write_users(&self, users: &[(String, Option<&'static str>)]) {
        let entry = |(name, pool): &(String, Option<&str>)| {
            let pool = pool.map(|pool| format!("address_pool = [\"{pool}\"]\n")).unwrap_or_default();
            let keys: Vec<String> =
                self.keys.get(name).into_iter().flatten().map(|key| key.public().to_string()).collect();
            let keys = authorized_keys(keys.iter().map(String::as_str));
            user_entry(name, &self.fingerprints[name], &(pool + &keys))
        };
        let text: String = users.iter().map(entry).collect();
        fs::write(self.path("users.toml"), text).expect("users.toml");
    }

    fn write_server(&self, plan: &Plan) {
        let file = ConfigFile::gateway(self.folder())
            .of_tollgate(self.folder())
            .set("tunnel_network", plan.tunnel)
            .set("bind_address", plan.bind)
            .set("isolate_clients", plan.isolate_clients)
            .set("shards.count", plan.shards);
        let file = plan.key_exchange.into_iter().fold(file, |file, name| file.set("protocol.key_exchange", name));
        let file = if plan.serves_noise {
            let path = |name: String| self.path(&name).display().to_string();
            let keys: Vec<String> = Kind::ALL.iter().map(|kind| path(format!("server_{kind}.key"))).collect();
            file.with_protocol([])
                .set("protocol.tls.certificate_file", path("server_cert.pem".to_owned()))
                .set("protocol.tls.certificate_key_file", path("server_key.pem".to_owned()))
                .set("protocol.noise.private_key_files", keys)
        } else {
            file
        };
        file.write(&self.path("server.toml")).expect("server.toml");
    }

    /// Writes the configuration of a Quincy client for `login`, and returns its path.
    pub fn write_client(&self, login: Login<'_>) -> PathBuf {
        let Login { user, endpoint, mode, key_exchange } = login;
        let routes = if self.tunnel.contains(':') { "fd00:19::/64" } else { "198.19.0.0/24" };
        let path = self.path(&format!("client_{user}.toml"));
        let mut file = ConfigFile::client(self.folder(), user, endpoint)
            .set("protocol.key_exchange", key_exchange)
            .set("connection.mtu", 1400)
            .set("log.level", "info")
            .set("network.routes", vec![routes]);
        if mode == "noise" {
            let kind = Kind::of_name(key_exchange).expect("a kind of Noise key");
            let (server, own) = (self.public_key("server", kind), self.private_key(user, kind));
            file = file.with_protocol([
                ("mode", mode),
                ("key_exchange", key_exchange),
                ("server_public_key", &server),
                ("private_key", &own),
            ]);
        }
        file.write(&path).expect("client.toml");
        path
    }
}
