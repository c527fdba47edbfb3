//! The clients of the control socket: how much they may say, how long they may take, and how many may be connected at once.
//!
//! A client sends requests and gets an answer to each, in order; one request of a client at a time is with the control plane. Nothing here
//! blocks. This module carries out no request.

use std::collections::VecDeque;
use std::io::{self, Write};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use tracing::{debug, warn};

use super::acceptor::{may_control, peer};
use super::event_loop::{EventLoop, Interest, Source, Watched};
use super::protocol::{
    Answer, LineError, Lines, MessageError, NO_ORDER, Next, REQUEST_BYTES_MAX, Request, decode, encode,
};
use crate::log::{self, Kind};
use crate::records::Process;

/// Clients at once. A request takes milliseconds.
pub const CLIENTS_MAX: usize = 8;

/// How long a client may take to send a request, and to take the answer.
pub const CLIENT_TIMEOUT: Duration = Duration::from_secs(5);

/// Steps that one client may take before the others have their turn.
const STEPS_MAX: usize = 8;

/// A client, which may be gone when its answer comes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ClientId {
    place: usize,
    number: u64,
}

/// All clients that are connected.
#[derive(Debug, Default)]
pub struct Clients {
    places: [Option<Client>; CLIENTS_MAX],
    /// Clients so far.
    number: u64,
    /// Requests that the control plane has not taken, at most one of each client.
    requests: VecDeque<(ClientId, Request)>,
}

#[derive(Debug)]
struct Client {
    id: ClientId,
    /// Who is at the other end.
    process: Option<Process>,
    stream: Watched<UnixStream>,
    lines: Lines,
    state: State,
}

#[derive(Debug)]
enum State {
    /// The client has until `deadline` to send a request.
    Reading { deadline: Instant },
    /// The control plane has the request.
    Waiting,
    /// The client has until `deadline` to take the rest of the answer.
    Writing { answer: Vec<u8>, written: usize, deadline: Instant, is_last: bool },
}

impl Clients {
    /// Lets a client in, or tells it why not.
    pub fn add(&mut self, stream: UnixStream, event_loop: &EventLoop, now: Instant) {
        let place = self.places.iter().position(Option::is_none);
        let process = peer(&stream);
        let refusal = match place {
            None => format!("the gateway has {CLIENTS_MAX} others at its control socket: try again"),
            Some(_) if !process.is_some_and(may_control) => {
                "only root and the user whom the gateway runs as may control it".to_owned()
            }
            Some(place) => {
                self.number += 1;
                let id = ClientId { place, number: self.number };
                let state = State::Reading { deadline: now + CLIENT_TIMEOUT };
                match event_loop.watch_once(Source::Client(place), stream) {
                    Ok(stream) => {
                        self.places[place] =
                            Some(Client { id, process, stream, lines: Lines::new(REQUEST_BYTES_MAX), state });
                    }
                    Err(error) => not_served(&error),
                }
                return;
            }
        };
        debug!(reason = refusal, "a client of the control socket was turned away");
        // It fits into the fresh socket's buffer, and nobody waits for whoever is turned away.
        let _ = (&stream).write_all(&encode(&Answer::refused(vec![refusal])));
    }

    /// Goes on with the client at `place`, which has sent something or takes more.
    pub fn handle_ready(&mut self, place: usize, now: Instant) {
        let Some(client) = self.places.get_mut(place).and_then(Option::as_mut) else { return };
        match client.proceed(now) {
            Ok(Step::Continue) => {}
            Ok(Step::Request(request)) => self.requests.push_back((client.id, request)),
            Ok(Step::End) => self.places[place] = None,
            Err(error) => {
                debug!(%error, "a client of the control socket was lost");
                self.places[place] = None;
            }
        }
    }

    /// Who `client` is, if it is still there.
    pub fn process(&self, client: ClientId) -> Option<Process> {
        self.places[client.place].as_ref().filter(|at| at.id == client)?.process
    }

    /// The next request, in the order of their coming.
    pub fn poll_request(&mut self) -> Option<(ClientId, Request)> {
        self.requests.pop_front()
    }

    /// Answers the request of `client`, if it is still there.
    pub fn answer(&mut self, client: ClientId, answer: &Answer, now: Instant) {
        let Some(at) = self.places[client.place].as_mut().filter(|at| at.id == client) else { return };
        at.begin_answer(answer, false, now);
        self.handle_ready(client.place, now);
    }

    /// When a client's time is over next.
    pub fn poll_timeout(&self) -> Option<Instant> {
        self.places.iter().flatten().filter_map(Client::deadline).min()
    }

    /// Ends the patience with clients whose time is over.
    pub fn handle_timeout(&mut self, now: Instant) {
        for place in 0..CLIENTS_MAX {
            let Some(client) =
                self.places[place].as_mut().filter(|client| client.deadline().is_some_and(|at| at <= now))
            else {
                continue;
            };
            match client.state {
                State::Reading { .. } => {
                    client.begin_answer(&refusal(&LineError::Late(CLIENT_TIMEOUT)), true, now);
                    self.handle_ready(place, now);
                }
                State::Waiting | State::Writing { .. } => self.places[place] = None,
            }
        }
    }
}

/// Where a client is after it went on.
enum Step {
    /// It waits for its descriptor.
    Continue,
    /// It has said what it wants.
    Request(Request),
    /// It is done.
    End,
}

impl Client {
    fn deadline(&self) -> Option<Instant> {
        match self.state {
            State::Reading { deadline } | State::Writing { deadline, .. } => Some(deadline),
            State::Waiting => None,
        }
    }

    fn begin_answer(&mut self, answer: &Answer, is_last: bool, now: Instant) {
        let answer = encode(answer);
        self.state = State::Writing { answer, written: 0, deadline: now + CLIENT_TIMEOUT, is_last };
    }

    /// Reads and writes until the client has a request, is done, its descriptor is not ready, or others are to have their turn.
    fn proceed(&mut self, now: Instant) -> io::Result<Step> {
        for _ in 0..STEPS_MAX {
            match &mut self.state {
                State::Waiting => return Ok(Step::Continue),
                State::Writing { answer, written, deadline, is_last } => {
                    match (&*self.stream).write(&answer[*written..]) {
                        Ok(bytes) => {
                            *written += bytes;
                            *deadline = now + CLIENT_TIMEOUT;
                        }
                        Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                        Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                            self.stream.want(Interest::Output)?;
                            return Ok(Step::Continue);
                        }
                        Err(error) => return Err(error),
                    }
                    if *written == answer.len() {
                        if *is_last {
                            return Ok(Step::End);
                        }
                        self.state = State::Reading { deadline: now + CLIENT_TIMEOUT };
                    }
                }
                State::Reading { .. } => match self.lines.next(&self.stream) {
                    Ok(Next::Line(line)) => match decode(&line) {
                        Ok(request) => {
                            self.state = State::Waiting;
                            return Ok(Step::Request(request));
                        }
                        Err(error) => {
                            self.begin_answer(&refusal(&not_understood(&error)), false, now);
                        }
                    },
                    Ok(Next::Partial) => {
                        self.stream.want(Interest::Input)?;
                        return Ok(Step::Continue);
                    }
                    Ok(Next::End) => return Ok(Step::End),
                    Err(LineError::Io(error)) => return Err(error),
                    Err(error) => self.begin_answer(&refusal(&error), true, now),
                },
            }
        }
        // Lines may wait in memory, which the kernel does not report; room for output it reports at once.
        self.stream.want(Interest::Output)?;
        Ok(Step::Continue)
    }
}

fn not_understood(error: &MessageError) -> String {
    match error {
        MessageError::Malformed(error) => format!("{NO_ORDER}: {error}"),
        MessageError::Version(_) => error.to_string(),
    }
}

fn refusal(reason: &impl ToString) -> Answer {
    Answer::refused(vec![reason.to_string()])
}

/// Says that a client could not be let in.
pub fn not_served(error: &io::Error) {
    if log::admits(Kind::NotServed) {
        warn!("a client of the control socket was not served: {error}");
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::path::Path;
    use std::thread;

    use super::super::acceptor::Acceptor;
    use super::*;

    /// Longer than any answer takes.
    const PATIENCE: Duration = Duration::from_secs(60);

    /// The server's side of a control socket, which answers by `carry_out`.
    fn serve(folder: &Path, requests: usize, mut carry_out: impl FnMut(Request) -> Answer + Send + 'static) {
        let mut event_loop = EventLoop::new().unwrap();
        let mut acceptor =
            event_loop.watch(Source::Acceptor, Acceptor::listen(&folder.join("control")).unwrap()).unwrap();
        let mut clients = Clients::default();
        thread::spawn(move || {
            let mut carried_out = 0;
            while carried_out < requests {
                let timeout = clients.poll_timeout().map(|at| at.saturating_duration_since(Instant::now()));
                let ready = event_loop.wait(timeout).unwrap();
                let now = Instant::now();
                for source in ready {
                    match source {
                        Source::Client(place) => clients.handle_ready(place, now),
                        _ => clients.add(acceptor.accept().unwrap(), &event_loop, now),
                    }
                }
                clients.handle_timeout(now);
                while let Some((client, request)) = clients.poll_request() {
                    carried_out += 1;
                    clients.answer(client, &carry_out(request), now);
                }
            }
        });
    }

    /// Reads end, so that a test does.
    fn connect(folder: &Path) -> UnixStream {
        let stream = UnixStream::connect(folder.join("control")).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream
    }

    fn say(folder: &Path, what: &[u8]) -> UnixStream {
        let mut stream = connect(folder);
        stream.write_all(what).unwrap();
        stream
    }

    fn hear(lines: &mut Lines, stream: &UnixStream) -> Answer {
        let deadline = Instant::now() + PATIENCE;
        loop {
            match lines.next(stream).unwrap() {
                Next::Line(line) => return serde_json::from_slice(&line).unwrap(),
                Next::Partial => assert!(Instant::now() < deadline, "no answer in {PATIENCE:?}"),
                Next::End => panic!("no answer"),
            }
        }
    }

    fn hear_one(stream: &UnixStream) -> Answer {
        hear(&mut Lines::new(1 << 20), stream)
    }

    #[test]
    fn requests_reach_the_control_plane_and_answers_come_back_in_order() {
        let folder = tempfile::tempdir().unwrap();
        let mut expected = [Request::Reload { force: false }, Request::Kick { user: "bob".into() }].into_iter();
        let mut epoch = 0;
        serve(folder.path(), 2, move |request| {
            assert_eq!(Some(request), expected.next());
            epoch += 1;
            Answer { done: true, epoch: Some(epoch), ..Answer::default() }
        });
        let stream = say(folder.path(), b"{\"order\":\"reload\"}\n{\"order\":\"kick\",\"user\":\"bob\"}\n");
        let mut lines = Lines::new(1000);
        assert_eq!([1, 2].map(|_| hear(&mut lines, &stream).epoch), [Some(1), Some(2)]);
    }

    #[test]
    fn what_is_no_request_is_refused_and_reaches_nobody() {
        let folder = tempfile::tempdir().unwrap();
        serve(folder.path(), 1, |request| panic!("{request:?}"));
        let long = vec![b'x'; REQUEST_BYTES_MAX + 1];
        for (said, expected) in [
            (&b"reload\n"[..], "no order in JSON"),
            (b"\n", "no order in JSON"),
            (b"{\"order\":\"explode\"}\n", "explode"),
            (b"\xff\xfe\n", "no order in JSON"),
            (&long, "at most 4096 bytes"),
        ] {
            let answer = hear_one(&say(folder.path(), said));
            assert!(!answer.done && answer.lines.len() == 1 && answer.lines[0].contains(expected), "{answer:?}");
        }
        // More lines at once than a client has steps.
        let stream = say(folder.path(), &[b'\n'; 5 * STEPS_MAX]);
        let mut lines = Lines::new(1000);
        (0..5 * STEPS_MAX).for_each(|_| assert!(!hear(&mut lines, &stream).done));
    }

    #[test]
    fn a_client_that_says_nothing_or_does_not_listen_is_let_go_when_its_time_is_over() {
        let (event_loop, mut clients, now) = (EventLoop::new().unwrap(), Clients::default(), Instant::now());
        let (silent, served) = UnixStream::pair().unwrap();
        [&silent, &served].into_iter().for_each(|stream| stream.set_nonblocking(true).unwrap());
        clients.add(served, &event_loop, now);
        let deadline = now + CLIENT_TIMEOUT;
        assert_eq!(clients.poll_timeout(), Some(deadline));
        clients.handle_timeout(deadline - Duration::from_millis(1));
        let error = (&silent).read(&mut [0]).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::WouldBlock, "it has time left");
        clients.handle_timeout(deadline);
        assert_eq!(clients.poll_timeout(), None);
        let answer = hear_one(&silent);
        assert!(answer.lines[0].contains("no whole line"), "{answer:?}");
        assert_eq!((&silent).read(&mut [0]).unwrap(), 0, "it is gone");

        let (deaf, served) = UnixStream::pair().unwrap();
        served.set_nonblocking(true).unwrap();
        (&deaf).write_all(b"{\"order\":\"reload\"}\n").unwrap();
        clients.add(served, &event_loop, now);
        clients.handle_ready(0, now);
        let (client, _) = clients.poll_request().unwrap();
        assert_eq!(clients.poll_timeout(), None, "whoever waits for the control plane is not late");
        clients.answer(client, &Answer { lines: vec!["x".repeat(16 << 20)], ..Answer::default() }, now);
        assert_eq!(clients.poll_timeout(), Some(deadline));
        clients.handle_timeout(deadline);
        assert_eq!(clients.poll_timeout(), None);
    }

    #[test]
    fn silent_clients_are_few_and_keep_nobody_out_for_long() {
        let folder = tempfile::tempdir().unwrap();
        serve(folder.path(), 1, |_| Answer { done: true, ..Answer::default() });
        let silent: Vec<UnixStream> = (0..CLIENTS_MAX).map(|_| connect(folder.path())).collect();
        let one_more = hear_one(&connect(folder.path()));
        assert!(one_more.lines[0].contains("try again"), "{one_more:?}");
        assert!(hear_one(&silent[0]).lines[0].contains("no whole line"));
        drop(silent);
        while !hear_one(&say(folder.path(), b"{\"order\":\"reload\"}\n")).done {
            thread::sleep(Duration::from_millis(5));
        }
    }
}
