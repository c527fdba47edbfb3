#!/bin/sh
# Makes the clean Debian in which tests install the package, in $TOLLGATE_DEBIAN or target/debian: of this machine's release, whose libraries the program is
# linked with. Does nothing where it is there.
set -eu
cd "$(dirname "$0")/../.."
folder=${TOLLGATE_DEBIAN:-target/debian}
[ ! -d "$folder" ] || exit 0
. /etc/os-release
rm -rf "$folder.part"
mkdir -p "$folder.part"
debootstrap --variant=minbase --include=systemd,nftables,iproute2 "$VERSION_CODENAME" "$folder.part"
mv "$folder.part" "$folder"
