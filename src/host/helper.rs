//! The helper: one thread that waits for requests, and ends when nobody can make one any more.
//!
//! Whoever asks has no privileges and may have been taken over. What is not understood ends the helper; what is not this gateway's is refused.

use std::io;
use std::os::fd::{AsFd, OwnedFd};

use super::hands::Hands;
use super::rules::Rules;
use super::{Answer, MESSAGE_BYTES_MAX, Reply, Request};
use crate::io::descriptor_messages;
use crate::upgrade::Program;

/// Longest reason that is told, in bytes.
const REASON_BYTES_MAX: usize = MESSAGE_BYTES_MAX / 2;

/// Serves until the other end of `link` is closed, or says what no gateway says.
pub fn serve(link: &OwnedFd, mut rules: Rules, program: Program) {
    let mut hands = Hands::new(program);
    while let Ok(Some((request, with))) = receive(link) {
        if answer(link, &mut rules, &mut hands, request, with).is_err() {
            break;
        }
    }
    hands.undo();
}

/// The next request with its descriptor. `None` at the end, and for what is none.
fn receive(link: &OwnedFd) -> io::Result<Option<(Request, Option<OwnedFd>)>> {
    // A byte more than there may be tells what was cut off.
    let mut buffer = [0; MESSAGE_BYTES_MAX + 1];
    let mut descriptors = Vec::new();
    let received = descriptor_messages::receive_with(link.as_fd(), &mut buffer, &mut descriptors)?;
    if received == 0 || received > MESSAGE_BYTES_MAX || descriptors.len() > 1 {
        return Ok(None);
    }
    Ok(match postcard::take_from_bytes(&buffer[..received]) {
        Ok((request, [])) => Some((request, descriptors.pop())),
        _ => None,
    })
}

fn answer(
    link: &OwnedFd,
    rules: &mut Rules,
    hands: &mut Hands,
    request: Request,
    with: Option<OwnedFd>,
) -> io::Result<()> {
    let outcome = match rules.check(&request) {
        Ok(()) => hands.carry_out(request, with).map_err(|refusal| refusal.to_string()),
        Err(refusal) => Err(refusal.to_string()),
    };
    let (result, descriptors) = match outcome {
        Ok((answer, descriptors)) => (Ok(answer), descriptors),
        Err(mut reason) => {
            reason.truncate(reason.floor_char_boundary(REASON_BYTES_MAX));
            (Err(reason), Vec::new())
        }
    };
    if let Ok(Answer::Tun(facts)) = &result {
        rules.follow(facts);
    }
    let reply = Reply { port: hands.port(), result, descriptors: descriptors.len() as u32 };
    let bytes = postcard::to_stdvec(&reply).map_err(io::Error::other)?;
    descriptor_messages::send_with(link.as_fd(), &bytes, &[])?;
    let all: Vec<_> = descriptors.iter().map(AsFd::as_fd).collect();
    descriptor_messages::send(link.as_fd(), &all)
}

#[cfg(test)]
mod tests;
