//! The log's file: lines are appended, and a file that is full becomes `PATH.1`, the one before it `PATH.2`, and so on.

use std::{
    ffi::OsString,
    fs::{self, File, OpenOptions},
    io::{self, Read, Seek, SeekFrom, Write},
    path::{Path, PathBuf},
};

/// An open file, at its end.
#[derive(Debug)]
pub(super) struct LogFile {
    path: PathBuf,
    file: File,
    bytes: u64,
}

impl LogFile {
    /// Opens the file, or makes it. A line that an earlier process did not finish is ended.
    pub(super) fn open(path: PathBuf) -> io::Result<Self> {
        let mut file = OpenOptions::new().read(true).append(true).create(true).open(&path)?;
        let metadata = file.metadata()?;
        if !metadata.is_file() {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "it is no regular file"));
        }
        let mut bytes = metadata.len();
        if bytes > 0 {
            let mut last = [0];
            file.seek(SeekFrom::End(-1))?;
            file.read_exact(&mut last)?;
            if last != *b"\n" {
                file.write_all(b"\n")?;
                bytes += 1;
            }
        }
        Ok(Self { path, file, bytes })
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Appends whole lines, to a new file if this one would become larger than `rotate_bytes`. What cannot be written
    /// whole is taken back.
    pub(super) fn append(&mut self, lines: &[u8], rotate_bytes: u64, keep: usize) -> io::Result<()> {
        if self.bytes > 0 && self.bytes + lines.len() as u64 > rotate_bytes {
            self.rotate(keep)?;
        }
        if let Err(error) = self.file.write_all(lines) {
            self.file.set_len(self.bytes)?;
            return Err(error);
        }
        self.bytes += lines.len() as u64;
        Ok(())
    }

    fn rotate(&mut self, keep: usize) -> io::Result<()> {
        for number in (1..keep).rev() {
            rename(&self.numbered(number), &self.numbered(number + 1))?;
        }
        if keep > 0 {
            rename(&self.path, &self.numbered(1))?;
        } else {
            fs::remove_file(&self.path)?;
        }
        *self = Self::open(std::mem::take(&mut self.path))?;
        Ok(())
    }

    fn numbered(&self, number: usize) -> PathBuf {
        let mut name = OsString::from(&self.path);
        name.push(format!(".{number}"));
        name.into()
    }
}

/// Over what is there; what is not there is no matter.
fn rename(from: &Path, to: &Path) -> io::Result<()> {
    match fs::rename(from, to) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        result => result,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_file_is_numbered_and_the_oldest_goes() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("decisions.jsonl");
        let mut file = LogFile::open(path.clone()).expect("it opens");
        for line in ["1\n", "2\n", "3\n", "4\n", "5\n", "6\n", "7\n"] {
            file.append(line.as_bytes(), 4, 2).expect("it is written");
        }
        let read = |suffix: &str| fs::read_to_string(format!("{}{suffix}", path.display())).ok();
        assert_eq!(read("").as_deref(), Some("7\n"));
        assert_eq!(read(".1").as_deref(), Some("5\n6\n"));
        assert_eq!(read(".2").as_deref(), Some("3\n4\n"));
        assert_eq!(read(".3"), None);
        file.append(b"a line longer than the limit\n", 4, 0).expect("it is written");
        assert_eq!(read("").as_deref(), Some("a line longer than the limit\n"));
        assert_eq!(read(".1").as_deref(), Some("5\n6\n"), "with none to keep, the full one goes");
    }

    #[test]
    fn an_unfinished_line_is_ended() {
        let file = tempfile::NamedTempFile::new().expect("a file");
        fs::write(file.path(), "{\"a\":").expect("written");
        let mut log = LogFile::open(file.path().to_owned()).expect("it opens");
        log.append(b"{}\n", 100, 1).expect("it is written");
        drop(log);
        let mut log = LogFile::open(file.path().to_owned()).expect("it opens");
        log.append(b"{}\n", 100, 1).expect("it is written");
        assert_eq!(fs::read_to_string(file.path()).expect("text"), "{\"a\":\n{}\n{}\n");
    }

    #[test]
    fn a_directory_is_no_log() {
        let directory = tempfile::tempdir().expect("a directory");
        assert!(LogFile::open(directory.path().to_owned()).is_err());
        assert!(LogFile::open(PathBuf::from("/dev/null")).is_err());
    }
}
