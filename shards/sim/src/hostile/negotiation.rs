//! Somebody beside the path who says in the gateway's name that it speaks other versions of QUIC. Nothing protects a Version Negotiation (RFC 9000,
//! section 6): its client gives up, and must come in by its next attempt.

/// Of a thousand first packets, so many are answered.
pub const ANSWERED_PERMILLE: u32 = 50;

/// Versions that nobody speaks (RFC 9000, section 15).
const VERSIONS: [[u8; 4]; 2] = [[0x1a, 0x2a, 0x3a, 0x4a], [0x5a, 0x6a, 0x7a, 0x8a]];

/// The answer to an Initial.
pub fn answer(datagram: &[u8]) -> Option<Vec<u8>> {
    let is_initial = datagram.first()? & 0xf0 == 0xc0;
    let mut rest = datagram.get(5..)?;
    let mut id = || {
        let (&length, behind) = rest.split_first()?;
        let (_, after) = behind.split_at_checked(usize::from(length))?;
        let with_length = &rest[..1 + usize::from(length)];
        rest = after;
        Some(with_length)
    };
    let (destination, source) = (id()?, id()?);
    is_initial.then(|| [&[0x80, 0, 0, 0, 0], source, destination, &VERSIONS.concat()].concat())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_initial_is_answered_with_its_ids_the_other_way_round() {
        let initial = [&[0xc3, 0, 0, 0, 1, 2, 7, 8, 3, 4, 5, 6][..], &[0; 20]].concat();
        let answer_begins = [0x80, 0, 0, 0, 0, 3, 4, 5, 6, 2, 7, 8, 0x1a];
        assert!(answer(&initial).unwrap().starts_with(&answer_begins));
        let handshake = [&[0xe3][..], &initial[1..]].concat();
        assert!(answer(&handshake).is_none() && answer(&initial[..10]).is_none() && answer(&[]).is_none());
    }
}
