//! Users' usage, as the control plane sees it: differences from the cores to the keeper, and the keeper's answers to who asks.
//!
//! During an upgrade the newer process writes; the older one tells it what its clients use.

mod ledger;
mod quotas;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Instant;

use tollgate_config::{ServerConfig, Usage};

use self::ledger::Ledger;
use self::quotas::Quotas;
use super::event_loop::{EventLoop, Source, Watched};
use super::orders::Origin;
use super::protocol::{Answer, Place, UsageRow};
use super::{ControlError, ControlLoop, Phase};
use crate::gateway::usage_interval;
use crate::io::Wake;
use crate::usage::{Ask, Book, Bookkeeper, Day, Page, Told, unix_s};

/// What was carried before this process, or by others, as far as quotas know it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Before {
    /// Not, and the store is not open. Who was over a quota when this process took over still is.
    Unknown,
    /// Not, for the store cannot be read.
    Unreadable,
    /// The keeper is to be asked.
    ToAsk,
    /// The keeper was asked.
    Asked,
    Known,
}

/// What is kept of what users have carried.
#[derive(Debug)]
pub(super) struct Bookkeeping {
    ledger: Ledger,
    quotas: Quotas,
    before: Before,
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
            quotas: Quotas::default(),
            before: Before::Unknown,
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
        self.trouble.as_ref().map(|trouble| {
            format!("usage is counted in memory alone, its file cannot be used: {trouble}{}", self.unknown_before())
        })
    }

    fn unknown_before(&self) -> &'static str {
        if self.before == Before::Unreadable { "; quotas know nothing of what was before" } else { "" }
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

    /// Asks for what was before, where that is to be done and all that this process has counted is with the keeper.
    fn ask_before(&mut self, today: Day) {
        if self.before == Before::ToAsk && self.keeper.has_sent_all() && self.keeper.ask(Ask::Before(today)) {
            self.quotas.ask();
            self.before = Before::Asked;
        }
    }

    /// Those of whom it is known that they are `over` their quotas, and, until that is known of all, those who `were`.
    fn over(&self, mut over: BTreeSet<String>, were: &BTreeSet<String>) -> BTreeSet<String> {
        if matches!(self.before, Before::Unknown | Before::ToAsk | Before::Asked) {
            over.extend(were.iter().cloned());
        }
        over
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

impl ControlLoop {
    /// Hands on what users have carried, when that is due.
    pub(super) fn count_usage(&mut self, now: Instant) {
        if self.usage.as_ref().is_some_and(|usage| usage.renew_at <= now) {
            self.renew_usage(now);
        }
    }

    pub(super) fn renew_usage(&mut self, now: Instant) {
        let Some(usage) = &mut self.usage else { return };
        let (unix_s, config) = (unix_s(), self.gateway.config());
        usage.renew_at = now + usage_interval(config);
        let mut book = usage.ledger.renew(self.gateway.take_usage(), self.gateway.users(), now, unix_s);
        book.merge(self.gateway.take_told_usage());
        usage.quotas.add(&book, Day::of(unix_s), self.gateway.config());
        match self.gateway.successor() {
            Some(_) => self.gateway.tell_usage(usage.leave(book)),
            None => usage.keep(book),
        }
        usage.ask_before(Day::of(unix_s));
    }

    /// Has those closed and refused who are over their quotas, where others are now.
    pub(super) fn bar_users(&mut self) {
        let Some(usage) = self.usage.as_ref().filter(|_| self.phase == Phase::Serving) else { return };
        if self.orders.is_idle() && self.gateway.is_idle() {
            let over = usage.over(usage.quotas.over().clone(), self.gateway.over_quota());
            if over != *self.gateway.over_quota() {
                self.gateway.begin_bar(over, Instant::now());
                self.orders.begin_bar();
            }
        }
    }

    /// Who is over a quota of `next`.
    pub(super) fn over_quotas_of(&self, next: &ServerConfig) -> BTreeSet<String> {
        let Some(usage) = self.usage.as_ref() else { return BTreeSet::new() };
        usage.over(usage.quotas.over_of(next), self.gateway.over_quota())
    }

    /// The configuration in force is another one.
    pub(super) fn apply_quotas(&mut self) {
        let config = self.gateway.config();
        self.usage.iter_mut().for_each(|usage| usage.quotas.apply(config));
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
                    (usage.trouble, usage.before) = (None, Before::ToAsk);
                    continue;
                }
                Told::Unusable(trouble) => {
                    usage.trouble = Some(trouble);
                    if usage.before != Before::Known {
                        usage.before = Before::Unreadable;
                    }
                    continue;
                }
                Told::Before(told) => {
                    usage.quotas.load(told, self.gateway.config());
                    usage.before = Before::Known;
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
                Told::Forgotten(Ok(true)) => {
                    usage.before = Before::ToAsk;
                    Answer::done(vec!["forgotten".to_owned()])
                }
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
