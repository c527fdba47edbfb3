//! What a machine lacks for a gateway to work, and what costs it speed, each with the command that mends it.

mod machine;
mod network;
mod resources;
#[cfg(test)]
mod tests;

use std::fmt::{self, Display};

use serde::Serialize;
use tollgate_config::ServerConfig;

use self::machine::Machine;
use crate::tls::Doubt;

/// How it is with something.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    /// As it should be.
    Fine,
    /// The gateway works, at a price.
    Dear,
    /// Something does not work.
    Missing,
    /// It could not be looked at.
    Unknown,
}

/// What was found out about one thing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// The thing.
    pub about: &'static str,
    /// How it is with it.
    pub verdict: Verdict,
    /// How it is, and what comes of that.
    pub told: String,
    /// The command, or the change, that mends it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mend: Option<String>,
}

impl Finding {
    fn new(about: &'static str, verdict: Verdict, told: impl Into<String>, mend: impl Into<String>) -> Self {
        Finding { about, verdict, told: told.into(), mend: Some(mend.into()) }
    }

    fn fine(about: &'static str, told: impl Into<String>) -> Self {
        Finding { about, verdict: Verdict::Fine, told: told.into(), mend: None }
    }
}

/// Everything about this machine that concerns a gateway of that configuration, in the order in which it should be mended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Findings {
    version: u8,
    /// The worst first.
    pub findings: Vec<Finding>,
}

/// Looks at the machine that this process runs on; `certificate` is what is wrong with the gateway's. Changes nothing.
pub fn examine(config: &ServerConfig, certificate: &[Doubt]) -> Findings {
    let machine = Machine::this();
    let mut findings = network::examine(config, &machine);
    findings.extend(resources::examine(&machine));
    findings.extend(of_certificate(certificate));
    Findings::of(findings)
}

impl Findings {
    fn of(mut findings: Vec<Finding>) -> Self {
        let rank = |finding: &Finding| match finding.verdict {
            Verdict::Missing => 0,
            Verdict::Dear => 1,
            Verdict::Unknown => 2,
            Verdict::Fine => 3,
        };
        findings.sort_by_key(rank);
        Findings { version: 1, findings }
    }

    /// Whether something does not work.
    pub fn are_grave(&self) -> bool {
        self.findings.iter().any(|finding| finding.verdict == Verdict::Missing)
    }
}

fn of_certificate(doubts: &[Doubt]) -> Vec<Finding> {
    let about = "certificate";
    if doubts.is_empty() {
        return vec![Finding::fine(about, "its dates and names are those that clients want, or there is none")];
    }
    let finding = |doubt: &Doubt| {
        let verdict = if doubt.is_certain { Verdict::Missing } else { Verdict::Unknown };
        // The remedy stands in its words.
        Finding { about, verdict, told: doubt.text.clone(), mend: None }
    };
    doubts.iter().map(finding).collect()
}

impl Display for Findings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, Finding { about, verdict, told, mend }) in self.findings.iter().enumerate() {
            let verdict = match verdict {
                Verdict::Fine => "fine",
                Verdict::Dear => "dear",
                Verdict::Missing => "missing",
                Verdict::Unknown => "unknown",
            };
            write!(f, "{}{verdict:<8}{about}: {told}", if index == 0 { "" } else { "\n" })?;
            mend.iter().try_for_each(|mend| write!(f, "\n        mend: {mend}"))?;
        }
        Ok(())
    }
}
