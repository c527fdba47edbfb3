//! What one process of a gateway hears of another: any bytes, with and without the head that makes them a message.

use tollgate_shards::sibling::{decode, encode, sealed};
use tollgate_shards::{Generation, Shards, User, Users};

const SHARDS: Shards = Shards { generation: Generation::Odd, count: 4 };

/// What is heard is something that is said: said again and heard again, it is the same.
pub fn sibling(data: &[u8]) {
    let user = |name: &str| User { name: name.to_owned(), ..User::default() };
    let users = Users::new(["bob", "alice"].map(user).into()).expect("two names");
    let _ = decode(data, SHARDS, &users);
    let Ok((to, message)) = decode(&sealed(data), SHARDS, &users) else { return };
    let heard = format!("{message:?}");
    let again = encode(to, message, &users).expect("it was heard of another process");
    let (again_to, again) = decode(&again, SHARDS, &users).expect("it is of this version");
    assert_eq!((again_to, format!("{again:?}")), (to, heard));
}
