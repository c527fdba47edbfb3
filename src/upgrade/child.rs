//! The process that is to take over, as the one that starts it sees it: its child.

use std::env;
use std::ffi::OsString;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

/// The option by which a process knows that it is to take over.
const SUCCESSOR: &str = "--successor";
/// How long a process that was killed may take to end.
const END_TIMEOUT: Duration = Duration::from_secs(1);
/// How often it is looked whether it has.
const END_INTERVAL: Duration = Duration::from_millis(2);

/// The program and its arguments, as this process was started.
#[derive(Debug, Clone)]
pub struct Program {
    path: PathBuf,
    arguments: Vec<OsString>,
}

/// A process cannot be started.
#[derive(Debug, thiserror::Error)]
#[error("{} cannot be started: {source}; name the program by --binary", path.display())]
pub struct SpawnError {
    path: PathBuf,
    source: io::Error,
}

impl Program {
    /// What this process was started with. The path is as it was given: where it leads to may be another file by then.
    pub fn of_this_process() -> Self {
        let mut arguments = env::args_os();
        let path = arguments.next().map(PathBuf::from).or_else(|| env::current_exe().ok()).unwrap_or_default();
        Program { path, arguments: arguments.filter(|argument| argument != SUCCESSOR).collect() }
    }

    /// The same with another program.
    pub fn at(&self, path: Option<&Path>) -> Self {
        Program { path: path.map_or_else(|| self.path.clone(), Path::to_owned), arguments: self.arguments.clone() }
    }

    /// Starts it with `input` in the place of standard input: with the privileges and in the control group of this process.
    ///
    /// # Errors
    ///
    /// If the program is not there, or the system refuses.
    pub fn start(&self, input: UnixStream) -> Result<Successor, SpawnError> {
        let child = Command::new(&self.path)
            .args(&self.arguments)
            .arg(SUCCESSOR)
            // The service manager's watchdog is for whichever process is the main one (sd_watchdog_enabled(3)).
            .env_remove("WATCHDOG_PID")
            .stdin(Stdio::from(OwnedFd::from(input)))
            .spawn()
            .map_err(|source| SpawnError { path: self.path.clone(), source })?;
        Ok(Successor(child))
    }
}

/// A child that is to take over.
#[derive(Debug)]
pub struct Successor(Child);

impl Successor {
    /// The ID of its process.
    pub fn process(&self) -> u32 {
        self.0.id()
    }

    /// Whether it has not ended.
    pub fn lives(&mut self) -> bool {
        matches!(self.0.try_wait(), Ok(None))
    }

    /// Kills it if it lives, `at_once` or when it takes too long, and waits for its end. Returns how it ended, for people.
    pub fn end(mut self, at_once: bool) -> String {
        let deadline = Instant::now() + END_TIMEOUT;
        let mut is_killed = at_once;
        if at_once {
            let _ = self.0.kill();
        }
        loop {
            match self.0.try_wait() {
                Ok(Some(status)) if is_killed => return format!("it was ended ({status})"),
                Ok(Some(status)) => return format!("it ended by itself ({status})"),
                // Whoever has closed the socket is about to end: that is to be its own end, with its own status.
                Ok(None) if Instant::now() + END_TIMEOUT / 2 > deadline && !is_killed => {
                    is_killed = true;
                    let _ = self.0.kill();
                }
                Ok(None) if Instant::now() < deadline => {}
                Ok(None) => return "it does not end".to_owned(),
                Err(error) => return format!("nobody knows how it ended ({error})"),
            }
            thread::sleep(END_INTERVAL);
        }
    }
}
