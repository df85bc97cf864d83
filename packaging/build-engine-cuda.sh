#!/bin/sh
# Makes the engine for NVIDIA cards on a machine that needs neither a card nor a CUDA toolkit, in target/cuda/engine:
#   empathd-engine   the program
#   lib/             the CUDA libraries it needs, found beside it wherever the folder lies
#   checks/          with --checks: the tests that packaging/check-cuda.sh runs where there is a card; here they run on an
#                    emulated one (packaging/cuda/driver.cpp)
#   checks/empathd-benches   with --benches: the benches
# Compiler, headers and libraries are the wheels of packaging/cuda/wheels.txt, checked by SHA-256 and laid out under
# target/cuda/toolkit. The driver (libcuda.so.1) belongs to the machine with the card; here a stand-in of its interface,
# whose every function answers "no device", lets the program be linked and started.
#
# CUDA_COMPUTE_CAP chooses the cards (90: H100, H200). CARGO_BUILD_JOBS bounds the compilers that run at once.
set -eu

# What the engine may need at run time: the driver, CUDA's libraries, and what every Debian 12 has.
CUDA_LIBRARIES="libcublas.so.13 libcublasLt.so.13 libcudart.so.13 libcurand.so.10"
SYSTEM_LIBRARIES="libcuda.so.1 ld-linux-x86-64.so.2 libc.so.6 libdl.so.2 libgcc_s.so.1 libm.so.6 libpthread.so.0 librt.so.1
libstdc++.so.6"

usage() {
    echo "usage: packaging/build-engine-cuda.sh [--env] [--checks] [--benches]"
    echo "  --env      only prepare the toolkit, and print the variables that cargo needs to build with feature cuda"
    echo "  --checks   also make the tests, and run them on an emulated card"
    echo "  --benches  also make the benches"
}

only_env=no checks=no benches=no
for argument in "$@"; do
    case $argument in
        --env) only_env=yes ;;
        --checks) checks=yes ;;
        --benches) benches=yes ;;
        -h | --help) usage; exit 0 ;;
        *) usage >&2; exit 2 ;;
    esac
done

root=$(CDPATH='' cd -- "$(dirname -- "$0")/.." && pwd)
cd "$root"
target=$root/target/cuda
toolkit=$target/toolkit
stand_in=$toolkit/stand-in
engine=$target/engine

step() { printf '== %s\n' "$1" >&2; }
fail() { printf 'error: %s\n' "$1" >&2; exit 1; }

CUDA_COMPUTE_CAP=${CUDA_COMPUTE_CAP:-90}
CARGO_BUILD_JOBS=${CARGO_BUILD_JOBS:-$(nproc)}
export CUDA_COMPUTE_CAP CARGO_BUILD_JOBS

# The wheels, in a Python environment of their own; made again when the list changes.
install_toolkit() {
    if cmp -s packaging/cuda/wheels.txt "$toolkit/wheels.txt"; then
        return
    fi
    step "CUDA 13.0 from wheels into target/cuda/toolkit"
    rm -rf "$toolkit"
    mkdir -p "$toolkit"
    python3 -m venv "$toolkit/venv"
    "$toolkit/venv/bin/python" -m pip install --quiet --disable-pip-version-check --no-deps --only-binary=:all: \
        --require-hashes --requirement packaging/cuda/wheels.txt >&2 ||
        fail "cannot install the wheels of packaging/cuda/wheels.txt"
    lay_out
    make_stand_in
    cp packaging/cuda/wheels.txt "$toolkit/wheels.txt"
}

# A folder in the form that build scripts expect of CUDA_HOME: the wheels' own folders, libraries also by their short
# names.
lay_out() {
    set -- "$toolkit"/venv/lib/python3*/site-packages
    wheels=$1
    for part in bin include nvvm; do
        ln -s "$wheels/nvidia/cu13/$part" "$toolkit/$part"
    done
    mkdir -p "$toolkit/lib64"
    for library in "$wheels"/nvidia/cu13/lib/*; do
        name=$(basename "$library")
        ln -s "$library" "$toolkit/lib64/$name"
        case $name in
            *.alt.so.*) ;;
            *.so.*) ln -s "$name" "$toolkit/lib64/${name%%.so.*}.so" ;;
        esac
    done
    ln -s lib64 "$toolkit/lib"
    ln -s "$wheels" "$toolkit/wheels"
}

# libcuda.so.1 with every function that cuda.h declares; each answers CUDA_ERROR_NO_DEVICE.
make_stand_in() {
    mkdir -p "$stand_in" "$toolkit/lib64/stubs"
    printf '#define __CUDA_API_VERSION_INTERNAL\n#include <cuda.h>\n' |
        cc -E -P -I "$toolkit/include" - | tr '\n' ' ' | grep -oE 'CUresult +cu[A-Z][A-Za-z0-9_]* *\(' |
        sed -E 's/CUresult +([A-Za-z0-9_]+) *\(/\1/' | sort -u >"$stand_in/functions"
    [ "$(wc -l <"$stand_in/functions")" -gt 300 ] || fail "cuda.h declares too few functions"
    sed 's/.*/int &(void) { return 100; }/' "$stand_in/functions" >"$stand_in/libcuda.c"
    cc -shared -fPIC -O1 -Wl,-soname,libcuda.so.1 -o "$stand_in/libcuda.so.1" "$stand_in/libcuda.c"
    ln -s "$stand_in/libcuda.so.1" "$toolkit/lib64/stubs/libcuda.so"
}

# The kernels on this processor against their definitions, and as machine code of the cards.
check_kernels() {
    step "kernels, emulated on this processor"
    c++ -std=c++20 -O1 -I . packaging/cuda/emulate.cpp -o "$target/emulate"
    "$target/emulate" >&2
    step "kernels, for sm_$CUDA_COMPUTE_CAP"
    "$NVCC" -cubin -O3 -std=c++17 --Werror all-warnings -arch "sm_$CUDA_COMPUTE_CAP" --resource-usage \
        -o "$target/kernels.cubin" model/src/device/kernels.cu >"$target/kernels.txt" 2>&1 ||
        fail "nvcc refuses model/src/device/kernels.cu; see target/cuda/kernels.txt"
    if grep -E '[1-9][0-9]* bytes spill' "$target/kernels.txt" >&2; then
        fail "a kernel does not fit the registers of a card"
    fi
}

build_engine() {
    step "engine"
    cargo rustc --release --target-dir "$target" -p empathd-model --features cuda --bin empathd-engine -- \
        -C 'link-arg=-Wl,-rpath,$ORIGIN/lib'
    rm -rf "$engine"
    mkdir -p "$engine/lib"
    cp "$target/release/empathd-engine" "$engine/"
    for library in $CUDA_LIBRARIES; do
        cp -L "$toolkit/lib64/$library" "$engine/lib/"
    done
}

# The names that a file asks the loader for.
needed() { readelf -d "$1" | sed -n 's/^.*(NEEDED).*\[\(.*\)\]$/\1/p'; }

# Nothing is needed that is not shipped, part of every system, or the driver's; nothing of the driver's is asked for that
# cuda.h does not declare; and without a card the program starts.
check_engine() {
    step "what the engine needs"
    for file in "$engine/empathd-engine" "$engine"/lib/*; do
        for library in $(needed "$file"); do
            case " $CUDA_LIBRARIES $(echo "$SYSTEM_LIBRARIES" | tr '\n' ' ') " in
                *" $library "*) ;;
                *) fail "$(basename "$file") needs $library" ;;
            esac
        done
    done
    needed "$engine/empathd-engine" >&2
    if LD_LIBRARY_PATH=$stand_in ldd -r "$engine/empathd-engine" 2>&1 | grep -E 'not found|undefined symbol' >&2; then
        fail "the engine cannot be loaded"
    fi
    LD_LIBRARY_PATH=$stand_in "$engine/empathd-engine" --version >&2
}

# Paths of the programs that a build of tests made.
executables() {
    python3 -c 'import json, sys
for line in sys.stdin:
    made = json.loads(line)
    if made.get("executable") and made["profile"]["test"]:
        print(made["target"]["name"], made["executable"])'
}

build_checks() {
    step "tests"
    mkdir -p "$engine/checks"
    cargo test --release --target-dir "$target" -p empathd-model --features cuda --lib --test '*' --no-run \
        --message-format json-render-diagnostics >"$target/tests.json"
    executables <"$target/tests.json" | while read -r name path; do
        cp "$path" "$engine/checks/$name"
    done
}

# libcard.so: a driver whose card is this processor, with our kernels and those of candle that the tests come by.
build_card() {
    step "an emulated card"
    card=$target/card
    candle=$(cargo metadata --format-version 1 --features empathd-model/cuda | python3 -c 'import json, pathlib, sys
packages = json.load(sys.stdin)["packages"]
print(next(pathlib.Path(p["manifest_path"]).parent for p in packages if p["name"] == "candle-kernels"))')
    rm -rf "$card"
    mkdir -p "$card/candle"
    cp "$candle"/src/*.cu "$candle"/src/*.cuh "$card/candle/"
    # What it makes up for on old cards, a processor has.
    : >"$card/candle/compatibility.cuh"
    set -- -O1 -fPIC -I "$root" -I packaging/cuda -I "$toolkit/include" -I "$toolkit/include/cccl"
    for room in affine binary cast fill indexing reduce ternary unary; do
        c++ -std=c++17 -w "$@" -DCANDLE "-DKERNELS=\"$card/candle/$room.cu\"" -c packaging/cuda/kernels.cpp -o "$card/$room.o"
    done
    c++ -std=c++17 -Wall "$@" '-DKERNELS="model/src/device/kernels.cu"' -c packaging/cuda/kernels.cpp -o "$card/own.o"
    c++ -std=c++20 -Wall "$@" -c packaging/cuda/driver.cpp -o "$card/driver.o"
    c++ -shared -Wl,--allow-multiple-definition -o "$card/libcard.so" "$card"/*.o
}

# The tests that put a model's tensors where the device is. Those of `device` fail when that is not a card.
check_on_card() {
    step "tests on the emulated card"
    cd model
    LD_PRELOAD=$card/libcard.so LD_LIBRARY_PATH=$engine/lib:$stand_in
    export LD_PRELOAD LD_LIBRARY_PATH
    # Whole jobs of training would take an hour; `train::segment` has their forward and backward passes.
    "$engine/checks/empathd_model" --include-ignored device:: ops:: backbone:: train::segment:: infer::compute:: schedule:: >&2
    "$engine/checks/parity" >&2
    "$engine/checks/engine" >&2
    unset LD_PRELOAD LD_LIBRARY_PATH
    cd "$root"
}

build_benches() {
    step "benches"
    mkdir -p "$engine/checks"
    cargo build --release --target-dir "$target" -p empathd-benches --features empathd-model/cuda
    cp "$target/release/empathd-benches" "$engine/checks/"
}

install_toolkit
CUDA_HOME=$toolkit
NVCC=$toolkit/bin/nvcc
CUDARC_CUDA_VERSION=13000
CUDAFORGE_THREADS=${CUDAFORGE_THREADS:-$CARGO_BUILD_JOBS}
PATH=$toolkit/bin:$PATH
export CUDA_HOME NVCC CUDARC_CUDA_VERSION CUDAFORGE_THREADS PATH
if [ "$only_env" = yes ]; then
    echo "export CUDA_HOME='$CUDA_HOME' NVCC='$NVCC' CUDARC_CUDA_VERSION=$CUDARC_CUDA_VERSION"
    echo "export CUDA_COMPUTE_CAP=$CUDA_COMPUTE_CAP CUDAFORGE_THREADS=$CUDAFORGE_THREADS PATH='$toolkit/bin':\"\$PATH\""
    exit 0
fi
check_kernels
build_engine
check_engine
if [ "$checks" = yes ]; then
    build_checks
    build_card
    check_on_card
fi
[ "$benches" = no ] || build_benches
step "made"
du -sh "$engine"/*
