//! Results as benchmarks find them, made from the types of results, with figures that are plausible and none that was measured.

use std::f64::consts::TAU;

use tollgate_bench::machine::Machine;
use tollgate_bench::results::{
    Churn, Compared, Direction, EngineFigure, EngineResult, FORMAT, Finding, Floor, FlowFigures, GatewayResult,
    GroupResult, IdleFigures, IdleResult, Latencies, LatencyPoint, LatencyResult, Ledger, LimitedBy, LoadResult,
    PacketsFigures, PacketsPoint, PacketsResult, Pair, Provenance, Ramp, Record, Sample, ScalePoint, ScaleResult,
    ShapingPoint, ShapingResult, ShapingRun, ShardFigures, SoakResult, Spread, Stage, StormFigures, StormResult,
    Transfer, Usage, Work, WorkSummary,
};

/// A result of every benchmark, of three peers.
pub fn all() -> Vec<Record> {
    let mut records: Vec<Record> = [("quincy-server", 1.9), ("wireguard-go", 1.55), ("boringtun-cli", 1.24)]
        .map(|(peer, times)| gateway(peer, times))
        .into();
    records.extend([
        floor_record(),
        packets(),
        scale(),
        latency(),
        shaping(),
        storm(),
        idle(),
        load(),
        failed_load(),
        soak(),
        engine(),
    ]);
    records
}

pub fn record(finding: Finding, command: &str) -> Record {
    Record { format: FORMAT, provenance: provenance(command), finding }
}

pub fn provenance(command: &str) -> Provenance {
    Provenance {
        machine: Machine {
            cpu: Some("Example Processor 9000 @ 3.10GHz".to_owned()),
            cpus: Some(2),
            memory_bytes: Some(25_200_000_000),
            kernel: Some("6.18.5".to_owned()),
        },
        commit: Some("0123456789ab".to_owned()),
        versions: ["tollgate-bench 0.1.0", "tollgate 0.1.0"].map(str::to_owned).to_vec(),
        command_line: command.split(' ').map(str::to_owned).collect(),
        started_unix_seconds: 1_790_000_000 + command.len() as u64 * 977,
        debug_build: false,
    }
}

pub fn spread(median: f64, part: f64) -> Spread {
    Spread { median, min: median * (1.0 - part), max: median * (1.0 + 1.3 * part) }
}

pub fn floor() -> Floor {
    let stage = |name: &str, seconds: f64, cycles: Option<f64>, up, down| Stage {
        name: name.to_owned(),
        cpu_seconds_per_gigabyte: spread(seconds, 0.06),
        cycles_per_byte: cycles,
        counts_up: up,
        counts_down: down,
    };
    Floor {
        stages: vec![
            stage("UDP receive, GRO, 1442 B", 0.0831, Some(0.2577), true, false),
            stage("AES-256-GCM open, 1400 B", 0.1523, Some(0.4721), true, false),
            stage("TUN write, super-packets", 0.0612, Some(0.1897), true, false),
            stage("TUN read, super-packets", 0.0557, Some(0.1727), false, true),
            stage("AES-256-GCM seal, 1400 B", 0.1498, Some(0.4644), false, true),
            stage("UDP send, GSO, 1442 B", 0.0943, Some(0.2923), false, true),
            stage("ChaCha20-Poly1305 seal, 1400 B", 0.4011, None, false, false),
            stage("ChaCha20-Poly1305 open, 1400 B", 0.4087, None, false, false),
        ],
        up_cpu_seconds_per_gigabyte: 0.2966,
        down_cpu_seconds_per_gigabyte: 0.2998,
    }
}

fn floor_record() -> Record {
    record(Finding::Floor(floor()), "tollgate-bench floor --json floor.json")
}

/// Ours against a peer that needs `times` as much CPU.
pub fn gateway(peer: &str, times: f64) -> Record {
    let works = [(Work::Up, 0.512, 4.31), (Work::Down, 0.587, 4.02), (Work::Both, 0.561, 4.77)];
    let transfers = |factor: f64| -> Vec<Transfer> {
        let of = |(work, cpu, rate): (Work, f64, f64)| {
            let bytes = (rate / factor.sqrt() * 4.0 / 8.0 * 1e9) as u64;
            let gateway_cpu_seconds = cpu * factor * bytes as f64 / 1e9;
            Transfer { work, bytes, seconds: 4.003, gateway_cpu_seconds, corrupt_at_byte: None }
        };
        works.map(of).into()
    };
    let drift = [1.0, 1.07, 0.96, 1.12, 1.01];
    let pairs: Vec<Pair> = drift
        .iter()
        .map(|drift| Pair { ours: transfers(*drift), peer: transfers(drift * times * (1.0 + (drift - 1.0) / 3.0)) })
        .collect();
    let floor = floor();
    let summaries = works.iter().enumerate().map(|(index, (work, _, _))| {
        let compared = |figure: &dyn Fn(&Transfer) -> f64| {
            let both: Vec<(f64, f64)> =
                pairs.iter().map(|pair| (figure(&pair.ours[index]), figure(&pair.peer[index]))).collect();
            Compared::of(&both).unwrap()
        };
        let cpu = compared(&|transfer| transfer.gateway_cpu_seconds / (transfer.bytes as f64 / 1e9));
        let to_floor = |figure| figure / floor.up_cpu_seconds_per_gigabyte;
        WorkSummary {
            work: *work,
            cpu_seconds_per_gigabyte: cpu,
            gigabits_per_second: compared(&|transfer| transfer.bytes as f64 * 8e-9 / transfer.seconds),
            cpu_share: compared(&|transfer| transfer.gateway_cpu_seconds / transfer.seconds),
            ours_to_floor: Some(Spread {
                median: to_floor(cpu.ours.median),
                min: to_floor(cpu.ours.min),
                max: to_floor(cpu.ours.max),
            }),
        }
    });
    let result = GatewayResult {
        ours: "tollgate".to_owned(),
        gateway_cpu: 0,
        load_cpus: vec![1],
        seconds: 4,
        peer: peer.to_owned(),
        clients: [
            "quincy-client".to_owned(),
            if peer.starts_with("quincy") { "quincy-client" } else { "wireguard-go" }.to_owned(),
        ],
        summaries: summaries.collect(),
        pairs,
        floor: Some(floor.clone()),
    };
    let mut record =
        record(Finding::Gateway(result), &format!("tollgate-bench gateway --peer {peer} --pairs 5 --json {peer}.json"));
    record.provenance.versions.push(format!("{peer} 3.1.1"));
    record
}

fn packets() -> Record {
    let figures = |name: &str, per_cpu_second: f64, times| PacketsFigures {
        name: name.to_owned(),
        packets_per_cpu_second: spread(per_cpu_second, 0.03),
        ours_to_this: spread(times, 0.02),
        packets_per_second: spread(48_000.0, 0.001),
        lost_packets: 12,
        harness_limited: false,
    };
    let kinds = [("100 B, one flow up", 548_000.0, 2.9), ("IMIX, 64 flows both ways", 281_000.0, 2.1)];
    let points = kinds.map(|(traffic, ours, times)| PacketsPoint {
        traffic: traffic.to_owned(),
        offered_packets_per_second: 48_000.0,
        gateways: vec![figures("tollgate", ours, 1.0), figures("quincy-server", ours / times, times)],
    });
    let result = PacketsResult { points: points.into() };
    record(Finding::Packets(result), "tollgate-bench packets --peer quincy --json packets.json")
}

fn scale() -> Record {
    let point = |shards, clients: u32, cpu: f64, first: f64, crossed| ScalePoint {
        shards,
        clients,
        active_clients: clients.min(100),
        cpu_seconds_per_gigabyte: spread(cpu, 0.05),
        to_first: spread(cpu / first, 0.02),
        crossed_share: Some(crossed),
        carried_bits_per_second: spread(1.996e9, 0.002),
        lost_packets: u64::from(clients / 100),
        harness_limited: clients == 10_000,
    };
    let shards = [(1, 0.703, 0.0), (2, 0.711, 0.0003), (4, 0.722, 0.00041), (8, 0.741, 0.00077), (16, 0.789, 0.0012)];
    let clients = [(1, 0.641), (10, 0.652), (100, 0.667), (1_000, 0.728), (10_000, 0.913)];
    let result = ScaleResult {
        gateway: "tollgate".to_owned(),
        offered_bits_per_second: 2e9,
        train_packets: 32,
        by_shards: shards.map(|(shards, cpu, crossed)| point(shards, 200, cpu, 0.703, crossed)).into(),
        by_clients: clients.map(|(clients, cpu)| point(2, clients, cpu, 0.641, 0.0005)).into(),
        by_idle_clients: [(1, 0.641), (10_000, 0.702)].map(|(clients, cpu)| point(2, clients, cpu, 0.641, 0.0)).into(),
    };
    record(Finding::Scale(result), "tollgate-bench scale --rounds 3 --json scale.json")
}

/// Round trips with a median of `p50_ns` and a tail that is `heavy`.
pub fn round_trips(p50_ns: f64, heavy: f64, count: u64) -> Latencies {
    let at = |share: f64| (p50_ns * (0.55 + 0.45 * (-(1.0 - share).ln() / 0.693).powf(heavy))) as u64;
    let shares = (0..).map(|step| 1.0 - 10f64.powf(-f64::from(step) / 12.0));
    let last = 1.0 - 1.0 / count as f64;
    let mut quantiles: Vec<(f64, u64)> =
        shares.take_while(|share| *share < last).map(|share| (share, at(share))).collect();
    quantiles.push((1.0, at(last)));
    Latencies {
        count,
        min_ns: at(0.0),
        p50_ns: at(0.5),
        p90_ns: at(0.9),
        p99_ns: at(0.99),
        p999_ns: at(0.999),
        max_ns: at(last),
        quantiles,
    }
}

fn latency() -> Record {
    let gateways = [("tollgate", 1.0), ("quincy-server", 1.8), ("wireguard-go", 1.4)];
    let loads = [("idle", 61_000.0, 0.6, 0.0), ("half", 118_000.0, 1.1, 2.1e9), ("saturated", 940_000.0, 1.5, 4.2e9)];
    let points = gateways.iter().flat_map(|(gateway, times)| {
        loads.iter().map(move |(load, p50, heavy, carried)| LatencyPoint {
            gateway: (*gateway).to_owned(),
            load: (*load).to_owned(),
            carried_bits_per_second: carried / times,
            round_trip: round_trips(p50 * times, heavy * times.sqrt(), 60_000),
            lost: if *load == "saturated" { 17 } else { 0 },
            harness_limited: *load == "saturated",
        })
    });
    record(
        Finding::Latency(LatencyResult { points: points.collect() }),
        "tollgate-bench latency --peer quincy --json latency.json",
    )
}

fn shaping() -> Record {
    let run = |p99_ns, counts: bool| ShapingRun {
        p99_ns,
        pings: 1_000,
        lost_pings: 2,
        bulk_bits_per_second: 1.87e7,
        inner_bits_per_second: counts.then_some(1.998e7),
        ce_marks: 311,
        resent_segments: 7,
        gateway_drops: counts.then(|| [("over_limit".to_owned(), 5)].into()),
        tun_queue_drops: 3,
        corrupt_at_byte: None,
    };
    let point = |gateway: &str, direction, ecn, p50_ns, counts| ShapingPoint {
        gateway: gateway.to_owned(),
        direction,
        ecn,
        round_trip: round_trips(p50_ns, 0.7, 2_000),
        runs: vec![run((p50_ns * 3.0) as u64, counts), run((p50_ns * 3.3) as u64, counts)],
    };
    let points = [(Direction::Down, false), (Direction::Up, true)].map(|(direction, ecn)| {
        [point("tollgate", direction, ecn, 3.1e6, true), point("quincy-server", direction, ecn, 9.1e8, false)]
    });
    let result = ShapingResult {
        limit_bits_per_second: 2e7,
        congestion_control: "reno".to_owned(),
        ping_interval_seconds: 0.01,
        seconds: 10,
        client: "quincy-client 3.1.1".to_owned(),
        points: points.concat(),
    };
    record(Finding::Shaping(result), "tollgate-bench shaping --peer quincy --json shaping.json")
}

fn storm() -> Record {
    let figures = |name: &str, times: f64, failed| StormFigures {
        name: name.to_owned(),
        handshakes_per_cpu_second: spread(1_873.0 * times, 0.04),
        handshakes_per_second: spread(1_641.0 * times, 0.05),
        handshakes_per_second_forwarding: spread(411.0 * times, 0.12),
        forwarded_bits_per_second: [spread(3.92e9 * times, 0.03), spread(3.37e9 * times * times, 0.08)],
        forwarding_lost_share: spread(0.141 / times, 0.2),
        failed,
    };
    let gateways = vec![figures("tollgate", 1.0, 0), figures("quincy-server", 0.71, 3)];
    record(Finding::Storm(StormResult { gateways }), "tollgate-bench storm --peer quincy --json storm.json")
}

fn idle() -> Record {
    let figures = |name: &str, empty: u64, each: f64, user: f64, cpu| IdleFigures {
        name: name.to_owned(),
        connections: 10_000,
        users: 10_001,
        empty_bytes: empty,
        bytes_per_user: user,
        bytes_per_connection: each,
        steps: [0u64, 1_000, 2_500, 5_000, 10_000]
            .map(|connections| (connections, empty + (each * connections as f64 * 1.01) as u64))
            .into(),
        keep_alive_seconds: 10.0,
        cpu_share: cpu,
    };
    let gateways = vec![
        figures("tollgate", 21_345_678, 13_877.0, 612.4, 0.0213),
        figures("quincy-server", 33_918_976, 41_326.0, 1_873.0, 0.0671),
    ];
    record(
        Finding::Idle(IdleResult { gateways }),
        "tollgate-bench idle --connections 10000 --peer quincy --json idle.json",
    )
}

fn flows(sent: u64, lost: u64, bytes_each: u64, seconds: f64) -> FlowFigures {
    let received = sent - lost;
    FlowFigures {
        sent_packets: sent,
        received_packets: received,
        received_bytes: received * bytes_each,
        lost_packets: lost,
        bits_per_second: (received * bytes_each * 8) as f64 / seconds,
        ..FlowFigures::default()
    }
}

fn samples(count: u32, interval: f64, connections: u64) -> Vec<Sample> {
    (0..count)
        .map(|index| {
            let seconds = f64::from(index) * interval;
            let wave = (seconds / (f64::from(count) * interval) * TAU * 3.0).sin();
            Sample {
                seconds,
                handshakes: connections + (seconds * 20.0) as u64,
                connections: (connections as f64 * (1.0 - 0.002 * wave.abs())) as u64,
                received_packets: (seconds * 161_234.0) as u64,
                gateway_cpu_seconds: seconds * 0.71 * (1.0 + 0.02 * wave),
                gateway_memory_bytes: (161_800_000.0 + 900_000.0 * wave + f64::from(index % 7) * 40_000.0) as u64,
                gateway_descriptors: 31 + u64::from(index % 3),
                addresses_held: (connections as f64 * (1.0 - 0.002 * wave.abs())) as u64,
                bits_per_second: 1.31e9 * (1.0 + 0.05 * wave + f64::from(index % 5) * 0.004),
            }
        })
        .collect()
}

/// A load of ten thousand clients that went well.
pub fn load_result() -> LoadResult {
    let seconds = 60.0;
    let groups = vec![
        GroupResult {
            name: "bulk".to_owned(),
            connections: 20,
            up: flows(2_311_840, 0, 1_400, seconds),
            down: flows(3_904_113, 211, 1_400, seconds),
            round_trip: None,
        },
        GroupResult {
            name: "web, requests and answers".to_owned(),
            connections: 480,
            up: flows(288_003, 0, 120, seconds),
            down: flows(288_003, 0, 1_200, seconds),
            round_trip: Some(round_trips(310_000.0, 1.2, 288_003)),
        },
        GroupResult {
            name: "imix".to_owned(),
            connections: 1_500,
            up: flows(900_017, 0, 354, seconds),
            down: flows(900_019, 0, 354, seconds),
            round_trip: Some(round_trips(410_000.0, 1.0, 9_019)),
        },
    ];
    let total = |pick: fn(&GroupResult) -> FlowFigures| {
        let sent: u64 = groups.iter().map(|group| pick(group).sent_packets).sum();
        let received: u64 = groups.iter().map(|group| pick(group).received_packets).sum();
        (sent, received)
    };
    let ((up_sent, up_received), (down_sent, down_received)) = (total(|group| group.up), total(|group| group.down));
    let drops = [("gateway: datagram_queue_full".to_owned(), 201), ("kernel: tun0 queue".to_owned(), 10)];
    LoadResult {
        scenario: "clients-10k".to_owned(),
        gateway: "tollgate".to_owned(),
        users: 10_000,
        ramp: Ramp { wanted: 10_000, connected: 10_000, seconds: 8.317, gateway_cpu_seconds: Some(5.441) },
        churn: Churn { connected: 1_204, closed: 1_204, failed: 0, lost: 0, rebound: 301 },
        seconds,
        up: Ledger { sent: up_sent, received: up_received, ..Ledger::default() },
        down: Ledger { sent: down_sent, received: down_received, drops: drops.into(), unaccounted: 0 },
        groups,
        gateway_usage: Some(Usage {
            cpu_seconds: 42.61,
            cpu_share: 0.7101,
            memory_bytes: 161_820_672,
            descriptors: 33,
        }),
        harness_usage: Usage { cpu_seconds: 19.03, cpu_share: 0.3171, memory_bytes: 612_368_384, descriptors: 41 },
        far_end_cpu_seconds: 4.31,
        limited_by: LimitedBy::Scenario,
        shards: Some(ShardFigures {
            shards: 2,
            crossed: 3_124,
            arrived: 8_591_733,
            messages: 14_201,
            addresses_held: 9_999,
            sessions: 9_998,
            connections: 9_997,
        }),
        samples: samples(61, 1.0, 10_000),
        failures: Vec::new(),
    }
}

pub fn load() -> Record {
    record(Finding::Load(load_result()), "tollgate-bench load bench/scenarios/clients-10k.toml --json load.json")
}

/// A load that found what is wrong with a gateway.
pub fn failed_load() -> Record {
    let mut load = load_result();
    load.scenario = "mixed".to_owned();
    load.gateway = "quincy-server".to_owned();
    load.shards = None;
    load.down.unaccounted = 617;
    load.down.received -= 617;
    load.groups[0].down.corrupted_packets = 1;
    load.groups[1].down.reordered_packets = 44;
    load.limited_by = LimitedBy::Harness;
    load.failures = vec![
        "down: 617 packets are unaccounted for".to_owned(),
        "group bulk, down: 1 packet arrived with wrong bytes".to_owned(),
        "group web, requests and answers, down: 44 packets overtook others".to_owned(),
    ];
    record(Finding::Load(load), "tollgate-bench load bench/scenarios/mixed.toml --gateway quincy --json mixed.json")
}

fn soak() -> Record {
    let mut load = load_result();
    load.scenario = "soak".to_owned();
    load.seconds = 14_400.0;
    load.groups.truncate(1);
    load.samples = samples(14_400, 1.0, 500);
    let result = SoakResult {
        load,
        bytes_per_churned_connection: 3.71,
        descriptors_growth: -1,
        addresses_left: Some(0),
        sessions_left: None,
    };
    record(Finding::Soak(result), "tollgate-bench soak --hours 4 --json soak.json")
}

fn engine() -> Record {
    let figure = |name: &str, unit: &str, instructions: f64, recorded: Option<f64>, exceeds| EngineFigure {
        name: name.to_owned(),
        unit: unit.to_owned(),
        instructions,
        recorded,
        exceeds,
    };
    let benchmarks = vec![
        figure("forward up, 64 x 1400 B", "packet", 4_113.0, Some(4_121.0), false),
        figure("forward down, 64 x 1400 B", "packet", 4_508.0, Some(4_497.0), false),
        figure("forward down, small packets, 64 x 64 B", "packet", 3_377.0, Some(3_260.0), true),
        figure("handshake", "handshake", 3_811_402.0, Some(3_811_377.0), false),
        figure("timers of 10,000 idle connections", "tick", 812.4, None, false),
    ];
    let result = EngineResult { benchmarks, compiler: "rustc 1.90.0".to_owned() };
    record(Finding::Engine(result), "tollgate-bench engine --json engine.json")
}
