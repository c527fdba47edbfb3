#!/bin/sh
# Compares tollgate with quincy-server, each pinned to one CPU, in one run: CPU seconds per GB and throughput, up, down and both ways, ratios
# pair by pair, and the machine's floor. Options go to `tollgate-bench gateway`: --pairs N, --seconds N, --cpu C, --json FILE ...
set -eu
root=$(cd "$(dirname "$0")/.." && pwd)
"$root/bench/install-peers.sh"
cargo build --release --manifest-path "$root/Cargo.toml" -p tollgate -p tollgate-bench
target=${CARGO_TARGET_DIR:-$root/target}
exec "$target/release/tollgate-bench" gateway --peer quincy "$@"
