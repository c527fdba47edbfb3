//! Who opens the files that a configuration names.

use std::fs::File;
use std::io;
use std::path::Path;

/// Opens a file for reading.
pub type Open<'o> = dyn Fn(&Path) -> io::Result<File> + 'o;

/// As the calling process may.
///
/// # Errors
///
/// Those of the system.
pub fn open_file(path: &Path) -> io::Result<File> {
    File::open(path)
}
