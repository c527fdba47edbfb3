//! Users' usage, as the control plane sees it: differences from the cores to the keeper, and the keeper's answers to who asks.
//!
//! During an upgrade the newer process writes; the older one tells it what its clients use.

mod ledger;

use std::sync::Arc;
use std::time::Instant;

use tollgate_config::{ConfigError, ServerConfig, Usage};

use self::ledger::Ledger;
use super::event_loop::{EventLoop, Source, Watched};
use super::orders::Origin;
use super::protocol::{Answer, Place, UsageRow};
use super::{ControlError, ControlLoop};
use crate::gateway::USAGE_INTERVAL;
use crate::io::Wake;
use crate::usage::{Ask, Book, Bookkeeper, Page, Told, unix_s};

/// What is kept of what users have carried.
#[derive(Debug)]
pub(super) struct Bookkeeping {
    ledger: Ledger,
    keeper: Bookkeeper,
    wake: Watched<Arc<Wake>>,
    renew_at: Instant,
    /// Whether this process writes, as the keeper knows.
    is_here: bool,
    /// Why the store cannot be written, while that is so.
    trouble: Option<String>,
}

impl Bookkeeping {
    /// Starts the keeper, if `config` wants one.
    pub(super) fn open(config: &Usage, event_loop: &EventLoop) -> Result<Option<Self>, ControlError> {
        if !config.enabled {
            return Ok(None);
        }
        let wake = Arc::new(Wake::new()?);
        let keeper = Bookkeeper::start(config.file.path.clone(), wake.clone()).map_err(ControlError::Usage)?;
        let wake = event_loop.watch(Source::Usage, wake)?;
        Ok(Some(Bookkeeping {
            ledger: Ledger::default(),
            keeper,
            wake,
            renew_at: Instant::now(),
            is_here: false,
            trouble: None,
        }))
    }

    pub(super) fn poll_timeout(&self) -> Instant {
        self.renew_at
    }

    /// A line where the store cannot be written.
    pub(super) fn line(&self) -> Option<String> {
        self.trouble
            .as_ref()
            .map(|trouble| format!("usage is counted in memory alone, its file cannot be used: {trouble}"))
    }

    /// Writes `book`.
    fn keep(&mut self, book: Book) {
        self.ask_for(true);
        self.keeper.post(book);
    }

    /// Has another process write. Returns what it is to be told.
    fn leave(&mut self, mut book: Book) -> Book {
        self.ask_for(false);
        book.merge(self.keeper.take_unsent());
        book
    }

    /// Says whether this process writes. Where too much waits, it is said the next time.
    fn ask_for(&mut self, is_here: bool) {
        if is_here != self.is_here && self.keeper.ask(if is_here { Ask::Open } else { Ask::Close }) {
            self.is_here = is_here;
        }
    }
}

/// The answer where usage is not kept.
pub(super) fn refuse() -> Answer {
    Answer::refused(vec!["usage is not kept: set enabled = true in [usage], then `tollgate upgrade`".to_owned()])
}

impl<L: Fn() -> Result<ServerConfig, ConfigError>> ControlLoop<L> {
    /// Hands on what users have carried, when that is due.
    pub(super) fn count_usage(&mut self, now: Instant) {
        if self.usage.as_ref().is_some_and(|usage| usage.renew_at <= now) {
            self.renew_usage(now);
        }
    }

    pub(super) fn renew_usage(&mut self, now: Instant) {
        let Some(usage) = &mut self.usage else { return };
        usage.renew_at = now + USAGE_INTERVAL;
        let mut book = usage.ledger.renew(self.gateway.take_usage(), self.gateway.users(), now, unix_s());
        book.merge(self.gateway.take_told_usage());
        match self.gateway.successor() {
            Some(_) => self.gateway.tell_usage(usage.leave(book)),
            None => usage.keep(book),
        }
    }

    /// Has the keeper find rows, or forget a user. Returns the answer if there is one already.
    pub(super) fn begin_usage(&mut self, origin: Origin, ask: Ask) -> Option<Answer> {
        let Some(usage) = &self.usage else { return Some(refuse()) };
        if !usage.keeper.ask(ask) {
            return Some(Answer::refused(vec!["the disk takes too long: try it again".to_owned()]));
        }
        self.orders.begin_usage(origin);
        None
    }

    /// The gateway ends: all that was carried is handed on, and written.
    pub(super) fn end_usage(&mut self) {
        self.renew_usage(Instant::now());
        self.usage.take().into_iter().for_each(|usage| usage.keeper.finish());
    }

    /// Takes what the keeper tells.
    pub(super) fn hear_keeper(&mut self) {
        self.usage.iter().for_each(|usage| _ = usage.wake.drain());
        while let Some(usage) = &mut self.usage
            && let Some(told) = usage.keeper.poll()
        {
            let answer = match told {
                Told::Opened => {
                    usage.trouble = None;
                    continue;
                }
                Told::Unusable(trouble) => {
                    usage.trouble = Some(trouble);
                    continue;
                }
                Told::Unwritten(book) => {
                    match self.gateway.successor() {
                        Some(_) => self.gateway.tell_usage(book),
                        None => usage.keep(book),
                    }
                    continue;
                }
                Told::Rows(page) => rows(page),
                Told::Forgotten(Ok(true)) => Answer::done(vec!["forgotten".to_owned()]),
                Told::Forgotten(Ok(false)) => Answer::refused(vec!["no usage of that user is known".to_owned()]),
                Told::Forgotten(Err(reason)) => Answer::refused(vec![reason]),
            };
            if let Some(origin) = self.orders.take_usage() {
                self.answer(origin, &answer);
            }
        }
    }
}

fn rows(Page { rows, is_last, trouble }: Page) -> Answer {
    let next = rows.last().filter(|_| !is_last);
    let next = next.map(|row| Place { user: row.user.clone(), address: None, begin: Some(row.begin) });
    let rows: Vec<UsageRow> = rows.into_iter().map(UsageRow::from).collect();
    Answer { usage: Some(rows), next, ..Answer::done(trouble.into_iter().collect()) }
}
