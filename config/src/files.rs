//! Every key of every file, for what is made from the declarations: examples and the reference.

use crate::client::ClientConfig;
use crate::schema::{Declared, Section};
use crate::server::ServerConfig;
use crate::users;

/// The files and all that may stand in them, with defaults in place of values. What a required key has there means nothing.
pub fn files() -> [(&'static str, Vec<Section>); 3] {
    [
        ("server.toml", ServerConfig::initial().sections()),
        ("users.toml", vec![users::table()]),
        ("client.toml", ClientConfig::initial().sections()),
    ]
}
