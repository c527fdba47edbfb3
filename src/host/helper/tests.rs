use std::io::Read;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::thread;

use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};

use super::*;
use crate::host::rules::tests::rules;
use crate::host::{Host, HostError};

/// A helper with one end of a socket pair, on a thread that ends with it, and the other end.
fn helper() -> (OwnedFd, thread::JoinHandle<()>) {
    let (ours, theirs) = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None).unwrap();
    let helper = thread::spawn(move || serve(&theirs, rules(None), Program::of_this_process()));
    (ours, helper)
}

#[test]
fn what_no_gateway_says_ends_the_helper() {
    let link = postcard::to_stdvec(&Request::RemoveLink { interface: 2 }).unwrap();
    // A byte longer than there may be, and well-formed.
    let started = |bytes| {
        let request = Request::StartSuccessor { program: Some(PathBuf::from("x".repeat(bytes))) };
        postcard::to_stdvec(&request).unwrap()
    };
    let longest = started(MESSAGE_BYTES_MAX - 3);
    assert_eq!(longest.len(), MESSAGE_BYTES_MAX + 1);
    for said in [
        Vec::new(),
        vec![0xff; 64],
        b"GET / HTTP/1.1\r\n\r\n".to_vec(),
        link[..link.len() - 1].to_vec(),
        [&link[..], &[0]].concat(),
        longest,
        vec![0; 2 * MESSAGE_BYTES_MAX],
    ] {
        let (ours, helper) = helper();
        descriptor_messages::send_with(ours.as_fd(), &said, &[]).unwrap();
        let end = descriptor_messages::receive_with(ours.as_fd(), &mut [0; 8], &mut Vec::new());
        assert!(matches!(end, Ok(0) | Err(_)), "{} bytes: {end:?}", said.len());
        helper.join().unwrap();
    }
}

#[test]
fn more_descriptors_than_belong_to_a_request_end_the_helper() {
    let (ours, helper) = helper();
    let request = postcard::to_stdvec(&Request::MakeSteeringMap).unwrap();
    descriptor_messages::send_with(ours.as_fd(), &request, &[ours.as_fd(), ours.as_fd()]).unwrap();
    helper.join().unwrap();
}

#[test]
fn what_is_not_the_gateways_is_refused_and_the_helper_goes_on() {
    let (ours, helper) = helper();
    let mut host = Host::over(ours).unwrap();
    for _ in 0..2 {
        let refused = host.change(Request::RemoveLink { interface: 1 }).unwrap_err();
        assert!(matches!(&refused, HostError::Refused(reason) if reason.contains("not its own")), "{refused}");
        // A request without the descriptor that belongs to it.
        let refused = host.change(Request::StartSuccessor { program: None }).unwrap_err().to_string();
        assert!(refused.contains("descriptor is missing"), "{refused}");
        assert!(host.end_successor(true).contains("no process"), "nothing was started");
    }
    drop(host);
    helper.join().unwrap();
}

#[test]
fn a_program_that_root_does_not_own_alone_is_not_started() {
    let (ours, helper) = helper();
    let mut host = Host::over(ours).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let program = folder.path().join("program");
    std::fs::write(&program, "#!/bin/sh\necho ran >&0\n").unwrap();
    std::fs::set_permissions(&program, std::os::unix::fs::PermissionsExt::from_mode(0o777)).unwrap();
    let (mut here, there) = UnixStream::pair().unwrap();
    let refused = host.start_successor(Some(program), there).unwrap_err().to_string();
    assert!(refused.contains("cannot be started"), "{refused}");
    let mut said = String::new();
    here.read_to_string(&mut said).unwrap();
    assert_eq!(said, "", "nobody has the other end");
    drop(host);
    helper.join().unwrap();
}

#[test]
fn a_helper_that_is_gone_is_an_error_at_each_request() {
    let (ours, theirs) = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None).unwrap();
    drop(theirs);
    let mut host = Host::over(ours).unwrap();
    for _ in 0..2 {
        let gone = host.change(Request::SetUp { interface: 1 }).unwrap_err();
        assert!(matches!(gone, HostError::Gone(_)), "{gone}");
    }
}
