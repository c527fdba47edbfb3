#!/bin/sh
# Installs the programs that tests and benchmarks compare with into .peers, which git ignores: Quincy's; with --wireguard also WireGuard in
# user space (boringtun-cli, gotatun). Does nothing for what is there already.
set -eu
cd "$(dirname "$0")/.."

wireguard=
case "$#:${1:-}" in
    0:) ;;
    1:--wireguard) wireguard=yes ;;
    *) echo "usage: $0 [--wireguard]" >&2; exit 2 ;;
esac

missing=
# want PACKAGE VERSION PROGRAM: from crates.io.
want() {
    # Cargo's record tells the version; Quincy's programs do not. But most contain it, in the paths of their sources, and may have been
    # copied here.
    if [ -x ".peers/bin/$3" ] && { grep -qsF "\"$1 $2 " .peers/.crates.toml || grep -qaF "/$1-$2/" ".peers/bin/$3"; }; then
        echo "$3 $2 is there" >&2
    else
        missing="$missing $1@$2"
    fi
}

for name in quincy-client quincy-identity quincy-server; do
    want "$name" 3.1.1 "$name"
done
if [ -n "$wireguard" ]; then
    want boringtun-cli 0.7.1 boringtun-cli
    # Needs Rust 1.95.
    want gotatun-cli 0.10.2 gotatun
fi
if [ -n "$missing" ]; then
    echo "installing$missing: this takes a few minutes" >&2
    # One build folder: most of what they are made of is common to all.
    # shellcheck disable=SC2086 # the list is meant to be split
    CARGO_TARGET_DIR=$PWD/.peers/build cargo install $missing --locked --root .peers --force
    rm -rf .peers/build
fi
