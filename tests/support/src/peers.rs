//! Quincy's own programs, which the tests connect with. They are not part of this repository.

use std::env;
use std::path::{Path, PathBuf};

#[derive(Debug, Clone)]
pub struct Peers {
    folder: PathBuf,
}

impl Peers {
    /// Finds them in `$TOLLGATE_PEERS` or `.peers/bin`.
    pub fn find() -> Self {
        let folder = env::var_os("TOLLGATE_PEERS")
            .map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../../.peers/bin"), PathBuf::from);
        let peers = Peers { folder };
        let client = peers.client();
        assert!(client.is_file(), "{} is missing: install it with `cargo xtask peers`", client.display());
        peers
    }

    pub fn client(&self) -> PathBuf {
        self.folder.join("quincy-client")
    }

    pub fn server(&self) -> PathBuf {
        self.folder.join("quincy-server")
    }

    pub fn identity(&self) -> PathBuf {
        self.folder.join("quincy-identity")
    }
}
