#!/bin/sh
# On a machine with an NVIDIA card: the tests of the engine, and the benches of inference and training, on the card, and
# beside it the same benches on the processor. Needs the driver and what `packaging/build-engine-cuda.sh --checks
# --benches` made in target/cuda/engine, here or on another machine of the same system; nothing is compiled.
# Writes card.txt, tests.txt and the figures (inference.json, train.json, inference-cpu.json) into DIR, target/cuda/figures
# when not said.
set -eu

usage() {
    echo "usage: packaging/check-cuda.sh [--model FILE.gguf] [--out DIR] [--engine DIR] [--no-cpu]"
    echo "  --model   the model of the inference bench; the cached reference model when absent"
    echo "  --engine  the folder that build-engine-cuda.sh made (target/cuda/engine)"
    echo "  --no-cpu  leave the processor's figures out"
}

root=$(CDPATH='' cd -- "$(dirname -- "$0")/.." && pwd)
out=$root/target/cuda/figures engine=$root/target/cuda/engine model='' cpu=yes
while [ $# -gt 0 ]; do
    case $1 in
        --model | --out | --engine)
            [ $# -gt 1 ] || { usage >&2; exit 2; }
            case $1 in --model) model=$(realpath "$2") ;; --out) out=$2 ;; --engine) engine=$(realpath "$2") ;; esac
            shift 2
            ;;
        --no-cpu) cpu=no; shift ;;
        -h | --help) usage; exit 0 ;;
        *) usage >&2; exit 2 ;;
    esac
done
mkdir -p "$out"
out=$(realpath "$out")

step() { printf '== %s\n' "$1"; }
fail() { printf 'error: %s\n' "$1" >&2; exit 1; }

# Each of the tests on the card has to say that it ran.
CARD_TESTS="there_is_a_card products_hold rows_alone_hold experts_hold attention_holds"

look_for_card() {
    command -v nvidia-smi >/dev/null || fail "there is no nvidia-smi: this machine has no driver of NVIDIA"
    nvidia-smi --query-gpu=name,driver_version,memory.total,compute_cap --format=csv,noheader >"$out/card.txt" ||
        fail "nvidia-smi finds no card"
    cat "$out/card.txt"
    [ -x "$engine/checks/empathd_model" ] || fail "$engine/checks is missing; run packaging/build-engine-cuda.sh --checks --benches"
}

run_tests() {
    step "tests"
    # From the folder in which cargo runs them.
    cd "$root/model"
    programs="empathd_model parity"
    if [ -x "$root/target/cuda/release/empathd-engine" ]; then
        programs="$programs engine"
    else
        step "SKIPPED: tests/engine.rs starts the program where it was built, which is not here"
    fi
    for program in $programs; do
        "$engine/checks/$program" --include-ignored >"$out/$program.txt" 2>&1 ||
            { cat "$out/$program.txt"; fail "a test fails on the card"; }
        grep '^test result' "$out/$program.txt"
    done
    cd "$root"
    for test in $CARD_TESTS; do
        grep -q "^test device::cuda_enabled::tests::$test \.\.\. ok" "$out/empathd_model.txt" ||
            fail "$test did not run: was the engine built with the feature cuda?"
    done
}

run_benches() {
    if ! [ -x "$engine/checks/empathd-benches" ]; then
        fail "the benches are missing; run packaging/build-engine-cuda.sh --checks --benches"
    fi
    bench=$engine/checks/empathd-benches
    set -- inference --without-perplexity
    [ -z "$model" ] || set -- "$@" --model "$model"
    step "inference on the card"
    "$bench" "$@" --json "$out/inference.json"
    step "training on the card"
    "$bench" train --steps 10 --json "$out/train.json"
    [ "$cpu" = yes ] || return 0
    step "inference on the processor"
    CUDA_VISIBLE_DEVICES='' "$bench" "$@" --json "$out/inference-cpu.json"
}

# As the daemon starts the engine.
CANDLE_NUM_THREADS=1
LD_LIBRARY_PATH=$engine/lib${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}
export CANDLE_NUM_THREADS LD_LIBRARY_PATH
look_for_card
run_tests
run_benches
step "figures in $out"
