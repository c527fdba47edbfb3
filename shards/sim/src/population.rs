//! The users as they stand, and how they change.

use std::collections::BTreeSet;
use std::net::IpAddr;

use tollgate_shards::{AddressRange, Fingerprint, SessionLimits, User, Users};

use crate::identity::Identity;
use crate::noise;
use crate::plan::{DevicePlan, Feature, Plan, draw_limit, draw_session_limits, draw_user};
use crate::random::Stream;

/// Certificates that replace others have numbers from here on, so many for each device.
const RENEWED: u64 = 1 << 32;

/// All users there are, and were.
#[derive(Debug, Clone)]
pub struct Population {
    users: Vec<User>,
    present: Vec<bool>,
    /// The identity that each device shows now.
    identities: Vec<u64>,
    /// The user of each device.
    owners: Vec<usize>,
    pub isolate_clients: bool,
    pub session_limits: SessionLimits,
    renewals: u64,
}

impl Population {
    pub fn new(plan: &Plan) -> Self {
        Population {
            users: plan.users.clone(),
            present: vec![true; plan.users.len()],
            identities: plan.devices.iter().map(|device: &DevicePlan| device.identity).collect(),
            owners: plan.devices.iter().map(|device| device.user).collect(),
            isolate_clients: plan.isolate_clients,
            session_limits: plan.session_limits,
            renewals: 0,
        }
    }

    /// The users who succeed `before`.
    pub fn users(&self, before: &Users) -> Users {
        before.succeed(self.present().cloned().collect()).expect("names and certificates are unique")
    }

    pub fn present(&self) -> impl Iterator<Item = &User> {
        self.users.iter().zip(&self.present).filter(|(_, present)| **present).map(|(user, _)| user)
    }

    /// The user at `index`, if it is there now.
    pub fn user(&self, index: usize) -> Option<&User> {
        self.users.get(index).filter(|_| self.present[index])
    }

    pub fn identity(&self, device: usize) -> u64 {
        self.identities[device]
    }

    pub fn may_log_in(&self, device: usize) -> bool {
        let shown = Identity::cached(self.identities[device]).fingerprint;
        self.user(self.owners[device]).is_some_and(|user| user.credentials.contains(&shown))
    }

    /// Whether some user who is there now may have `address` as its own.
    pub fn owns(&self, address: IpAddr) -> bool {
        self.present().any(|user| user.pool.iter().any(|range| range.contains(address)))
    }

    pub fn set_pool(&mut self, index: usize, pool: AddressRange) {
        self.users[index].pool = vec![pool];
    }

    pub fn set_present(&mut self, index: usize, present: bool) {
        self.present[index] = present;
    }

    /// Changes some of it. Returns what, in words.
    pub fn change(&mut self, plan: &Plan, random: &mut Stream) -> String {
        let mut words = Vec::new();
        for _ in 0..random.between(1, 4) {
            let index = random.index(self.users.len());
            let name = self.users[index].name.clone();
            let what = match random.between(0, 8) {
                0 | 1 => self.come_or_go(index),
                2 | 3 if plan.features.has(Feature::Limits) => self.change_limit(index, random),
                4 if plan.features.has(Feature::Pools) || plan.features.has(Feature::ConnectionLimits) => {
                    let drawn = draw_user(index, plan.tunnel, plan.features, random);
                    let user = &mut self.users[index];
                    (user.pool, user.connection_limit) = (drawn.pool, drawn.connection_limit);
                    "other addresses and connections"
                }
                5 | 6 => self.renew(index, random),
                _ if plan.features.has(Feature::Peers) => {
                    self.isolate_clients = !self.isolate_clients;
                    "isolation flipped"
                }
                _ => self.come_or_go(index),
            };
            words.push(format!("{name}: {what}"));
        }
        if plan.features.has(Feature::Expiry) && random.permille(500) {
            self.session_limits = draw_session_limits(random);
            words.push("other deadlines".to_owned());
        }
        words.join("; ")
    }

    /// What changes while a device logs in: its user's addresses, or its certificate, which it has renewed. Returns that in words, and whether it is
    /// the certificate.
    pub fn race(&mut self, device: usize, plan: &Plan, random: &mut Stream) -> (&'static str, bool) {
        let index = self.owners[device];
        if plan.features.has(Feature::Pools) && random.permille(500) {
            self.users[index].pool = draw_user(index, plan.tunnel, plan.features, random).pool;
            return ("other addresses", false);
        }
        self.renewals += 1;
        self.identities[device] = noise::renewed(self.identities[device], RENEWED + self.renewals);
        self.certify(index);
        ("a certificate renewed", true)
    }

    /// A user has the credentials that its devices show now.
    fn certify(&mut self, index: usize) {
        let devices = (0..self.owners.len()).filter(|&device| self.owners[device] == index);
        let credentials = devices.map(|device| Identity::cached(self.identities[device]).fingerprint);
        let credentials: BTreeSet<Fingerprint> = credentials.collect();
        self.users[index].credentials = credentials.into_iter().collect();
    }

    fn come_or_go(&mut self, index: usize) -> &'static str {
        self.present[index] = !self.present[index];
        if self.present[index] { "comes back" } else { "goes" }
    }

    fn change_limit(&mut self, index: usize, random: &mut Stream) -> &'static str {
        let limit = draw_limit(random);
        self.users[index].limit = random.permille(800).then_some(limit);
        "another limit"
    }

    /// A device's certificate is replaced at the gateway; the device learns of it now or never.
    fn renew(&mut self, index: usize, random: &mut Stream) -> &'static str {
        let devices: Vec<usize> = (0..self.owners.len()).filter(|&device| self.owners[device] == index).collect();
        let device = random.pick(&devices);
        self.renewals += 1;
        let identity = noise::renewed(self.identities[device], RENEWED + self.renewals);
        let known = random.permille(700);
        if known {
            self.identities[device] = identity;
        }
        let credentials = devices.iter().map(|&device| Identity::cached(self.identities[device]).fingerprint);
        let mut credentials: Vec<Fingerprint> = credentials.collect();
        if !known {
            credentials.retain(|&credential| credential != Identity::cached(self.identities[device]).fingerprint);
            credentials.push(Identity::cached(identity).fingerprint);
        }
        credentials.sort_unstable();
        credentials.dedup();
        self.users[index].credentials = credentials;
        if known { "a device's certificate renewed" } else { "a device's certificate revoked" }
    }
}
