//! The gateway stops for good: every client is told, nobody comes in and nothing passes from then on, and nothing is left.

use std::net::IpAddr;
use std::time::Duration;

use tollgate_shards::{ClientEvent, CloseCause, Command, close_code};

use super::{Event, World};
use crate::gateway::Core;
use crate::oracle::Violation;
use crate::packets::Form;
use crate::plan::{Feature, Source};
use crate::schedule::Time;
use crate::trace::Who;

/// Within this time of the last shard's order all clients are told, and cores end: as long as the control plane waits.
const STOP: Duration = Duration::from_secs(2);
/// Packets go on to be sent so often.
const EVERY: Duration = Duration::from_millis(100);
const PORT: u16 = 9500;

/// The gateway is to stop.
#[derive(Debug)]
pub(crate) struct Stops {
    /// By shards: when each had nothing left to say to those who were there.
    obeyed: Vec<Option<Time>>,
}

/// A session that there was when the order was given.
struct Present {
    device: u32,
    session: u64,
    events_before: usize,
    is_attached: bool,
}

impl World {
    /// When the gateway is to stop: early in the calm, while clients still come and go, or once all is at rest.
    pub(crate) fn stops_early(&mut self) -> Option<Duration> {
        let mut random = self.plan.draws.stream("stop");
        let is_early = random.permille(300) && self.shell.is_none();
        let after = random.duration(Duration::ZERO, Duration::from_secs(2));
        (is_early && self.plan.features.has(Feature::Stop)).then_some(after)
    }

    /// Stops the gateway.
    pub(crate) fn stop_for_good(&mut self, is_at_rest: bool) -> Result<(), Violation> {
        let present = self.present();
        let spread = self.plan.disturbances.order_spread;
        let mut random = self.plan.draws.stream("stop.orders");
        for index in 0..self.plan.shards {
            let after = Duration::from_millis(1) + random.duration(Duration::ZERO, spread);
            self.schedule.at(self.now + after, Event::Stop(index));
        }
        self.stops = Some(Stops { obeyed: vec![None; usize::from(self.plan.shards)] });
        let deadline = self.now + spread + STOP;
        while self.now < deadline {
            self.go_on();
            self.run_until(self.now + EVERY)?;
        }
        if is_at_rest
            && let Some(Present { device, .. }) = present.iter().find(|it| it.is_attached && !self.is_told(it))
        {
            let told = &self.devices[*device as usize].events;
            let what = format!("device {device} was not told that the gateway has stopped, but {:?}", told.last());
            return Err(Violation::new("stop", what));
        }
        self.all_end()?;
        let deadline = self.now + self.patience();
        while let Some(Present { device, .. }) = present.iter().find(|it| self.is_connected(it)) {
            if self.now >= deadline {
                return Err(Violation::new("stop", format!("device {device} is still connected")));
            }
            self.run_until(self.now + Duration::from_secs(1))?;
        }
        Ok(())
    }

    fn present(&self) -> Vec<Present> {
        let present = self.devices.iter().zip(0..).filter_map(|(device, index)| {
            let session = device.session.as_ref().filter(|session| !session.over)?;
            let (session, events_before) = (session.number, device.events.len());
            // The others are about to leave, or a clock that leapt has made them idle to the gateway.
            let is_attached = device.wanted && device.address().is_some_and(|address| self.serves(address));
            Some(Present { device: index, session, events_before, is_attached })
        });
        present.collect()
    }

    /// Whether the gateway has a connection with this address.
    fn serves(&self, address: IpAddr) -> bool {
        let mut clients = self.gateway.cores.iter().flat_map(|core| core.shard().usage());
        clients.any(|client| client.address == address)
    }

    fn is_told(&self, present: &Present) -> bool {
        const SHUTDOWN: u64 = close_code::SHUTDOWN as u64;
        let since = &self.devices[present.device as usize].events[present.events_before..];
        let told = since.iter().find(|event| matches!(event, ClientEvent::Closed(_)));
        matches!(told, Some(ClientEvent::Closed(CloseCause::Gateway { code: SHUTDOWN, .. })))
    }

    fn is_connected(&self, present: &Present) -> bool {
        let session = self.devices[present.device as usize].session.as_ref();
        session.is_some_and(|session| session.number == present.session && !session.over)
    }

    /// Packets both ways, for whoever has an address or had one.
    fn go_on(&mut self) {
        let host = self.plan.network_host(0);
        for index in 0..self.devices.len() as u32 {
            let port = PORT + index as u16;
            let last_address = self.devices[index as usize].last_address;
            self.flow_up(index, Source::Own, (host, port), (100, Form::Whole));
            if let Some(address) = last_address {
                self.flow_down(host, address, port, 100);
            }
        }
    }

    /// The shell's cores have ended. Other shards have at least said all there was to say.
    fn all_end(&self) -> Result<(), Violation> {
        let obeyed = self.stops.iter().flat_map(|stops| &stops.obeyed);
        let runs_on = |(core, obeyed): &(&Core, &Option<Time>)| {
            obeyed.is_none() || core.machine().is_some_and(|machine| !machine.is_over())
        };
        match self.gateway.cores.iter().zip(obeyed).find(runs_on) {
            Some((core, _)) => Err(Violation::new("stop", format!("{:?} does not end", core.shard().index()))),
            None => Ok(()),
        }
    }

    /// A shard is told to stop.
    pub(super) fn stop_shard(&mut self, index: u16) {
        self.trace.note(self.now, Who::Shard(index), "is to stop", 0);
        self.hits.command(&Command::Stop);
        let now = self.shard_instant(index);
        self.touch_shard(index);
        match self.gateway.cores[usize::from(index)].machine_mut() {
            Some(machine) => machine.order(Command::Stop),
            None => self.shard_mut(index).handle_command(now, Command::Stop),
        }
    }

    /// A shard's pass is over: one that has stopped takes nobody, and once all have, nothing passes.
    pub(super) fn judge_stop(&mut self, index: u16) -> Result<(), Violation> {
        let Some(stops) = &mut self.stops else { return Ok(()) };
        let shard = self.gateway.cores[usize::from(index)].shard();
        let obeyed = &mut stops.obeyed[usize::from(index)];
        if obeyed.is_none() && shard.has_said_goodbye() {
            *obeyed = Some(self.now);
            self.hits.states(shard);
            if stops.obeyed.iter().all(Option::is_some) {
                self.packets.nothing_passes_from(self.now);
            }
        } else if obeyed.is_some() && shard.inspect().handshakes_admitted() > 0 {
            let what = format!("{:?} has stopped, and takes another handshake", shard.index());
            return Err(Violation::new("stop", what));
        }
        Ok(())
    }
}
