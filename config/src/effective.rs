//! The configuration as it is in force, written like a file: every key with its value, defaults included, secrets masked.

use std::fmt::{Display, Write};
use std::path::Path;

use crate::client::ClientConfig;
use crate::connection::Connection;
use crate::data_path::DataPath;
use crate::protocol::PemSource;
use crate::server::{Metrics, ServerConfig};
use crate::sessions::{Sessions, when_reached_name};
use crate::shards::{ShardCount, Shards};
use crate::value::rate_text;

/// What stands in place of a secret.
const MASK: &str = "(masked)";

impl ServerConfig {
    /// The configuration in force, like a `server.toml`. Users are only counted, and secrets masked.
    pub fn effective(&self) -> String {
        let mut text = Text::default();
        text.string("name", &self.name);
        text.optional("interface_name", self.interface_name.as_deref(), "chosen by the kernel");
        text.string("bind_address", self.bind.ip());
        text.bare("bind_port", self.bind.port());
        text.bare("reuse_socket", self.reuse_socket);
        text.string("tunnel_network", self.tunnel_network);
        text.path("users_file", &self.users_file);
        let users = &self.users.directory;
        let certificates: usize = users.users().map(|(_, user)| user.certificates.len()).sum();
        text.comment(&format!("{} users with {certificates} certificates", users.len()));
        text.bare("isolate_clients", self.isolate_clients);
        let limit = self.default_bandwidth_limit.map(rate_text);
        text.optional("default_bandwidth_limit", limit.as_deref(), "no limit");

        text.table("protocol");
        text.string("mode", "tls");
        let key_exchange = self.tls.key_exchange.map(|key_exchange| key_exchange.name());
        text.optional("key_exchange", key_exchange, "what the client offers");
        for certificates in &self.tls.certificates {
            text.pem("certificate", certificates);
        }
        text.pem("certificate_key", &self.tls.key);

        connection(&mut text, &self.connection);
        text.table("log");
        text.string("level", &self.log);
        metrics(&mut text, &self.metrics);
        shards(&mut text, &self.shards);
        data_path(&mut text, &self.data_path);
        sessions(&mut text, &self.sessions);
        text.table("control");
        text.path("socket", &self.control.socket);
        text.bare("watch_users_file", self.control.watch_users_file);
        text.0
    }
}

impl ClientConfig {
    /// The configuration in force, like a `client.toml`, with secrets masked.
    pub fn effective(&self) -> String {
        let mut text = Text::default();
        text.string("connection_string", &self.server);

        text.table("protocol");
        text.string("mode", "tls");
        text.string("key_exchange", self.tls.key_exchange.name());
        let paths = self.tls.trusted.iter().filter_map(|trusted| match trusted {
            PemSource::File(path) => Some(path.display()),
            PemSource::Inline(_) => None,
        });
        text.strings("trusted_certificate_paths", paths);
        let inline = self.tls.trusted.iter().filter(|trusted| matches!(trusted, PemSource::Inline(_)));
        text.strings("trusted_certificates", inline.map(|_| MASK));
        for certificates in &self.tls.certificates {
            text.pem("client_certificate", certificates);
        }
        text.pem("client_certificate_key", &self.tls.key);

        connection(&mut text, &self.connection);
        text.table("network");
        text.strings("routes", &self.network.routes);
        text.strings("dns_servers", &self.network.dns_servers);
        text.optional("interface_name", self.network.interface_name.as_deref(), "chosen by the kernel");
        text.table("log");
        text.string("level", &self.log);
        text.0
    }
}

fn connection(text: &mut Text, connection: &Connection) {
    text.table("connection");
    text.bare("mtu", connection.mtu_bytes);
    text.string("congestion_controller", connection.congestion_controller.name());
    text.bare("connection_timeout_s", connection.connection_timeout.as_secs());
    text.bare("keep_alive_interval_s", connection.keep_alive_interval.as_secs());
    text.bare("send_buffer_size", connection.send_buffer_bytes);
    text.bare("recv_buffer_size", connection.recv_buffer_bytes);
    text.bare("datagram_send_buffer_size", connection.datagram_send_buffer_bytes);
    text.bare("datagram_receive_buffer_size", connection.datagram_receive_buffer_bytes);
    text.bare("max_pending_handshakes", connection.pending_handshakes_max);
    text.bare("max_pending_handshakes_per_source", connection.pending_handshakes_per_source_max);
}

fn metrics(text: &mut Text, metrics: &Metrics) {
    text.table("metrics");
    text.bare("enabled", metrics.enabled);
    text.string("address", metrics.bind.ip());
    text.bare("port", metrics.bind.port());
    text.bare("reporting_interval_s", metrics.reporting_interval.as_secs());
    text.bare("idle_timeout_s", metrics.idle_timeout.map_or(0, |timeout| timeout.as_secs()));
}

fn shards(text: &mut Text, shards: &Shards) {
    text.table("shards");
    match shards.count {
        ShardCount::Auto => text.string("count", "auto"),
        ShardCount::Fixed(count) => text.bare("count", count),
    }
    match &shards.cpus {
        Some(cpus) => text.bare("cpus", format_args!("{cpus:?}")),
        None => text.comment("cpus: all that the process may use"),
    }
    text.path("key_file", &shards.key_file);
    match shards.memory_bytes {
        Some(bytes) => text.bare("memory_mib", bytes >> 20),
        None => text.comment("memory_mib: half of what the machine has, or the control group allows"),
    }
}

fn data_path(text: &mut Text, data_path: &DataPath) {
    text.table("data_path");
    text.bare("coalesce_us", data_path.coalesce.as_micros());
    text.bare("busy_poll_us", data_path.busy_poll.as_micros());
    let DataPath { thin_acks, gro, gso, tso, uso, .. } = *data_path;
    for (key, switch) in [("thin_acks", thin_acks), ("gro", gro), ("gso", gso), ("tso", tso), ("uso", uso)] {
        text.bare(key, switch);
    }
}

fn sessions(text: &mut Text, sessions: &Sessions) {
    text.table("sessions");
    match sessions.connections_max {
        Some(count) => {
            text.bare("max_connections", count);
            text.string("when_reached", when_reached_name(sessions.when_reached));
        }
        None => text.comment("max_connections: as many as there are addresses"),
    }
    text.bare("burst_ms", sessions.burst.as_millis());
    text.bare("burst_bytes_min", sessions.burst_bytes_min);
}

/// Lines of TOML.
#[derive(Default)]
struct Text(String);

impl Text {
    fn line(&mut self, line: std::fmt::Arguments<'_>) {
        // Writing to a String cannot fail.
        let _ = writeln!(self.0, "{line}");
    }

    fn table(&mut self, name: &str) {
        self.line(format_args!("\n[{name}]"));
    }

    fn comment(&mut self, comment: &str) {
        self.line(format_args!("# {comment}"));
    }

    fn bare(&mut self, key: &str, value: impl Display) {
        self.line(format_args!("{key} = {value}"));
    }

    fn string(&mut self, key: &str, value: impl Display) {
        self.line(format_args!("{key} = {}", quoted(value)));
    }

    fn strings(&mut self, key: &str, values: impl IntoIterator<Item = impl Display>) {
        let values: Vec<String> = values.into_iter().map(quoted).collect();
        self.line(format_args!("{key} = [{}]", values.join(", ")));
    }

    fn path(&mut self, key: &str, path: &Path) {
        self.string(key, path.display());
    }

    fn optional(&mut self, key: &str, value: Option<&str>, absent: &str) {
        match value {
            Some(value) => self.string(key, value),
            None => self.comment(&format!("{key}: {absent}")),
        }
    }

    fn pem(&mut self, key: &str, source: &PemSource) {
        match source {
            PemSource::File(path) => self.path(&format!("{key}_file"), path),
            PemSource::Inline(_) => self.string(key, MASK),
        }
    }
}

fn quoted(value: impl Display) -> String {
    toml::Value::String(value.to_string()).to_string()
}
