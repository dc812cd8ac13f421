//! Progress on stderr: bars in a terminal, a line now and then elsewhere. Nothing is shown until somebody asks for it
//! with [`show`], as the command line does: a library is silent.
//!
//! ```
//! use mope_harness::progress::{Progress, say};
//!
//! // Silent: nobody has called `show`.
//! let mut progress = Progress::new("generate", "tokens", 96);
//! progress.advance(32);
//! // Found, not made: it counts for the end and not for the rate.
//! progress.skip(64);
//! progress.finish();
//! say("done");
//! ```

use std::io::IsTerminal;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crate::terminal::printable;
use indicatif::{HumanDuration, ProgressBar, ProgressStyle};

static SHOWN: AtomicBool = AtomicBool::new(false);

/// Shows progress of this process on stderr from now on.
pub fn show() {
    SHOWN.store(true, Ordering::Relaxed);
}

/// Says a line on stderr where progress is shown.
pub fn say(line: &str) {
    if SHOWN.load(Ordering::Relaxed) {
        eprintln!("{}", printable(line));
    }
}

/// One stage with a known amount of work.
pub struct Progress {
    bar: ProgressBar,
    name: String,
    unit: &'static str,
    terminal: bool,
    started: Instant,
    said: Instant,
    done: u64,
    skipped: u64,
    total: u64,
}

/// Lines come at most this often where stderr is a file.
const LINE: Duration = Duration::from_secs(10);

impl Progress {
    /// A stage of `total` units of work, such as "tokens".
    pub fn new(name: &str, unit: &'static str, total: u64) -> Self {
        let terminal = SHOWN.load(Ordering::Relaxed) && std::io::stderr().is_terminal();
        let bar = if terminal {
            ProgressBar::new(total)
        } else {
            ProgressBar::hidden()
        };
        let template = format!(
            "{{prefix:>10}} [{{bar:32}}] {{pos}}/{{len}} {unit} · {{per_sec}} · {{eta}} left  {{msg}}"
        );
        // A template that does not parse would be a mistake here; the default bar still works.
        let style = ProgressStyle::with_template(&template)
            .unwrap_or_else(|_| ProgressStyle::default_bar())
            .progress_chars("━╸ ");
        bar.set_style(style);
        bar.set_prefix(name.to_string());
        let now = Instant::now();
        Self {
            bar,
            name: name.into(),
            unit,
            terminal,
            started: now,
            said: now,
            done: 0,
            skipped: 0,
            total,
        }
    }

    /// `n` units are done.
    pub fn advance(&mut self, n: u64) {
        self.done += n;
        self.bar.inc(n);
        if !self.terminal && self.said.elapsed() > LINE {
            self.said = Instant::now();
            self.line();
        }
    }

    /// `n` units need not be done.
    pub fn skip(&mut self, n: u64) {
        self.skipped += n;
        self.bar.inc(n);
        // Rate and remaining time follow from what is really done.
        self.bar.reset_eta();
    }

    /// What is being worked on.
    pub fn message(&self, text: String) {
        self.bar.set_message(printable(&text).into_owned());
    }

    fn line(&self) {
        let (seconds, done) = (
            self.started.elapsed().as_secs_f64(),
            self.done + self.skipped,
        );
        let rate = self.done as f64 / seconds.max(1e-9);
        let left = (self.total.saturating_sub(done)) as f64 / rate.max(1e-9);
        let left = HumanDuration(Duration::from_secs_f64(left.min(1e7)));
        let Self {
            name, unit, total, ..
        } = self;
        say(&format!(
            "{name}: {done}/{total} {unit}, {rate:.1}/s, {left} left"
        ));
    }

    /// The stage is over.
    pub fn finish(mut self) {
        self.bar.finish_and_clear();
        let rate = self.done as f64 / self.started.elapsed().as_secs_f64().max(1e-9);
        let took = HumanDuration(self.started.elapsed());
        self.said = Instant::now();
        let (name, unit) = (&self.name, self.unit);
        match (self.done, self.skipped) {
            (0, _) => say(&format!("{name}: already there")),
            (done, _) => say(&format!("{name}: {done} {unit} in {took} ({rate:.1}/s)")),
        }
    }
}
