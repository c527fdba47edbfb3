//! Events in qlog's sequential form, for the tools that draw it. Each connection is a group of events, named by its inner address.

use std::io::{self, Write};
use std::time::{Instant, SystemTime};

use qlog::events::quic::{ConnectionClosed, RecoveryMetricsUpdated};
use qlog::events::{Event as Told, EventData, EventImportance, ExData};
use qlog::streamer::{EventTimePrecision, QlogStreamer};
use qlog::{CommonFields, ReferenceTime, TimeFormat, TraceSeq, VantagePoint, VantagePointType};

use super::event::{Event, What};

/// The events of QUIC (draft-ietf-quic-qlog-quic-events).
const SCHEMA: &str = "urn:ietf:params:qlog:events:quic";

/// A file of events that is being written.
pub struct Qlog {
    began: Instant,
    streamer: QlogStreamer,
}

impl Qlog {
    /// Begins with what all events have in common. Their times are from `began` on.
    ///
    /// # Errors
    ///
    /// Those of `writer`.
    pub fn begin(writer: Box<dyn Write + Send + Sync>, user: &str, began: Instant) -> io::Result<Self> {
        let reference_time = ReferenceTime::new_monotonic(Some(SystemTime::now() - began.elapsed()));
        let time_format = Some(TimeFormat::RelativeToEpoch);
        let common = CommonFields { reference_time, time_format, ..CommonFields::default() };
        let server = VantagePoint { name: Some("tollgate".to_owned()), ty: VantagePointType::Server, flow: None };
        let trace = TraceSeq::new(None, None, Some(common), Some(server), vec![SCHEMA.to_owned()]);
        let (title, precision) = (Some(format!("Connections of {user}")), EventTimePrecision::MicroSeconds);
        let mut streamer = QlogStreamer::new(title, None, began, trace, EventImportance::Extra, precision, writer);
        streamer.start_log().map_err(io::Error::other)?;
        Ok(Qlog { began, streamer })
    }

    /// Writes one event.
    ///
    /// # Errors
    ///
    /// Those of the writer.
    pub fn tell(&mut self, event: &Event<'_>, at: Instant) -> io::Result<()> {
        let data = match event.what {
            What::Begun | What::Changed => EventData::QuicMetricsUpdated(metrics(event)),
            What::Ended => EventData::QuicConnectionClosed(ConnectionClosed {
                initiator: None,
                connection_error: None,
                application_error: None,
                error_code: None,
                internal_code: None,
                reason: None,
                trigger: None,
            }),
        };
        let mut told = Told::with_time((at - self.began).as_secs_f64() * 1e3, data);
        told.group_id = Some(Box::new(event.row.address.to_string()));
        self.streamer.add_event(told).map_err(io::Error::other)
    }

    /// Ends the file.
    ///
    /// # Errors
    ///
    /// Those of the writer.
    pub fn finish(mut self) -> io::Result<()> {
        self.streamer.finish_log().map_err(io::Error::other)
    }
}

/// What the schema has no name for bears ours.
fn metrics(event: &Event<'_>) -> RecoveryMetricsUpdated {
    let row = event.row;
    let own = [
        ("tollgate_sent_packets", row.sent_packets),
        ("tollgate_lost_packets", row.lost_packets),
        ("tollgate_congestion_events", row.congestion_events),
        ("tollgate_queued_bytes", row.queued_bytes),
        ("tollgate_mtu_bytes", row.mtu_bytes.into()),
        ("tollgate_sent_bytes", row.usage.sent_bytes),
        ("tollgate_received_bytes", row.usage.received_bytes),
    ];
    RecoveryMetricsUpdated {
        ex_data: own.into_iter().map(|(name, value)| (name.to_owned(), value.into())).collect::<ExData>(),
        min_rtt: Some(row.rtt_min_us as f32 / 1e3),
        smoothed_rtt: Some(row.rtt_us as f32 / 1e3),
        congestion_window: Some(row.window_bytes),
        ..RecoveryMetricsUpdated::default()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use super::super::event::events;
    use super::super::event::tests::row;
    use super::*;

    #[derive(Clone, Default)]
    struct Written(Arc<Mutex<Vec<u8>>>);

    impl Write for Written {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().write(bytes)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn what_was_written_is_read_by_the_library_for_it() {
        let (written, began) = (Written::default(), Instant::now());
        let mut qlog = Qlog::begin(Box::new(written.clone()), "alice", began).unwrap();
        let (first, second) = ([row(2, 1, 1_000_000)], [row(3, 1, 0)]);
        for event in events(&first, &second, std::time::Duration::from_millis(100)) {
            qlog.tell(&event, began).unwrap();
        }
        qlog.finish().unwrap();
        let bytes = written.0.lock().unwrap().clone();
        let reader = qlog::reader::QlogSeqReader::new(Box::new(io::Cursor::new(bytes))).unwrap();
        assert_eq!(reader.qlog.title.as_deref(), Some("Connections of alice"));
        let event = |event| match event {
            qlog::reader::Event::Qlog(event) => Some(event),
            qlog::reader::Event::Json(_) => None,
        };
        let told: Vec<_> = reader.filter_map(event).collect();
        let groups: Vec<_> = told.iter().map(|event| event.group_id.as_ref().unwrap().to_string()).collect();
        assert_eq!(groups, ["198.19.0.2", "198.19.0.3"]);
        let EventData::QuicMetricsUpdated(metrics) = &told[1].data else { panic!("{told:?}") };
        assert_eq!(
            (metrics.congestion_window, metrics.ex_data["tollgate_mtu_bytes"].as_u64()),
            (Some(128_000), Some(1452))
        );
    }
}
