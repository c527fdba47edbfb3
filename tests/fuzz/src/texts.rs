//! What people, programs and peers write: configuration, orders, keys and certificates, the assignment of addresses.

use std::fs;
use std::io::Write;
use std::net::IpAddr;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, SystemTime};

use ipnet::IpNet;
use tempfile::TempDir;
use tollgate::control::protocol::{Answer, LineError, Lines, Next, REQUEST_BYTES_MAX, Request, decode, encode};
use tollgate::tls;
use tollgate_config::{ClientConfig, ConfigError, PROBLEMS_MAX, PemSource, ServerConfig, ServerTls, open_file};
use tollgate_shards::Assignment;

use crate::input::Input;

thread_local! {
    static FOLDER: TempDir = TempDir::new().expect("a temporary folder");
}

/// An address assignment from bytes is refused, or makes sense and survives being written; one that a gateway makes is read as it was.
pub fn assignment(data: &[u8]) {
    if let Ok(read) = Assignment::from_json(data) {
        let Assignment { client_address, server_address } = read;
        for net in [client_address, server_address] {
            assert!(!net.addr().is_loopback() && !net.addr().is_multicast() && !net.addr().is_unspecified());
            assert!(client_address.contains(&net.addr()) && server_address.contains(&net.addr()));
        }
        assert_eq!(Assignment::from_json(&read.to_json()), Ok(read));
    }
    let mut input = Input::new(data);
    let is_v6 = input.u8() & 1 != 0;
    let prefix = input.u8();
    let (tunnel, address): (IpAddr, IpAddr) = if is_v6 {
        (input.array::<16>().into(), input.array::<16>().into())
    } else {
        (input.array::<4>().into(), input.array::<4>().into())
    };
    let Ok(tunnel) = IpNet::new(tunnel, prefix) else { return };
    let made = Assignment::new(tunnel, address);
    let json = made.to_json();
    if let Ok(read) = Assignment::from_json(&json) {
        assert_eq!(read, made);
    }
}

/// A configuration is refused with its problems, or comes to the same when it is read again.
pub fn configuration(data: &[u8]) {
    let mut input = Input::new(data);
    let is_server = input.u8() & 1 == 0;
    let text = input.bytes();
    FOLDER.with(|folder| {
        let file = folder.path().join("tollgate.toml");
        fs::write(&file, text).expect("a file");
        let variables = variables(&mut input);
        if is_server {
            // A file that names the users beside it reads them.
            fs::write(folder.path().join("users.toml"), input.rest()).expect("a file");
            server(&file, &variables, folder.path());
        } else {
            let load = || ClientConfig::load(&file, variables.iter().cloned());
            match load() {
                Ok(config) => assert_eq!(config.effective(), load().expect("as before").effective()),
                Err(error) => judge_problems(&error),
            }
        }
    });
}

fn server(file: &Path, variables: &[(String, String)], folder: &Path) {
    let users = ("TOLLGATE_USERS_FILE".to_owned(), folder.join("users.toml").display().to_string());
    let load = || ServerConfig::load(file, variables.iter().cloned().chain([users.clone()]));
    match load() {
        Ok(config) => {
            let again = load().expect("as before");
            assert_eq!(config.effective(), again.effective());
            assert!(config.restart_needed(&again).is_empty() && config.live_changes(&again).is_empty());
        }
        Err(error) => judge_problems(&error),
    }
}

/// At most four variables of ours: a key and a value, each behind its length.
fn variables(input: &mut Input<'_>) -> Vec<(String, String)> {
    let text = |input: &mut Input<'_>| {
        let bytes = input.u8();
        String::from_utf8_lossy(input.take(bytes.into())).replace('\0', "")
    };
    let count = input.u8() % 5;
    (0..count).map(|_| (format!("TOLLGATE_{}", text(input)), text(input))).collect()
}

/// Problems are for people: there are some, not too many, and each can be shown on a terminal.
fn judge_problems(error: &ConfigError) {
    assert!((1..=PROBLEMS_MAX).contains(&error.problems().len()));
    for problem in error.problems() {
        let text = problem.to_string();
        assert!(!text.trim().is_empty());
        assert!(!text.chars().any(char::is_control), "{text:?}");
    }
}

/// Orders on the control socket, in whatever pieces they come: lines are what is between the ends of lines, or too long, and what is read as a
/// request or an answer is written so that it reads the same.
pub fn control(data: &[u8]) {
    let mut input = Input::new(data);
    let line_bytes_max = if input.u8() & 1 == 0 { REQUEST_BYTES_MAX } else { 64 };
    let (here, mut there) = UnixStream::pair().expect("two sockets");
    here.set_nonblocking(true).expect("a socket's flag");
    let mut lines = Lines::new(line_bytes_max);
    let (mut written, mut read) = (Vec::<u8>::new(), Vec::new());
    let mut is_over = false;
    while !input.is_empty() && !is_over {
        let piece = input.bytes();
        there.write_all(piece).expect("room for a piece");
        written.extend(piece);
        is_over = take(&mut lines, &here, &mut read);
    }
    drop(there);
    let is_over = is_over || take(&mut lines, &here, &mut read);
    let mut expected: Vec<_> = written.split(|byte| *byte == b'\n').collect();
    if expected.last().is_some_and(|last| last.is_empty()) {
        expected.pop();
    }
    let too_long = expected.iter().position(|line| line.len() > line_bytes_max);
    assert_eq!(is_over, too_long.is_some());
    assert_eq!(read, expected[..too_long.unwrap_or(expected.len())]);
    read.iter().for_each(|line| round_trips(line));
}

/// Takes all lines that have come. Returns whether one was too long.
fn take(lines: &mut Lines, stream: &UnixStream, read: &mut Vec<Vec<u8>>) -> bool {
    let mut pauses = 0;
    loop {
        match lines.next(stream) {
            Ok(Next::Line(line)) => read.push(line),
            // Once for what is read already, once for what the socket has.
            Ok(Next::Partial) if pauses < 70 => pauses += 1,
            Ok(Next::Partial | Next::End) => return false,
            Err(LineError::TooLong(_)) => return true,
            Err(error) => panic!("{error}"),
        }
    }
}

fn round_trips(line: &[u8]) {
    if let Ok(request) = decode::<Request>(line) {
        let again = encode(&request);
        assert_eq!(again.iter().filter(|byte| **byte == b'\n').count(), 1);
        assert_eq!(decode::<Request>(&again).expect("just written"), request);
    }
    if let Ok(answer) = decode::<Answer>(line) {
        let again = decode::<Answer>(&encode(&answer)).expect("just written");
        // The last digit of a fraction may be another.
        let without_time = |answer: Answer| Answer { took_ms: None, ..answer };
        assert_eq!(without_time(again), without_time(answer));
    }
}

/// Files of certificates and keys are used, or refused with words that show nothing of what is in them.
pub fn pem(data: &[u8]) {
    let mut input = Input::new(data);
    let certificates = String::from_utf8_lossy(input.bytes()).into_owned();
    let key = String::from_utf8_lossy(input.rest()).into_owned();
    let (chain, secret) = (PemSource::Inline(certificates.into()), PemSource::Inline(key.clone().into()));
    let server = ServerTls { key_exchange: None, certificates: vec![chain.clone()], key: secret };
    let shows = |error: &tls::TlsError| {
        let text = error.to_string();
        let secrets = key.as_bytes().windows(24).filter(|window| window.iter().all(|byte| is_base64(*byte)));
        assert!(!secrets.map(String::from_utf8_lossy).any(|window| text.contains(&*window)), "{text}");
    };
    let _ = tls::server(&server, &open_file).inspect_err(shows);
    let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1_700_000_000);
    let _ = tls::doubts(&server, &open_file, now).inspect_err(shows);
    let trusted = tls::certificates("trusted certificate", &chain, &open_file);
    if let Ok(trusted) = trusted {
        assert!(!trusted.is_empty());
    }
}

fn is_base64(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || byte == b'+' || byte == b'/'
}
