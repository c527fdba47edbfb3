//! A file of numbered lines, to which two processes may append: during an upgrade both serve, and each has clients of its own.
//!
//! The numbers go on from those of the file's last line, whoever has written it. So each process holds a lock (flock(2)) from reading that line until
//! its own are written; the kernel takes the lock from a process that dies. Nothing has to be handed over, and nobody waits for the other but here.

use std::collections::VecDeque;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, OFlags, flock};
use serde::Deserialize;

use crate::whole_file;

/// What is written in one piece, in bytes, but for a longer line.
const PIECE_BYTES: usize = 64 << 10;
/// Where the last line is looked for, in bytes from the end. No line is as long.
const TAIL_BYTES: u64 = 64 << 10;

/// The file.
#[derive(Debug)]
pub struct Journal {
    path: PathBuf,
    file: Option<Opened>,
    /// The number of the last line, as far as this process knows.
    seq: u64,
    /// How what follows a line's number begins, in lines of its own.
    head: fn(&str) -> String,
}

#[derive(Debug)]
struct Opened {
    file: File,
    identity: (u64, u64),
    /// Where this process's last line ends. `None` before the first one.
    end: Option<u64>,
}

#[derive(Deserialize)]
struct Numbered {
    seq: u64,
}

impl Journal {
    /// The one at `path`. `head` makes the inside of an object of the event's name.
    pub fn new(path: &Path, head: fn(&str) -> String) -> Self {
        Journal { path: path.to_owned(), file: None, seq: 0, head }
    }

    /// Appends `lines`, each the inside of an object, and takes them out as they are written.
    ///
    /// # Errors
    ///
    /// [`io::ErrorKind::WouldBlock`] while another program has locked the file. What is in `lines` then is not in the file.
    pub fn write(&mut self, lines: &mut VecDeque<String>) -> io::Result<()> {
        while !lines.is_empty() {
            let opened = match self.file.take() {
                Some(opened) => opened,
                None => open(&self.path)?,
            };
            flock(&opened.file, FlockOperation::NonBlockingLockExclusive)?;
            let (file, written) = self.write_locked(opened, lines);
            if let Some(opened) = &file {
                let _ = flock(&opened.file, FlockOperation::Unlock);
            }
            self.file = file;
            written?;
        }
        Ok(())
    }

    /// Writes a piece, or learns of a file that was moved away how far the numbers are. It goes, and the lock with it.
    fn write_locked(&mut self, mut opened: Opened, lines: &mut VecDeque<String>) -> (Option<Opened>, io::Result<()>) {
        let is_here = fs::metadata(&self.path).is_ok_and(|found| (found.dev(), found.ino()) == opened.identity);
        let mut piece = Vec::new();
        let begun = opened.file.metadata().and_then(|metadata| {
            if opened.end != Some(metadata.len()) || !is_here {
                let is_torn = self.learn(&opened.file, metadata.len())?;
                if is_here && is_torn {
                    piece.push(b'\n');
                    self.add(&mut piece, &(self.head)("torn_line_ended"));
                }
            }
            Ok(metadata.len())
        });
        let begin = match begun {
            Ok(begin) => begin,
            Err(error) => return (None, Err(error)),
        };
        if !is_here {
            let _ = opened.file.sync_data();
            return (None, Ok(()));
        }
        let before = self.seq;
        let mut count = 0;
        while let Some(line) = lines.get(count).filter(|_| piece.len() < PIECE_BYTES) {
            self.add(&mut piece, line);
            count += 1;
        }
        match (&opened.file).write_all(&piece) {
            Ok(()) => {
                lines.drain(..count);
                opened.end = Some(begin + piece.len() as u64);
                (Some(opened), Ok(()))
            }
            Err(error) => {
                // A part of it may be there, and nobody else can have written.
                let _ = opened.file.set_len(begin);
                self.seq = before;
                opened.end = None;
                (Some(opened), Err(error))
            }
        }
    }

    fn add(&mut self, piece: &mut Vec<u8>, line: &str) {
        self.seq += 1;
        piece.extend_from_slice(format!("{{\"seq\":{},{line}}}\n", self.seq).as_bytes());
    }

    /// Finds the number of the last whole line of a file of so many bytes. Returns whether another one follows that is not whole.
    fn learn(&mut self, file: &File, bytes: u64) -> io::Result<bool> {
        let from = bytes.saturating_sub(TAIL_BYTES);
        let mut tail = vec![0; (bytes - from) as usize];
        file.read_exact_at(&mut tail, from)?;
        let whole = tail.iter().rposition(|byte| *byte == b'\n').map_or(0, |end| end + 1);
        let is_torn = whole < tail.len();
        let numbers = tail[..whole].rsplit(|byte| *byte == b'\n');
        let number = numbers.filter_map(|line| serde_json::from_slice::<Numbered>(line).ok()).next();
        self.seq = self.seq.max(number.map_or(0, |line| line.seq));
        Ok(is_torn)
    }

    /// Has the kernel bring to the disk what was written.
    ///
    /// # Errors
    ///
    /// If it cannot.
    pub fn sync(&self) -> io::Result<()> {
        self.file.as_ref().map_or(Ok(()), |opened| opened.file.sync_data())
    }
}

/// Opens the file, and makes it and its folder where they are not there.
fn open(path: &Path) -> io::Result<Opened> {
    DirBuilder::new().recursive(true).mode(0o700).create(whole_file::folder(path))?;
    let mut options = OpenOptions::new();
    // A pipe in its place keeps nobody waiting.
    options.read(true).append(true).create(true).mode(0o600).custom_flags(OFlags::NONBLOCK.bits() as i32);
    let file = options.open(path)?;
    let metadata = file.metadata()?;
    if !metadata.is_file() {
        return Err(io::Error::other("it is not a file"));
    }
    Ok(Opened { file, identity: (metadata.dev(), metadata.ino()), end: None })
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;
    use std::thread;

    use serde_json::Value;

    use super::*;

    fn journal(path: &Path) -> Journal {
        Journal::new(path, |event| format!("\"event\":\"{event}\""))
    }

    fn write(journal: &mut Journal, events: &[&str]) -> io::Result<()> {
        let mut lines = events.iter().map(|event| format!("\"event\":\"{event}\"")).collect();
        journal.write(&mut lines)
    }

    /// The lines of a file.
    fn read(path: &Path) -> Vec<(u64, String)> {
        let text = fs::read_to_string(path).unwrap();
        let object = |line: &str| serde_json::from_str::<Value>(line).unwrap();
        let numbered = |line: Value| (line["seq"].as_u64().unwrap(), line["event"].as_str().unwrap().to_owned());
        text.lines().map(|line| numbered(object(line))).collect()
    }

    fn numbered(from: u64, events: &[&str]) -> Vec<(u64, String)> {
        (from..).zip(events.iter().map(|event| (*event).to_owned())).collect()
    }

    #[test]
    fn numbers_go_on_in_another_process_and_a_line_that_is_not_whole_is_ended_and_told_of() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("new/audit");
        write(&mut journal(&path), &["a", "b"]).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        write(&mut journal(&path), &["c"]).unwrap();
        assert_eq!(read(&path), numbered(1, &["a", "b", "c"]));
        let mut text = fs::read(&path).unwrap();
        text.extend_from_slice(b"{\"seq\":4,\"ev");
        fs::write(&path, text).unwrap();
        write(&mut journal(&path), &["d"]).unwrap();
        let text = fs::read_to_string(&path).unwrap().replace("{\"seq\":4,\"ev\n", "");
        fs::write(&path, text).unwrap();
        assert_eq!(read(&path), numbered(1, &["a", "b", "c", "torn_line_ended", "d"]));
    }

    #[test]
    fn of_two_that_write_at_once_each_number_comes_once_and_in_order() {
        const LINES: usize = 2000;
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("audit");
        thread::scope(|scope| {
            for _ in 0..2 {
                scope.spawn(|| {
                    let mut journal = journal(&path);
                    let mut lines: VecDeque<String> = (0..LINES).map(|_| "\"event\":\"x\"".to_owned()).collect();
                    while !lines.is_empty() {
                        let mut some: VecDeque<String> = lines.drain(..3.min(lines.len())).collect();
                        while let Err(error) = journal.write(&mut some) {
                            assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
                            thread::yield_now();
                        }
                    }
                });
            }
        });
        let numbers: Vec<u64> = read(&path).into_iter().map(|(number, _)| number).collect();
        assert_eq!(numbers, (1..=2 * LINES as u64).collect::<Vec<_>>());
    }

    #[test]
    fn a_file_that_was_moved_away_is_left_and_the_numbers_go_on_in_the_next_one_for_both_who_write() {
        let folder = tempfile::tempdir().unwrap();
        let (path, aside) = (folder.path().join("audit"), folder.path().join("audit.1"));
        let (mut first, mut second) = (journal(&path), journal(&path));
        write(&mut first, &["a"]).unwrap();
        write(&mut second, &["b", "c"]).unwrap();
        fs::rename(&path, &aside).unwrap();
        // It knows of the others only by the file that is not there any more.
        write(&mut first, &["d"]).unwrap();
        write(&mut second, &["e"]).unwrap();
        assert_eq!((read(&aside), read(&path)), (numbered(1, &["a", "b", "c"]), numbered(4, &["d", "e"])));
        // As by logrotate with copytruncate.
        fs::write(&path, "").unwrap();
        write(&mut first, &["f"]).unwrap();
        assert_eq!(read(&path), numbered(5, &["f"]));
    }

    #[test]
    fn what_is_no_file_is_not_written_and_nobody_waits_for_it() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("pipe");
        rustix::fs::mknodat(rustix::fs::CWD, &path, rustix::fs::FileType::Fifo, 0o600.into(), 0).unwrap();
        let error = write(&mut journal(&path), &["a"]).unwrap_err();
        assert!(error.to_string().contains("not a file"), "{error}");
    }
}
