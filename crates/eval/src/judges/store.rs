//! Verdicts on the disk: a line of JSON each.

use std::collections::HashMap;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::Verdict;
use crate::{Error, Result, open_to_write};

/// A verdict as it is kept.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// Hash of all that the verdict follows from: judge, criterion, prompt, responses in their order.
    pub key: String,
    /// By what it was asked, by its name in the file of judges.
    pub criterion: String,
    /// Strategies of the responses in the order in which they were shown.
    pub strategies: [String; 2],
    /// Preference, prompt and sample of both.
    pub preference: String,
    /// The prompt's id.
    pub prompt: String,
    /// Number of the sample.
    pub sample: u32,
    /// What it came down to.
    pub verdict: Verdict,
    /// What the judge wrote.
    pub raw: String,
}

/// Verdicts of one judge: a line of JSON each, on the disk before anybody counts on it.
#[derive(Debug)]
pub struct Store {
    path: PathBuf,
    file: File,
    /// Bytes of whole lines.
    length: u64,
    known: HashMap<String, Record>,
}

impl Store {
    /// Opens or makes the file. A last line that a kill or a full disk cut is dropped.
    ///
    /// # Errors
    /// A file that cannot be written, a link, or another line that is no verdict.
    pub fn open(path: &Path) -> Result<Self> {
        let io = Error::io(path);
        let mut file = open_to_write(path).map_err(&io)?;
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes).map_err(&io)?;
        let length = bytes.iter().rposition(|b| *b == b'\n').map_or(0, |i| i + 1);
        let mut store = Self {
            path: path.into(),
            file,
            length: length as u64,
            known: HashMap::new(),
        };
        for (i, line) in bytes[..length].split(|b| *b == b'\n').enumerate() {
            if line.is_empty() {
                continue;
            }
            let record: Record = serde_json::from_slice(line).map_err(|error| Error::Verdict {
                path: path.into(),
                line: i + 1,
                error,
            })?;
            store.known.insert(record.key.clone(), record);
        }
        store.cut().map_err(&io)?;
        // A new file outlives a power cut only when its folder knows of it.
        let folder = path.parent().filter(|f| !f.as_os_str().is_empty());
        let folder = File::open(folder.unwrap_or(Path::new("."))).map_err(&io)?;
        folder.sync_all().map_err(&io)?;
        Ok(store)
    }

    /// Ends the file after its last complete line.
    fn cut(&mut self) -> std::io::Result<()> {
        self.file.set_len(self.length)?;
        self.file.seek(SeekFrom::Start(self.length)).map(|_| ())
    }

    /// A verdict that is there.
    pub fn get(&self, key: &str) -> Option<&Record> {
        self.known.get(key)
    }

    /// Keeps a verdict; one that is there already stays as it is.
    ///
    /// # Errors
    /// What the file system reports; the file then ends where it did.
    pub fn put(&mut self, record: Record) -> Result<()> {
        if self.known.contains_key(&record.key) {
            return Ok(());
        }
        let written = (|| {
            let mut line = serde_json::to_vec(&record)?;
            line.push(b'\n');
            self.file.write_all(&line)?;
            self.file.sync_data()?;
            Ok(line.len() as u64)
        })();
        match written {
            Ok(length) => self.length += length,
            Err(error) => {
                // What stands half is cut now or when the file is opened.
                drop(self.cut());
                return Err(Error::io(&self.path)(error));
            }
        }
        self.known.insert(record.key.clone(), record);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    fn record(key: &str) -> Record {
        Record {
            key: key.into(),
            criterion: "c".into(),
            strategies: ["a".into(), "b".into()],
            preference: "p".into(),
            prompt: "1".into(),
            sample: 0,
            verdict: Verdict::Tie,
            raw: "C\nand \"so\" on".into(),
        }
    }

    #[test]
    fn every_cut_keeps_whole_verdicts_and_none_comes_twice() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("v.jsonl");
        let mut store = Store::open(&path).unwrap();
        for key in ["x", "y", "x"] {
            store.put(record(key)).unwrap();
        }
        let complete = std::fs::read(&path).unwrap();
        assert_eq!(complete.iter().filter(|b| **b == b'\n').count(), 2);
        let first = complete.iter().position(|b| *b == b'\n').unwrap() + 1;
        for cut in 0..=complete.len() {
            std::fs::write(&path, &complete[..cut]).unwrap();
            let mut store = Store::open(&path).unwrap();
            assert_eq!(store.get("x").is_some(), cut >= first, "{cut}");
            assert_eq!(store.get("y").is_some(), cut == complete.len());
            for key in ["x", "y"] {
                store.put(record(key)).unwrap();
            }
            assert_eq!(std::fs::read(&path).unwrap(), complete, "{cut}");
        }
        std::fs::write(&path, [b"{}\n", complete.as_slice()].concat()).unwrap();
        let error = Store::open(&path).unwrap_err().to_string();
        assert!(error.contains("v.jsonl:1: no verdict"), "{error}");
    }

    #[cfg(unix)]
    #[test]
    fn a_link_to_a_file_elsewhere_leaves_it_alone() {
        let folder = tempfile::tempdir().unwrap();
        let (target, path) = (folder.path().join("mine"), folder.path().join("v.jsonl"));
        std::fs::write(&target, "no line end").unwrap();
        std::os::unix::fs::symlink(&target, &path).unwrap();
        let error = Store::open(&path).unwrap_err().to_string();
        assert!(error.contains("v.jsonl: it is a link"), "{error}");
        assert_eq!(std::fs::read(&target).unwrap(), b"no line end");
    }

    #[test]
    fn a_full_disk_is_an_error_and_loses_nothing() {
        // Every write to this device fails as on a full disk.
        let path = Path::new("/dev/full");
        if !path.exists() {
            return;
        }
        let file = File::options().write(true).open(path).unwrap();
        let mut store = Store {
            path: path.into(),
            file,
            length: 0,
            known: HashMap::new(),
        };
        let error = store.put(record("x")).unwrap_err().to_string();
        assert!(error.contains("/dev/full"), "{error}");
        assert!(store.get("x").is_none());
    }
}
