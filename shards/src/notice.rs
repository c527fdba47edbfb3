//! What the gateway tells a client that comes back by itself, once it has an address: JSON on a unidirectional stream, one each. Quincy's protocol has no
//! such thing.

use serde::{Deserialize, Serialize};

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "notice", rename_all = "snake_case")]
pub enum Notice {
    /// Another process of the gateway takes new clients: this one is to connect anew, and leaves when it has.
    Move,
}

impl Notice {
    pub fn to_json(self) -> Vec<u8> {
        serde_json::to_vec(&self).expect("a word can always be written")
    }

    /// As received. What a later gateway may say is none.
    pub fn from_json(json: &[u8]) -> Option<Self> {
        serde_json::from_slice(json).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_nobody_knows_yet_is_no_notice() {
        let json = br#"{"notice":"move"}"#;
        assert_eq!(Notice::Move.to_json(), json);
        assert_eq!(Notice::from_json(json), Some(Notice::Move));
        assert_eq!(Notice::from_json(br#"{"notice":"move","within_ms":10}"#), Some(Notice::Move));
        for json in [&b"{\"notice\":\"sing\"}"[..], b"{}", b"[]", b""] {
            assert_eq!(Notice::from_json(json), None);
        }
    }
}
