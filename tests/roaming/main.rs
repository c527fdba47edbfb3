//! `tollgate connect` on a machine whose network changes under it: links, routers, addresses and routes come and go.
//!
//! Each test holds packets of the tunnel's inside against what crosses the physical links: none may, at any time.

mod links;
mod lives;
mod meddlers;
mod tunnel;
