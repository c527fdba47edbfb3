//! What makes the machine forward clients' packets: rules of nftables in a table of the gateway's own, and the kernel's switch.
//!
//! Two processes of one gateway have one table between them. Whoever sets it up puts a chain into it that bears its number, and takes the table away only
//! together with that chain, in one transaction: so the last one that has set it up is the one that takes it away, whatever becomes of the other.

use std::fmt::Write as _;
use std::fs;
use std::io::{self, Read, Write};
use std::os::unix::process::CommandExt;
use std::process::{self, Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use tollgate_config::HostSettings;

/// Where the program is looked for, whatever the gateway was started with: it runs with privileges.
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// How long it may take: shorter than the gateway waits for an answer.
const NFT_TIMEOUT: Duration = Duration::from_secs(5);
const NFT_INTERVAL: Duration = Duration::from_millis(2);
/// The most of its complaint that is told, in bytes.
const COMPLAINT_BYTES_MAX: u64 = 512;

/// Why packets are not forwarded.
#[derive(Debug, thiserror::Error)]
pub enum ForwardingError {
    #[error(
        "a rule of nftables cannot name the interface {0:?}: for masquerade and mss_clamp in [host], take letters, digits, '-', '_' and '.' for \
         interface_name"
    )]
    Name(String),
    #[error("masquerade and mss_clamp in [host] need the program nft ({0}): apt-get install nftables")]
    Program(io::Error),
    #[error("nft does not set up what [host] asks for: {0}")]
    Refused(String),
    #[error("nft does not end within {NFT_TIMEOUT:?}")]
    Stuck,
    #[error(
        "forwarding is off and cannot be turned on ({path}: {source}): run sysctl -w {key}=1 before the gateway, or have the container do it"
    )]
    Setting { path: &'static str, key: &'static str, source: io::Error },
}

/// How the packets of a tunnel are forwarded.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ForwardingPlan {
    /// The gateway's interface.
    pub interface: String,
    /// The network behind it.
    pub network: IpNet,
    /// Whether the kernel is to forward.
    pub forwards: bool,
    /// Whether packets get the machine's own address.
    pub masquerade: bool,
    /// Whether segment sizes of TCP are lowered to what routes carry.
    pub mss_clamp: bool,
}

impl ForwardingPlan {
    /// What `settings` ask for. `None` where that is nothing.
    pub fn of(settings: &HostSettings, tunnel: IpNet, interface: &str) -> Option<Self> {
        let plan = ForwardingPlan {
            interface: interface.to_owned(),
            network: tunnel.trunc(),
            forwards: settings.needs_forwarding(),
            masquerade: settings.masquerade,
            mss_clamp: settings.mss_clamp,
        };
        (plan.forwards || plan.has_rules()).then_some(plan)
    }

    fn has_rules(&self) -> bool {
        self.masquerade || self.mss_clamp
    }

    /// Family and name of the table, as nft takes them.
    fn table(&self) -> String {
        let family = if self.network.addr().is_ipv4() { "ip" } else { "ip6" };
        format!("{family} tollgate_{}", self.interface)
    }

    /// What sets the rules up in place of those that are there, in one transaction. `owner` is whose they are.
    fn script(&self, owner: u32) -> Result<String, ForwardingError> {
        let Self { interface, network, masquerade, mss_clamp, .. } = self;
        // What nft reads is made of parsed addresses and of names that mean nothing to it.
        let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
        if interface.is_empty() || !interface.bytes().all(is_plain) {
            return Err(ForwardingError::Name(interface.clone()));
        }
        let (table, family) = (self.table(), if network.addr().is_ipv4() { "ip" } else { "ip6" });
        let mut script = format!("table {table}\ndelete table {table}\ntable {table} {{\nchain owner_{owner} {{ }}\n");
        // Writing to a String cannot fail.
        if *masquerade {
            let _ = writeln!(
                script,
                "chain postrouting {{\ntype nat hook postrouting priority srcnat; policy accept;\n\
                 {family} saddr {network} oifname != \"{interface}\" masquerade\n}}"
            );
        }
        if *mss_clamp {
            let clamp = "tcp flags syn tcp option maxseg size set rt mtu";
            let _ = writeln!(
                script,
                "chain forward {{\ntype filter hook forward priority mangle; policy accept;\n\
                 iifname \"{interface}\" {clamp}\noifname \"{interface}\" {clamp}\n}}"
            );
        }
        script.push_str("}\n");
        Ok(script)
    }
}

/// The rules that this process has set up.
#[derive(Debug)]
pub struct Forwarding {
    table: String,
    owner: u32,
}

impl Forwarding {
    /// Sets up what `plan` says, in place of what is there, and returns the rules, if there are any, and whether forwarding was off.
    ///
    /// # Errors
    ///
    /// What the kernel or nft refuses. Then nothing has changed but, perhaps, that the kernel forwards.
    pub fn set_up(plan: &ForwardingPlan) -> Result<(Option<Self>, bool), ForwardingError> {
        let was_off = plan.forwards && turn_on(plan.network.addr().is_ipv6())?;
        if !plan.has_rules() {
            return Ok((None, was_off));
        }
        let rules = Forwarding { table: plan.table(), owner: process::id() };
        nft(&["-f", "-"], &plan.script(rules.owner)?)?;
        Ok((Some(rules), was_off))
    }

    /// Whether the rules of `plan` could be set up. Changes nothing.
    ///
    /// # Errors
    ///
    /// Why they could not.
    pub fn try_out(plan: &ForwardingPlan) -> Result<(), ForwardingError> {
        if plan.has_rules() { nft(&["--check", "-f", "-"], &plan.script(process::id())?) } else { Ok(()) }
    }

    /// Takes the rules away, unless another process has set them up since.
    pub fn undo(self) {
        let Forwarding { table, owner } = self;
        // Nobody is left who could be told that it failed.
        let _ = nft(&["-f", "-"], &format!("delete chain {table} owner_{owner}\ndelete table {table}\n"));
    }
}

/// Has the kernel forward. Returns whether it did not before.
fn turn_on(is_v6: bool) -> Result<bool, ForwardingError> {
    let (path, key) = match is_v6 {
        true => ("/proc/sys/net/ipv6/conf/all/forwarding", "net.ipv6.conf.all.forwarding"),
        false => ("/proc/sys/net/ipv4/ip_forward", "net.ipv4.ip_forward"),
    };
    let turned = fs::read_to_string(path).and_then(|value| match value.trim() {
        "0" => fs::write(path, "1").map(|()| true),
        _ => Ok(false),
    });
    turned.map_err(|source| ForwardingError::Setting { path, key, source })
}

/// Runs nft with `arguments` on `script`.
fn nft(arguments: &[&str], script: &str) -> Result<(), ForwardingError> {
    let mut command = Command::new("nft");
    command.args(arguments).env_clear().env("PATH", PATH);
    command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped());
    // A service manager that stops the gateway, or finds it dead, signals whatever is in its control group: the rules are to be taken away all the same.
    // SAFETY: signal(2) is safe between fork and exec, and touches no memory of the parent.
    unsafe {
        command.pre_exec(|| {
            for signal in [libc::SIGHUP, libc::SIGINT, libc::SIGTERM] {
                libc::signal(signal, libc::SIG_IGN);
            }
            Ok(())
        })
    };
    let mut child = command.spawn().map_err(ForwardingError::Program)?;
    // A pipe holds a script whole. One that nft does not read makes nft fail, which says why.
    let _ = child.stdin.take().map(|mut input| input.write_all(script.as_bytes()));
    if end(&mut child)? {
        return Ok(());
    }
    let mut complaint = Vec::new();
    let _ = child.stderr.map(|output| output.take(COMPLAINT_BYTES_MAX).read_to_end(&mut complaint));
    Err(ForwardingError::Refused(String::from_utf8_lossy(&complaint).trim().replace('\n', " ")))
}

/// Waits until `child` has ended, for a bounded time. Returns whether it was content.
fn end(child: &mut Child) -> Result<bool, ForwardingError> {
    let deadline = Instant::now() + NFT_TIMEOUT;
    loop {
        match child.try_wait().map_err(ForwardingError::Program)? {
            Some(status) => return Ok(status.success()),
            None if Instant::now() < deadline => thread::sleep(NFT_INTERVAL),
            None => {
                let _ = child.kill();
                let _ = child.wait();
                return Err(ForwardingError::Stuck);
            }
        }
    }
}

#[cfg(test)]
mod tests;
