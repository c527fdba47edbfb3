#!/bin/sh
# Runs every benchmark against every peer, in about 30 minutes, and makes bench/results/: a JSON file each, report.html, and the README's
# plot.
# Needs root (WireGuard programs do) and a machine with nothing else to do. Progress goes to standard error.
set -eu
cd "$(dirname "$0")/.."
bench/install-peers.sh --wireguard
cargo build --release -p tollgate -p tollgate-bench
bench=${CARGO_TARGET_DIR:-target}/release/tollgate-bench
# Elsewhere at first: a result says whether the sources were changed, and the results are among them.
results=$(mktemp -d)
trap 'rm -rf "$results"' EXIT

# A target that is missed is in the table, and ends nothing; a benchmark that fails leaves those behind it unmeasured.
bench/targets.sh "$results" || [ -f "$results/storm.json" ]
for peer in boringtun gotatun wireguard-go; do
    "$bench" gateway --peer "$peer" --pairs 3 --seconds 2 --json "$results/gateway-$peer.json"
done
"$bench" load "bench/scenarios/clients-10k.toml" --json "$results/load-clients-10k.json"
"$bench" shaping --peer quincy --pairs 5 --json "$results/shaping.json"
"$bench" soak --duration "1 min" --json "$results/soak.json"
"$bench" engine --json "$results/engine.json"
"$bench" report --out "$results/report.html" --plot cpu_per_gigabyte --svg "$results/cpu-per-gigabyte.svg" "$results"/*.json
rm -f bench/results/*
cp "$results"/* bench/results/
