//! The engine's benchmarks, timed. Their instructions are counted by `tollgate-bench engine`.

use std::time::{Duration, Instant};

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use tollgate_bench::engine::fixture::{CASES, Fixture, round};

/// Times the work of every benchmark, packet by packet or login by login, and not its preparation.
fn engine(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("engine");
    for case in &CASES {
        let mut fixture = (case.make)().expect("the fixture can be made");
        let units = round(&mut *fixture, &mut |fixture| fixture.work()).expect("the first round works");
        group.throughput(Throughput::Elements(units));
        group.bench_function(case.name, |bencher| {
            bencher.iter_custom(|rounds| {
                let mut elapsed = Duration::ZERO;
                for _ in 0..rounds {
                    let timed = &mut |fixture: &mut dyn Fixture| {
                        let started = Instant::now();
                        let units = fixture.work();
                        elapsed += started.elapsed();
                        units
                    };
                    round(&mut *fixture, timed).expect("every round works");
                }
                elapsed
            });
        });
    }
    group.finish();
}

criterion_group!(benches, engine);
criterion_main!(benches);
