#!/bin/sh
# A 64-bit ARM Debian in a folder, run by user-mode emulation, with what docs/flower.md has a device install.
#   sh tests/arm/rootfs.sh FOLDER WHEEL
# Needs root, and Debian's packages debootstrap and qemu-user-static. A folder that is there is kept; the wheel is installed
# anew. MIRROR names another mirror of Debian. Packages are unpacked and not configured, which would take long in emulation
# and which Python needs not.
set -eu
folder=$1 wheel=$2
[ "$(id -u)" = 0 ] || { echo "make test-arm needs root: it makes a root file system and enters it" >&2; exit 1; }
for tool in debootstrap qemu-aarch64-static; do
    command -v $tool >/dev/null || { echo "$tool is not here: apt-get install debootstrap qemu-user-static" >&2; exit 1; }
done

# programs of this processor run by qemu, also in a changed root (flag F: qemu is opened here and now)
formats=/proc/sys/fs/binfmt_misc
[ -e $formats/register ] || mount -t binfmt_misc none $formats
magic='\x7fELF\x02\x01\x01\x00\x00\x00\x00\x00\x00\x00\x00\x00\x02\x00\xb7\x00'
mask='\xff\xff\xff\xff\xff\xff\xff\x00\xff\xff\xff\xff\xff\xff\xff\xff\xfe\xff\xff\xff'
[ -e $formats/qemu-aarch64 ] ||
    printf '%s' ":qemu-aarch64:M::$magic:$mask:/usr/bin/qemu-aarch64-static:F" > $formats/register

if [ ! -e "$folder/.made" ]; then
    debootstrap --arch=arm64 --variant=minbase --foreign --include=python3,python3-venv,libgomp1 bookworm "$folder" ${MIRROR:-}
    for package in "$folder"/var/cache/apt/archives/*.deb; do
        dpkg-deb -x "$package" "$folder"
    done
    mkdir -p "$folder/etc/ssl/certs"
    touch "$folder/.made"
fi
for place in proc dev sys; do
    mountpoint -q "$folder/$place" || mount --bind /$place "$folder/$place"
done
cp -L /etc/resolv.conf "$folder/etc/resolv.conf"
cp -L /etc/ssl/certs/ca-certificates.crt "$folder/etc/ssl/certs/ca-certificates.crt" # where a proxy signs, its authority

name=$(basename "$wheel")
cp "$(dirname "$0")/../../constraints-device.txt" "$wheel" "$folder/root/"
[ -x "$folder/root/venv/bin/pip" ] || chroot "$folder" /usr/bin/python3 -m venv /root/venv
pip() { chroot "$folder" /root/venv/bin/pip install --quiet --disable-pip-version-check --no-cache-dir --no-compile "$@"; }
pip -c /root/constraints-device.txt torch "/root/$name[flower]"
pip --no-deps --force-reinstall "/root/$name"
