//! The IDs of Retries, which lead to whichever shard a client is to go to.
//!
//! An ID that is encrypted must be drawn until it fits. A Retry may not wait for that: it costs a stranger nothing. So what is drawn is kept for the shard
//! that it happens to steer to, up to a bound.

use quinn_proto::ConnectionId;

use super::SteeringIds;
use crate::ids::{ShardIndex, Shards};

/// IDs in stock for each shard.
const STOCK_MAX: usize = 16;
/// Draws at a time: of several together, one costs half of what it costs alone.
const DRAWS: usize = 8;
/// After so many Retries there are draws: each costs two on average, since every second ID is of the other generation.
const RETRIES: usize = DRAWS / 2;

pub struct RetryIds {
    ids: SteeringIds,
    /// By shard. Nothing where the first draw fits.
    stock: Vec<Vec<ConnectionId>>,
    missing: usize,
    /// Retries since the last draws for them.
    retries: usize,
}

impl RetryIds {
    /// Made of draws of `ids`, whichever shard those are for.
    pub fn new(ids: SteeringIds) -> Self {
        let mut this = RetryIds { ids, stock: Vec::new(), missing: 0, retries: 0 };
        this.fill();
        this
    }

    /// They lead to `shards` from now on.
    pub fn lead_to(&mut self, shards: Shards) {
        if self.ids.scheme.shards != shards {
            self.ids.scheme.shards = shards;
            self.fill();
        }
    }

    fn fill(&mut self) {
        let scheme = &self.ids.scheme;
        let shards = if scheme.layout.is_direct() { 0 } else { usize::from(scheme.shards.count) };
        self.stock = vec![Vec::with_capacity(STOCK_MAX); shards];
        self.missing = shards * STOCK_MAX;
        while self.missing > 0 {
            self.draw();
        }
    }

    /// An ID that leads to `owner`, or to the next shard for which there is one.
    pub fn take(&mut self, owner: ShardIndex) -> ConnectionId {
        if self.stock.is_empty() {
            return self.ids.draw_for(owner);
        }
        self.retries = (self.retries + 1) % RETRIES;
        if self.retries == 0 {
            self.restock();
        }
        loop {
            let (before, from) = self.stock.split_at_mut(owner.place());
            if let Some(id) = from.iter_mut().chain(before).find_map(Vec::pop) {
                self.missing += 1;
                return id;
            }
            self.draw();
        }
    }

    /// Draws some of what is missing. To be called in each pass of the shard.
    pub fn restock(&mut self) {
        if self.missing > 0 {
            self.draw();
        }
    }

    fn draw(&mut self) {
        for id in self.ids.draw::<DRAWS>() {
            let Some(shard) = self.ids.scheme.shard_of(&id) else { continue };
            let stock = &mut self.stock[shard.place()];
            if stock.len() < STOCK_MAX {
                stock.push(id);
                self.missing -= 1;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::{ConnectionIdKey, IdLayout, IdScheme, QuicLb};
    use super::*;
    use crate::ids::Shards;

    #[test]
    fn whichever_shard_is_wanted_no_stock_outgrows_its_bound() {
        let config = QuicLb { rotation: 0, server_id: vec![1], key: Some([3; 16]) };
        let layout = IdLayout::quic_lb(12, &config, ConnectionIdKey([7; 16])).unwrap();
        let scheme = IdScheme::new(layout, Shards::alone(4), ShardIndex(0));
        let mut ids = RetryIds::new(SteeringIds::new(scheme, [1; 16]));
        for _ in 0..200 {
            ids.take(ShardIndex(1));
            ids.restock();
            assert!(ids.stock.iter().all(|stock| stock.len() <= STOCK_MAX));
        }
    }
}
