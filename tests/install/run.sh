#!/bin/sh
# Installs both packages in a fresh Debian 12 tree, boots it, and takes the appliance from `init` to an answer over
# mutual TLS. Prints each step; ends with 0 only when every one held. Needs root, debootstrap and systemd-nspawn, which
# are installed when they are missing. The tree is made once and kept as target/install-tree/base.tar.
set -eu

SUITE=bookworm
PACKAGES=systemd,systemd-sysv,dbus,init-system-helpers,curl,ca-certificates
BOOT_SECONDS=60
SERVICE_SECONDS=60
ENGINE_SECONDS=120
STOP_SECONDS=60

root=$(CDPATH='' cd -- "$(dirname -- "$0")/../.." && pwd)
work=$root/target/install-tree
base=$work/base.tar
tree=$work/tree
console=$work/console.log
nspawn=

step() { printf '\n== %s\n' "$1"; }
fail() {
    printf '\nFAILED: %s\n' "$1" >&2
    if [ -n "$(leader)" ]; then
        inside journalctl --no-pager -n 60 -u empathd -u empathd-engine -u empathd.socket -u empathd-engine.socket >&2 || true
    elif [ -f "$console" ]; then
        tail -n 40 "$console" >&2
    fi
    exit 1
}

# Process 1 of the booted tree, as the host sees it.
leader() {
    [ -n "$nspawn" ] && [ -r "/proc/$nspawn/task/$nspawn/children" ] || return 0
    cut -d' ' -f1 "/proc/$nspawn/task/$nspawn/children"
}

# Runs a command in the booted tree.
inside() {
    timeout "${INSIDE_SECONDS:-60}" nsenter --target "$(leader)" --mount --uts --ipc --net --pid --cgroup \
        --root --wd=/ env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LC_ALL=C.UTF-8 "$@"
}

# Repeats a check once a second until it holds.
wait_for() {
    what=$1 seconds=$2
    shift 2
    for _ in $(seq "$seconds"); do
        if "$@" >/dev/null 2>&1; then return 0; fi
        sleep 1
    done
    fail "$what did not come within $seconds s"
}

stopped() { ! kill -0 "$nspawn" 2>/dev/null; }

stop() {
    [ -n "$nspawn" ] || return 0
    if ! stopped; then
        kill -s RTMIN+4 "$(leader)" 2>/dev/null || true
        for _ in $(seq "$STOP_SECONDS"); do
            if stopped; then break; fi
            sleep 1
        done
        stopped || kill -KILL "$(leader)" "$nspawn" 2>/dev/null || true
    fi
    wait "$nspawn" 2>/dev/null || true
    nspawn=
}

clean() {
    status=$?
    trap - EXIT
    stop
    rm -rf "$tree"
    exit "$status"
}
trap clean EXIT
trap 'exit 130' INT TERM

tools() {
    [ "$(id -u)" = 0 ] || fail "this test boots a system: run it as root"
    for tool in debootstrap:debootstrap systemd-nspawn:systemd-container nsenter:util-linux; do
        command -v "${tool%%:*}" >/dev/null && continue
        DEBIAN_FRONTEND=noninteractive apt-get install -y -qq "${tool##*:}" >/dev/null ||
            fail "cannot install ${tool##*:}; run: apt-get update"
    done
}

# The mirror this machine's own packages come from.
mirror() {
    for file in /etc/apt/sources.list /etc/apt/sources.list.d/*.list /etc/apt/sources.list.d/*.sources; do
        [ -r "$file" ] || continue
        sed -n -e 's/^URIs:[[:space:]]*\([^[:space:]]*\).*/\1/p' \
            -e 's/^deb[[:space:]]\{1,\}\(\[[^]]*\][[:space:]]*\)\{0,1\}\([^[:space:]]*\).*/\2/p' "$file"
    done | grep -m 1 '/debian/\{0,1\}$' || true
}

base_tree() {
    mkdir -p "$work"
    [ -f "$base" ] && return 0
    step "a Debian 12 tree, once"
    from=$(mirror)
    [ -n "$from" ] || fail "no Debian mirror in /etc/apt; add one and run this again"
    rm -rf "$work/new"
    debootstrap --variant=minbase --include="$PACKAGES" "$SUITE" "$work/new" "$from" >"$work/debootstrap.log" 2>&1 ||
        fail "debootstrap failed, see target/install-tree/debootstrap.log"
    rm -rf "$work"/new/var/cache/apt/archives/*.deb "$work"/new/var/lib/apt/lists/*
    tar -C "$work/new" -cf "$base.part" .
    mv "$base.part" "$base"
    rm -rf "$work/new"
}

boot() {
    systemd-nspawn --quiet --boot --register=no --keep-unit --private-network --console=pipe --directory="$tree" \
        </dev/null >"$console" 2>&1 &
    nspawn=$!
    wait_for "the system's first process" 20 [ -n "$(leader)" ] || true
    wait_for "the booted system" "$BOOT_SECONDS" inside systemctl is-active multi-user.target
}

tools
base_tree
