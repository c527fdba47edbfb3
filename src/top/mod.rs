//! `tollgate top`: a live view of a running gateway on a terminal. It asks as any operator does, and draws what came between two answers.

mod figures;
mod sample;
mod screen;

use std::io::{self, IsTerminal};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use crossbeam_channel::{Receiver, bounded};
use ratatui::DefaultTerminal;
use ratatui::crossterm::event::{self, Event, KeyCode, KeyEventKind, KeyModifiers};

pub use figures::{Figures, Order};
pub use sample::{Sample, SampleError};
pub use screen::draw;

/// How long a key may wait for an answer of the gateway to be shown.
const KEY_INTERVAL: Duration = Duration::from_millis(100);

/// Why there is no view, or no more.
#[derive(Debug, thiserror::Error)]
pub enum TopError {
    /// Standard output is something else.
    #[error("top needs a terminal: take `tollgate status --json` and `tollgate users --json` for programs")]
    NoTerminal,
    /// The terminal.
    #[error("the terminal cannot be used: {0}")]
    Terminal(#[from] io::Error),
    /// The gateway.
    #[error(transparent)]
    Sample(#[from] SampleError),
}

/// Shows how the gateway that listens at `path` stands, anew every `interval`, until somebody has seen enough.
///
/// # Errors
///
/// If there is no terminal, or no gateway.
pub fn run(path: &Path, interval: Duration) -> Result<(), TopError> {
    if !io::stdout().is_terminal() {
        return Err(TopError::NoTerminal);
    }
    // While there is a terminal to read it on.
    let first = Sample::take(path)?;
    let samples = samples(path.to_owned(), interval)?;
    let mut terminal = ratatui::try_init()?;
    let ended = show(&mut terminal, first, &samples);
    ratatui::try_restore()?;
    ended
}

/// Takes samples in a thread of its own: a gateway may take long to answer, and keys are not to wait for that.
fn samples(path: PathBuf, interval: Duration) -> io::Result<Receiver<Result<Sample, SampleError>>> {
    let (to, samples) = bounded(1);
    thread::Builder::new().name("tollgate-top".to_owned()).spawn(move || {
        loop {
            thread::sleep(interval);
            let sample = Sample::take(&path);
            let is_over = sample.is_err();
            if to.send(sample).is_err() || is_over {
                return;
            }
        }
    })?;
    Ok(samples)
}

fn show(
    terminal: &mut DefaultTerminal,
    first: Sample,
    samples: &Receiver<Result<Sample, SampleError>>,
) -> Result<(), TopError> {
    let (mut before, mut now, mut order) = (first.clone(), first, Order::default());
    loop {
        terminal.draw(|frame| draw(frame, &Figures::between(&before, &now, order)))?;
        if event::poll(KEY_INTERVAL)?
            && let Event::Key(key) = event::read()?
            && key.kind == KeyEventKind::Press
        {
            match key.code {
                KeyCode::Char('q') | KeyCode::Esc => return Ok(()),
                KeyCode::Char('c') if key.modifiers.contains(KeyModifiers::CONTROL) => return Ok(()),
                KeyCode::Char('s') => order = order.next(),
                _ => {}
            }
        }
        if let Ok(sample) = samples.try_recv() {
            before = std::mem::replace(&mut now, sample?);
        }
    }
}
