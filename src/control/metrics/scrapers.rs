//! Whoever asks for metrics: HTTP/1.1 (RFC 9112), one request for `GET /metrics` a connection, with a bound on its bytes, its time and the
//! number of connections. Nothing here blocks.

use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::time::{Duration, Instant};

use tracing::debug;

use super::super::event_loop::{EventLoop, Interest, Source, Watched};

/// Connections at once. One that is served takes milliseconds, so a further one takes the place of the oldest.
pub const SCRAPERS_MAX: usize = 8;
/// How long a connection may take, from its beginning to its end.
pub const SCRAPER_TIMEOUT: Duration = Duration::from_secs(1);
/// Longest head of a request, in bytes.
pub const HEAD_BYTES_MAX: usize = 8192;

/// Lines of a head.
const HEADERS_MAX: usize = 64;
/// Bytes read at a time.
const CHUNK_BYTES: usize = 2048;
/// Steps that one connection may take before all others have their turn.
const STEPS_MAX: usize = 8;
/// OpenMetrics 1.0, "Protocol Negotiation".
const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// All connections.
#[derive(Debug, Default)]
pub struct Scrapers {
    places: [Option<Scraper>; SCRAPERS_MAX],
}

#[derive(Debug)]
struct Scraper {
    stream: Watched<TcpStream>,
    deadline: Instant,
    state: State,
}

#[derive(Debug)]
enum State {
    /// So much has come of the request.
    Reading(Vec<u8>),
    /// So many bytes of the answer are written.
    Writing(Vec<u8>, usize),
    /// All is said. A socket that is closed with something unread would have the other end lose the answer.
    Closing,
}

/// What a request comes to.
enum Verdict {
    Incomplete,
    Metrics,
    Refused(Refusal),
}

/// Why there are no metrics.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Refusal {
    BadRequest,
    NotFound,
    MethodNotAllowed,
    TooLong,
    Version,
}

impl Refusal {
    /// The status line's end, and a further header.
    fn status(self) -> (&'static str, &'static str) {
        match self {
            Refusal::BadRequest => ("400 Bad Request", ""),
            Refusal::NotFound => ("404 Not Found", ""),
            Refusal::MethodNotAllowed => ("405 Method Not Allowed", "Allow: GET\r\n"),
            Refusal::TooLong => ("431 Request Header Fields Too Large", ""),
            Refusal::Version => ("505 HTTP Version Not Supported", ""),
        }
    }
}

impl Scrapers {
    /// Lets a client in. Where there is no place, the oldest one gives way: it has had time enough.
    pub fn add(&mut self, stream: TcpStream, event_loop: &EventLoop, now: Instant) {
        let age = |place: &usize| self.places[*place].as_ref().map(|scraper| scraper.deadline);
        let place = (0..SCRAPERS_MAX).min_by_key(age).unwrap_or_default();
        self.places[place] = None;
        match event_loop.watch_once(Source::Scraper(place), stream) {
            Ok(stream) => {
                let deadline = now + SCRAPER_TIMEOUT;
                self.places[place] = Some(Scraper { stream, deadline, state: State::Reading(Vec::new()) });
            }
            Err(error) => debug!(%error, "a client of the metrics endpoint was not served"),
        }
    }

    /// Goes on with the client at `place`; `metrics` makes the text that it may ask for.
    pub fn handle_ready(&mut self, place: usize, metrics: impl FnOnce() -> String) {
        let Some(scraper) = self.places.get_mut(place).and_then(Option::as_mut) else { return };
        match scraper.proceed(metrics) {
            Ok(true) => {}
            Ok(false) => self.places[place] = None,
            Err(error) => {
                debug!(%error, "a client of the metrics endpoint was lost");
                self.places[place] = None;
            }
        }
    }

    /// When a client's time is over next.
    pub fn poll_timeout(&self) -> Option<Instant> {
        self.places.iter().flatten().map(|scraper| scraper.deadline).min()
    }

    /// Closes the connections whose time is over.
    pub fn handle_timeout(&mut self, now: Instant) {
        for place in &mut self.places {
            place.take_if(|scraper| scraper.deadline <= now);
        }
    }
}

impl Scraper {
    /// Reads and writes until the descriptor is not ready, or others are to have their turn. Returns false when all is done.
    fn proceed(&mut self, metrics: impl FnOnce() -> String) -> io::Result<bool> {
        let mut metrics = Some(metrics);
        for _ in 0..STEPS_MAX {
            let interest = match self.step(&mut metrics) {
                Ok(goes_on) if goes_on => continue,
                Ok(_) => return Ok(false),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => self.interest(),
                Err(error) => return Err(error),
            };
            self.stream.want(interest)?;
            return Ok(true);
        }
        self.stream.want(self.interest())?;
        Ok(true)
    }

    fn interest(&self) -> Interest {
        match self.state {
            State::Reading(_) | State::Closing => Interest::Input,
            State::Writing(..) => Interest::Output,
        }
    }

    /// One read or write. Returns false when all is done.
    fn step(&mut self, metrics: &mut Option<impl FnOnce() -> String>) -> io::Result<bool> {
        match &mut self.state {
            State::Reading(head) => {
                let mut chunk = [0; CHUNK_BYTES];
                let read = (&*self.stream).read(&mut chunk)?;
                if read == 0 {
                    return Ok(false);
                }
                head.extend_from_slice(&chunk[..read]);
                let answer = match judge(head) {
                    Verdict::Incomplete => return Ok(true),
                    Verdict::Refused(refusal) => refuse(refusal),
                    Verdict::Metrics => metrics.take().map(|metrics| answer("200 OK", CONTENT_TYPE, "", &metrics())),
                };
                // A request is complete once.
                self.state = answer.map_or(State::Closing, |answer| State::Writing(answer, 0));
            }
            State::Writing(answer, written) => {
                *written += (&*self.stream).write(&answer[*written..])?;
                if *written == answer.len() {
                    self.stream.shutdown(Shutdown::Write)?;
                    self.state = State::Closing;
                }
            }
            State::Closing => return Ok((&*self.stream).read(&mut [0; CHUNK_BYTES])? > 0),
        }
        Ok(true)
    }
}

/// What a request is that begins with `head`.
fn judge(head: &[u8]) -> Verdict {
    let mut headers = [httparse::EMPTY_HEADER; HEADERS_MAX];
    let mut request = httparse::Request::new(&mut headers);
    match request.parse(&head[..head.len().min(HEAD_BYTES_MAX)]) {
        Ok(httparse::Status::Partial) if head.len() >= HEAD_BYTES_MAX => return Verdict::Refused(Refusal::TooLong),
        Ok(httparse::Status::Partial) => return Verdict::Incomplete,
        Err(httparse::Error::TooManyHeaders) => return Verdict::Refused(Refusal::TooLong),
        Err(httparse::Error::Version) => return Verdict::Refused(Refusal::Version),
        Err(_) => return Verdict::Refused(Refusal::BadRequest),
        Ok(httparse::Status::Complete(_)) => {}
    }
    let target = request.path.unwrap_or_default();
    let path = target.split_once('?').map_or(target, |(path, _)| path);
    match (path, request.method) {
        ("/metrics", Some("GET")) => Verdict::Metrics,
        ("/metrics", _) => Verdict::Refused(Refusal::MethodNotAllowed),
        _ => Verdict::Refused(Refusal::NotFound),
    }
}

fn refuse(refusal: Refusal) -> Option<Vec<u8>> {
    let (status, header) = refusal.status();
    Some(answer(status, "text/plain; charset=utf-8", header, &format!("{status}: metrics are at GET /metrics\n")))
}

/// A whole answer, after which the connection is closed. Each of `headers` ends its line.
fn answer(status: &str, kind: &str, headers: &str, body: &str) -> Vec<u8> {
    let bytes = body.len();
    format!("HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {bytes}\r\n{headers}Connection: close\r\n\r\n{body}")
        .into_bytes()
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;
    use std::thread;

    use super::*;

    /// Longer than any answer takes.
    const PATIENCE: Duration = Duration::from_secs(60);

    /// The server's side, by hand: whoever connects is let in, and time passes as the test has it.
    struct Site {
        listener: TcpListener,
        event_loop: EventLoop,
        scrapers: Scrapers,
        start: Instant,
    }

    impl Site {
        fn new() -> Self {
            Site {
                listener: TcpListener::bind("127.0.0.1:0").unwrap(),
                event_loop: EventLoop::new().unwrap(),
                scrapers: Scrapers::default(),
                start: Instant::now(),
            }
        }

        /// A client that connects `after` the start.
        fn connect(&mut self, after: Duration) -> TcpStream {
            let client = TcpStream::connect(self.listener.local_addr().unwrap()).unwrap();
            client.set_read_timeout(Some(PATIENCE)).unwrap();
            let (stream, _) = self.listener.accept().unwrap();
            stream.set_nonblocking(true).unwrap();
            self.scrapers.add(stream, &self.event_loop, self.start + after);
            client
        }

        /// Handles all that happens until nothing has for a while.
        fn settle(&mut self, body: &str) {
            loop {
                let ready = self.event_loop.wait(Some(Duration::from_millis(100))).unwrap();
                if ready.is_empty() {
                    return;
                }
                for source in ready {
                    let Source::Scraper(place) = source else { panic!("{source:?}") };
                    self.scrapers.handle_ready(place, || body.to_owned());
                }
            }
        }

        fn held(&self) -> usize {
            self.scrapers.places.iter().flatten().count()
        }
    }

    fn hear(mut client: TcpStream) -> String {
        let mut heard = String::new();
        client.read_to_string(&mut heard).unwrap();
        heard
    }

    fn is_closed(client: &mut TcpStream) -> bool {
        match client.read(&mut [0]) {
            Ok(bytes) => bytes == 0,
            Err(error) => error.kind() == io::ErrorKind::ConnectionReset,
        }
    }

    #[test]
    fn metrics_are_had_by_get_alone_and_only_under_their_path() {
        let long = format!("GET /metrics HTTP/1.1\r\nX: {}\r\n\r\n", "x".repeat(HEAD_BYTES_MAX));
        let many = format!("GET /metrics HTTP/1.1\r\n{}\r\n", "X: x\r\n".repeat(HEADERS_MAX + 1));
        for (said, expected) in [
            ("GET /metrics HTTP/1.1\r\nHost: gateway\r\n\r\n", "HTTP/1.1 200 "),
            ("GET /metrics?x=y HTTP/1.0\r\n\r\n", "HTTP/1.1 200 "),
            ("GET / HTTP/1.1\r\n\r\n", "HTTP/1.1 404 "),
            ("GET /metrics/more HTTP/1.1\r\n\r\n", "HTTP/1.1 404 "),
            ("POST /metrics HTTP/1.1\r\nContent-Length: 3\r\n\r\nabc", "HTTP/1.1 405 "),
            ("HEAD /metrics HTTP/1.1\r\n\r\n", "HTTP/1.1 405 "),
            ("\u{1}\u{2}\r\n\r\n", "HTTP/1.1 400 "),
            ("GET /metrics HTTP/7.0\r\n\r\n", "HTTP/1.1 505 "),
            (&long, "HTTP/1.1 431 "),
            (&many, "HTTP/1.1 431 "),
        ] {
            let mut site = Site::new();
            let mut client = site.connect(Duration::ZERO);
            client.write_all(said.as_bytes()).unwrap();
            site.settle("some 1\n# EOF\n");
            let heard = hear(client);
            let (head, body) = heard.split_once("\r\n\r\n").unwrap();
            assert!(head.starts_with(expected), "{said:?}: {head}");
            assert!(head.contains(&format!("\r\nContent-Length: {}\r\n", body.len())), "{head}");
            assert_eq!(body == "some 1\n# EOF\n", expected.contains("200"), "{body}");
            assert_eq!(head.contains("Allow: GET"), expected.contains("405"), "{head}");
            site.settle("");
            assert_eq!(site.held(), 0, "the client has closed, and so is its place");
        }
    }

    #[test]
    fn a_request_may_come_in_pieces_and_an_answer_may_be_larger_than_the_kernel_takes_at_once() {
        let mut site = Site::new();
        let mut client = site.connect(Duration::ZERO);
        for piece in ["GET /met", "rics HTTP/1.1\r", "\n\r\n"] {
            client.write_all(piece.as_bytes()).unwrap();
            site.settle(&"x".repeat(16 << 20));
        }
        let heard = thread::spawn(move || hear(client));
        while !heard.is_finished() {
            site.settle("");
        }
        let heard = heard.join().unwrap();
        assert_eq!(heard.split_once("\r\n\r\n").unwrap().1.len(), 16 << 20);
    }

    #[test]
    fn whoever_is_slow_is_let_go_when_its_second_is_over_however_it_is_slow() {
        let mut site = Site::new();
        let mut silent = site.connect(Duration::ZERO);
        let mut dripping = site.connect(Duration::ZERO);
        let mut deaf = site.connect(Duration::ZERO);
        deaf.write_all(b"GET /metrics HTTP/1.1\r\n\r\n").unwrap();
        for byte in b"GET /metrics HTT" {
            dripping.write_all(&[*byte]).unwrap();
            site.settle(&"x".repeat(16 << 20));
        }
        let deadline = site.start + SCRAPER_TIMEOUT;
        assert_eq!(site.scrapers.poll_timeout(), Some(deadline));
        site.scrapers.handle_timeout(deadline - Duration::from_millis(1));
        assert_eq!(site.held(), 3, "they have time left");
        site.scrapers.handle_timeout(deadline);
        assert_eq!((site.held(), site.scrapers.poll_timeout()), (0, None));
        assert!(is_closed(&mut silent) && is_closed(&mut dripping));
    }

    #[test]
    fn silent_clients_are_few_and_keep_nobody_out() {
        let mut site = Site::new();
        let after = |place: usize| Duration::from_millis(place as u64);
        let mut silent: Vec<TcpStream> = (0..SCRAPERS_MAX).map(|place| site.connect(after(place))).collect();
        let mut client = site.connect(after(SCRAPERS_MAX));
        client.write_all(b"GET /metrics HTTP/1.1\r\n\r\n").unwrap();
        site.settle("some 1\n");
        assert!(hear(client).ends_with("some 1\n"));
        assert_eq!(site.held(), SCRAPERS_MAX);
        assert!(is_closed(&mut silent[0]), "the oldest one has given way");
        silent[1].set_nonblocking(true).unwrap();
        assert_eq!(silent[1].read(&mut [0]).unwrap_err().kind(), io::ErrorKind::WouldBlock, "and nobody else");
    }
}
