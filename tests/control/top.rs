//! The live view: what it shows of a real gateway, and how it begins and ends on a terminal.

use std::fmt::Write as _;
use std::fs;
use std::io::{Read, Write};
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use ratatui::Terminal;
use ratatui::backend::TestBackend;
use ratatui::buffer::{Buffer, Cell};
use ratatui::style::{Color, Modifier};
use tollgate::top::{Figures, Order, Sample, draw};
use tollgate_test_support::raw::udp_packet;
use tollgate_test_support::tunnels::TestTunnel;
use tollgate_test_support::{PATIENCE, turn};
use tollgate_testkit::SERVER_V4;

use crate::site::Site;

const GATEWAY: ([u8; 4], u16) = ([127, 0, 0, 1], 55555);
/// Where the picture in the documents is.
const PICTURE: &str = "docs/top.svg";
const COLUMNS: u16 = 90;
const ROWS: u16 = 22;
const CELL_PIXELS: [u16; 2] = [9, 18];

/// The screen as a picture.
fn picture(buffer: &Buffer) -> String {
    let [width, height] = CELL_PIXELS;
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{}\" height=\"{}\" font-family=\"monospace\" font-size=\"15\">\n\
         <rect width=\"100%\" height=\"100%\" fill=\"#1c1c1c\"/>\n",
        COLUMNS * width,
        (ROWS + 1) * height
    );
    for y in 0..ROWS {
        let line: Vec<&Cell> = (0..COLUMNS).map(|x| &buffer[(x, y)]).collect();
        let mut x = 0;
        for run in line.chunk_by(|one, next| (one.fg, one.modifier) == (next.fg, next.modifier)) {
            let text: String = run.iter().map(|cell| cell.symbol()).collect();
            if !text.trim().is_empty() {
                let fill = match (run[0].fg, run[0].modifier) {
                    (Color::Red, _) => "#ff5f5f",
                    (_, Modifier::DIM) => "#9e9e9e",
                    _ => "#eeeeee",
                };
                let weight = if run[0].modifier.contains(Modifier::BOLD) { " font-weight=\"bold\"" } else { "" };
                let text = text.replace('&', "&amp;").replace('<', "&lt;");
                let (left, base, length) = (x * width, (y + 1) * height, run.len() as u16 * width);
                writeln!(
                    svg,
                    "<text x=\"{left}\" y=\"{base}\" textLength=\"{length}\" fill=\"{fill}\"{weight} xml:space=\"preserve\">{text}</text>"
                )
                .unwrap();
            }
            x += run.len() as u16;
        }
    }
    svg + "</svg>\n"
}

#[test]
#[ignore = "needs root: cargo xtask test --full"]
fn the_live_view_shows_shards_users_and_drops_of_a_gateway() {
    let _turn = turn::together();
    let mut site = Site::start(|_| {});
    let log_in = |user| site.topology.gateway.run(|| TestTunnel::login(&site.deployment, user, GATEWAY.into(), None));
    let mut clients = ["alice", "bob", "carol"].map(log_in);
    let other = clients[1].address.unwrap();
    site.order_done(&["limit", "carol", "10 mbps"]);
    let socket = site.deployment.path("control");
    let mut send = |packets: usize| {
        for (place, client) in clients.iter_mut().enumerate() {
            let source = client.address.unwrap();
            let packet = udp_packet(source, SERVER_V4.into(), &[0; 972]);
            (0..packets / (place + 1)).for_each(|_| client.send_packet(&packet));
            // Clients are kept apart.
            (0..10).for_each(|_| client.send_packet(&udp_packet(source, other, &[0; 100])));
        }
    };
    let before = Sample::take(&socket).unwrap();
    let end = Instant::now() + Duration::from_secs(1);
    while Instant::now() < end {
        send(60);
        thread::sleep(Duration::from_millis(5));
    }
    let now = Sample::take(&socket).unwrap();
    let mut terminal = Terminal::new(TestBackend::new(COLUMNS, ROWS)).unwrap();
    terminal.draw(|frame| draw(frame, &Figures::between(&before, &now, Order::Rate))).unwrap();
    let buffer = terminal.backend().buffer();
    let text: String = buffer.content().iter().map(|cell| cell.symbol()).collect();
    for shown in ["serving; clients: 3", "shards: 2, up ", "users: 3, by rate", "isolated", "10.0 Mb/s", "carol"] {
        assert!(text.contains(shown), "{shown} is not in {text}");
    }
    let [first, last] = ["alice", "carol"].map(|user| text.rfind(&format!("{user} ")).unwrap());
    assert!(first < last, "who sends most comes first: {text}");
    if std::env::var_os("TOLLGATE_WRITE_DOCUMENTS").is_some() {
        fs::write(Path::new(env!("CARGO_MANIFEST_DIR")).join(PICTURE), picture(buffer)).unwrap();
    }
    site.gateway.assert_sound();
}

#[test]
#[ignore = "needs root: cargo xtask test --full"]
fn the_live_view_begins_on_a_terminal_and_ends_by_a_key_and_elsewhere_not_at_all() {
    let _turn = turn::together();
    let mut site = Site::start(|_| {});
    let said = site.order(&["top"]);
    assert!(said.code == Some(1) && said.text.contains("top needs a terminal"), "{said:?}");

    let top = format!(
        "stty rows 30 cols 100 && {} top --interval 200ms --config server.toml",
        env!("CARGO_BIN_EXE_tollgate")
    );
    let mut script = Command::new("script");
    script.args(["--quiet", "--return", "--command", &top, "/dev/null"]).current_dir(site.deployment.folder());
    let mut shown = script.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let (mut keys, mut screen) = (shown.stdin.take().unwrap(), shown.stdout.take().unwrap());
    let reading = thread::spawn(move || {
        let mut all = Vec::new();
        screen.read_to_end(&mut all).unwrap();
        String::from_utf8_lossy(&all).into_owned()
    });
    thread::sleep(Duration::from_secs(1));
    keys.write_all(b"s").unwrap();
    thread::sleep(Duration::from_millis(500));
    assert!(shown.try_wait().unwrap().is_none(), "it ends by itself");
    keys.write_all(b"q").unwrap();
    let end = Instant::now() + PATIENCE;
    while shown.try_wait().unwrap().is_none() {
        assert!(Instant::now() < end, "it does not end");
        thread::sleep(Duration::from_millis(20));
    }
    let (status, all) = (shown.wait().unwrap(), reading.join().unwrap());
    assert!(status.success(), "{all}");
    // Into the screen beside the terminal's own and out of it (xterm, DECSET 1049).
    assert!(all.contains("\u{1b}[?1049h") && all.trim_end().contains("\u{1b}[?1049l"), "{all:?}");
    // Only what changes is written: words are told apart by where the cursor goes.
    let words = ["shards:", "connections  from client    to client", "q:"];
    assert!(words.iter().all(|word| all.contains(word)), "{all:?}");
    site.gateway.assert_sound();
}
