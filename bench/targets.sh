#!/bin/sh
# Measures all that Tollgate's targets speak of, beside quincy-server, in about 25 minutes, and prints each target with its figure. The results
# go to the folder that is given (default: a temporary one), a JSON file each.
# Needs root where user namespaces are not allowed, and a machine with nothing else to do. Progress goes to standard error. The exit status is 0
# only if every target holds.
set -eu
[ $# -eq 0 ] || set -- "$(realpath -m "$1")"
cd "$(dirname "$0")/.."
bench/install-peers.sh
cargo build --release -p tollgate -p tollgate-bench
bench=$(realpath "${CARGO_TARGET_DIR:-target}/release/tollgate-bench")
if [ $# -gt 0 ]; then
    mkdir -p "$1"
    results=$1
else
    results=$(mktemp -d)
    trap 'rm -rf "$results"' EXIT
fi

"$bench" gateway --peer quincy --json "$results/gateway-quincy.json"
"$bench" packets --peer quincy --json "$results/packets.json"
"$bench" scale --clients 1,100,10000 --mostly-idle 1,10000 --rounds 5 --json "$results/scale.json"
"$bench" latency --peer quincy --json "$results/latency.json"
"$bench" idle --peer quincy --json "$results/idle.json"
"$bench" storm --peer quincy --rounds 5 --json "$results/storm.json"
cd "$results"
"$bench" targets gateway-quincy.json packets.json scale.json latency.json idle.json storm.json
