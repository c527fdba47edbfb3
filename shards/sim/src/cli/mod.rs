//! The command line: what runs, on how many cores, and what is said of it. Out here time is real.

mod arguments;
mod campaign;
mod failure;
mod seeds;

pub use arguments::Arguments;

use std::fmt::Display;
use std::path::Path;
use std::process::ExitCode;

use tollgate_sim::{Facts, Plan};

use failure::Failure;

pub fn main(arguments: &Arguments) -> ExitCode {
    if let Some(file) = &arguments.bytes {
        return bytes(arguments, file);
    }
    if let Some(seed) = arguments.seed {
        return one(arguments, seed);
    }
    std::panic::set_hook(Box::new(|_| {}));
    let is_good = match &arguments.campaign {
        Some(file) => campaign::run(arguments, file).unwrap_or_else(|error| {
            eprintln!("{error:#}");
            false
        }),
        None => seeds::run(arguments, arguments.seeds.clone().unwrap_or(0..0)),
    };
    if is_good { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// A plan that a fuzzer has written.
fn bytes(arguments: &Arguments, file: &Path) -> ExitCode {
    let bytes = match std::fs::read(file) {
        Ok(bytes) => bytes,
        Err(error) => {
            eprintln!("{} cannot be read: {error}", file.display());
            return ExitCode::FAILURE;
        }
    };
    let plan = Plan::from_bytes(&bytes);
    describe(&file.display(), &plan);
    tell(&file.display(), &arguments.run_plan(plan, arguments.trace))
}

fn one(arguments: &Arguments, seed: u64) -> ExitCode {
    let name = format!("seed {seed}");
    if !arguments.revocations {
        describe(&name, &arguments.plan(seed, &arguments.cut()));
    }
    let result = arguments.run(seed);
    let code = tell(&name, &result);
    if let Err(failure) = result
        && arguments.shrinks()
    {
        std::panic::set_hook(Box::new(|_| {}));
        println!("{}", arguments.shrunk(seed, &failure));
    }
    code
}

fn describe(name: &dyn Display, plan: &Plan) {
    println!(
        "{name}: {} shards, {} users, {} devices, {} flows, {}: {}",
        plan.shards,
        plan.users.len(),
        plan.devices.iter().filter(|device| !device.is_left_out).count(),
        plan.flows.len(),
        plan.tunnel,
        plan.features.names().join(", ")
    );
}

/// What a run has come to.
fn tell(name: &dyn Display, result: &Result<Facts, Failure>) -> ExitCode {
    match result {
        Ok(facts) => {
            println!(
                "{name}: {} packets sent, {} delivered, {} datagrams, {} handshakes, {} messages, {} orders, {} restarts, {:.3} s \
                 simulated, trace {:016x} of {} events",
                facts.packets_sent,
                facts.packets_delivered,
                facts.datagrams,
                facts.handshakes,
                facts.messages,
                facts.orders,
                facts.restarts,
                facts.simulated.as_secs_f64(),
                facts.trace_hash,
                facts.events
            );
            ExitCode::SUCCESS
        }
        Err(failure) => {
            println!("{name} FAILS: {failure}");
            ExitCode::FAILURE
        }
    }
}
