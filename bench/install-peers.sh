#!/bin/sh
# Installs Quincy's programs, which tests and benchmarks compare with, into .peers, which git ignores. Does nothing for what is there already.
set -eu
cd "$(dirname "$0")/.."
version=3.1.1

missing=
for name in quincy-client quincy-identity quincy-server; do
    # Cargo's record tells the version; the programs do not. But they contain it, in the paths of their sources, and may have been copied here.
    if [ -x ".peers/bin/$name" ] && { grep -qsF "\"$name $version " .peers/.crates.toml || grep -qaF "/$name-$version/" ".peers/bin/$name"; }; then
        echo "$name $version is there" >&2
    else
        missing="$missing $name@$version"
    fi
done
if [ -n "$missing" ]; then
    echo "installing$missing: this takes a few minutes" >&2
    # One build folder: most of what they are made of is common to all.
    # shellcheck disable=SC2086 # the list is meant to be split
    CARGO_TARGET_DIR=$PWD/.peers/build cargo install $missing --locked --root .peers --force
    rm -rf .peers/build
fi
