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
        --root --wd env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LC_ALL=C.UTF-8 "$@"
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

has_leader() { [ -n "$(leader)" ]; }
# `degraded` is a system that is up with a unit that failed; which one is looked at in `units`.
booted() { inside systemctl is-system-running 2>/dev/null | grep -E -q '^(running|degraded)$'; }
ready() { inside empathctl status --json | grep -q '"engine": "ready"'; }
active() { inside systemctl is-active --quiet "$1"; }

boot() {
    step "boot"
    rm -rf "$tree"
    mkdir -p "$tree"
    tar -C "$tree" -xf "$base"
    systemd-nspawn --quiet --boot --register=no --keep-unit --private-network --console=pipe --directory="$tree" \
        </dev/null >"$console" 2>&1 &
    nspawn=$!
    wait_for "the system's first process" 20 has_leader
    wait_for "the booted system" "$BOOT_SECONDS" booted
    inside systemctl --version | head -n 1
}

# The newest packages that packaging/build-deb.sh made.
install_packages() {
    step "install"
    for name in empathd_ empathd-model-smollm2_; do
        deb=$(find "$root/target/debian" -maxdepth 1 -name "$name*.deb" -printf '%T@ %p\n' 2>/dev/null | sort -rn | sed -n '1s/[^ ]* //p')
        [ -n "$deb" ] || fail "target/debian/$name*.deb is missing; run: packaging/build-deb.sh"
        cp "$deb" "$tree/root/"
    done
    INSIDE_SECONDS=180 inside sh -c 'dpkg -i /root/empathd_*.deb /root/empathd-model-smollm2_*.deb' ||
        fail "the packages do not install"
    wait_for "empathd.service" "$SERVICE_SECONDS" active empathd.service
    inside systemctl show empathd.service --property=ActiveState,SubState,Type,StatusText
    # READY without a store, and the door closed.
    inside empathctl status --json | grep -q '"state": "uninitialised"' || fail "a fresh appliance is not uninitialised"
    if inside curl --silent --insecure --max-time 5 https://127.0.0.1:8443/livez; then
        fail "the API answers without a store"
    fi
}

init() {
    step "empathctl init"
    inside sh -c 'umask 077; head -c 24 /dev/urandom | base64 >/root/passphrase'
    inside empathctl init --passphrase-file /root/passphrase || fail "init"
    step "empathctl status"
    wait_for "the engine" "$ENGINE_SECONDS" ready
    inside empathctl status || fail "status"
}

ask() {
    inside curl --silent --show-error --fail-with-body --max-time 60 --cacert /root/certs/ca.pem "$@"
}

answer() {
    step "a certificate, and an answer over mutual TLS"
    inside empathctl cert enroll ehr-1 --role ehr --days 90 --out /root/certs || fail "cert enroll"
    # The command that `cert enroll` prints is one that works.
    command=$(inside empathctl cert enroll ehr-2 --out /root/certs --json | sed -n 's/.*"try_it": "\(.*\)".*/\1/p')
    inside sh -c "$command --silent --fail --max-time 30" | tee "$work/models.json" || fail "the printed curl command"
    printf '\n'
    model=$(sed -n 's/.*"id":[[:space:]]*"\([^"]*\)".*/\1/p' "$work/models.json" | head -n 1)
    [ -n "$model" ] || fail "no model is listed"
    body='{"model":"'$model'","max_tokens":24,"temperature":0,"messages":[{"role":"user","content":"Hello, I slept badly."}]}'
    ask --cert /root/certs/ehr-1.pem --key /root/certs/ehr-1.key --json "$body" \
        https://127.0.0.1:8443/v1/chat/completions | tee "$work/answer.json" || fail "no answer"
    grep -q '"content"' "$work/answer.json" || fail "the answer has no content"
    printf '\n'
    if ask https://127.0.0.1:8443/v1/models >/dev/null 2>&1; then fail "a caller without a certificate is answered"; fi
    echo "without a certificate: refused"
}

guards() {
    step "who may what"
    for unit in empathd.service empathd.socket empathd-engine.service empathd-engine.socket; do
        active "$unit" || fail "$unit is not active"
        printf '%-24s active\n' "$unit"
    done
    inside stat -c '%A %U:%G %n' /var/lib/empathd /run/empathd/admin.sock /run/empathd-engine/engine.sock
    [ "$(inside stat -c '%a %U:%G' /var/lib/empathd)" = "700 empathd:empathd" ] || fail "the state folder is open"
    [ "$(inside stat -c '%a %U:%G' /run/empathd/admin.sock)" = "660 root:empathd-admin" ] || fail "the admin socket"
    [ "$(inside stat -c '%a %U:%G' /run/empathd-engine/engine.sock)" = "660 root:empathd" ] || fail "the engine's socket"
    code=0
    inside setpriv --reuid=65534 --regid=65534 --clear-groups empathctl status >/dev/null 2>&1 || code=$?
    [ "$code" = 4 ] || fail "a stranger's empathctl ends with $code, not 4"
    echo "a stranger on the admin socket: refused"
    inside useradd --create-home clerk
    inside usermod --append --groups empathd-admin clerk
    inside setpriv --reuid=clerk --regid=clerk --init-groups --reset-env empathctl audit verify || fail "a member of empathd-admin"
    engine=$(inside systemctl show --property=MainPID --value empathd-engine.service)
    # The engine has no network but a loopback of its own, and sees no keys.
    [ "$(inside readlink "/proc/$engine/ns/net")" != "$(inside readlink /proc/1/ns/net)" ] || fail "the engine has a network"
    echo "the engine: no network"
}

restart() {
    step "restart: sealed until the passphrase comes"
    inside systemctl restart empathd.service || fail "restart"
    inside empathctl status --json | grep -q '"state": "sealed"' || fail "not sealed after a restart"
    code=0
    inside empathctl dataset list >/dev/null 2>&1 || code=$?
    [ "$code" = 3 ] || fail "a sealed appliance ends with $code, not 3"
    inside empathctl unseal --passphrase-file /root/passphrase || fail "unseal"
    inside empathctl audit verify || fail "audit verify"
}

engine_dies() {
    step "the engine dies and comes back"
    inside systemctl kill --signal=KILL empathd-engine.service
    sleep 1
    wait_for "the engine" "$ENGINE_SECONDS" ready
    [ "$(inside systemctl show empathd-engine.service --property=NRestarts --value)" -ge 1 ] || fail "no restart"
    echo "systemd started it again, and the daemon found it"
}

# The same version once more goes the way of a newer one.
upgrade() {
    step "upgrade: stopped in order, started again, sealed"
    INSIDE_SECONDS=180 inside sh -c 'dpkg -i /root/empathd_*.deb' || fail "the package does not install over itself"
    wait_for "empathd.service" "$SERVICE_SECONDS" active empathd.service
    inside empathctl status --json | grep -q '"state": "sealed"' || fail "not sealed after an upgrade"
    inside empathctl unseal --passphrase-file /root/passphrase || fail "unseal after an upgrade"
}

verify() {
    step "empathd verify on the stopped appliance"
    inside systemctl stop empathd.service empathd.socket
    inside install --owner=empathd --mode=0400 /root/passphrase /run/passphrase
    inside setpriv --reuid=empathd --regid=empathd --clear-groups \
        empathd verify --state /var/lib/empathd --passphrase-file /run/passphrase || fail "verify"
}

purge() {
    step "purge keeps the records"
    INSIDE_SECONDS=180 inside dpkg --purge empathd || fail "purge"
    inside test -s /var/lib/empathd/keyring || fail "the purge took the state"
    if inside test -e /etc/empathd/empathd.toml; then fail "the purge left the configuration"; fi
}

tools
base_tree
boot
install_packages
init
answer
guards
engine_dies
restart
upgrade
verify
purge
step "power off"
stop
printf '\nThe packages install and serve.\n'
