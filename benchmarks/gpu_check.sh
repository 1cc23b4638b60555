#!/usr/bin/env bash
# Everything that needs a GPU, from one command:
#
#     COGEN_FAST_TEST_DATA=DIR benchmarks/gpu_check.sh [--stage STAGE] [--out DIR] [--from DIR]
#
# Stages: build-test (default; the test suite, where missing data are a failure), sanitize (the
# kernels alone under compute-sanitizer), bench (progressive GANs), training, dense.
# Each builds a wheel of the package with CUDA first, offline, and installs it into the Python that is
# active, unless that is done already for these sources. A call ends within nine minutes; the same
# call again goes on where it stopped, by the logs and the wheel in --out (benchmarks/results), until
# it says that nothing is left. Where each call gets a bare machine with an empty --out, --from names
# a copy of what the last call left in its own. What a stage gave is its entry in gpu_check.json there: device, versions, commit, figures. Logs of
# other sources or devices are left alone and not taken. COGEN_FAST_COMMIT names the commit where
# there is no repository.
set -euo pipefail

root=$(realpath "$(dirname "$0")/..")
stage=build-test
out=$root/benchmarks/results
from=
while [ $# -gt 1 ]; do
    case $1 in
        --stage) stage=$2 ;;
        --out) out=$(realpath -m "$2") ;;
        --from) from=$(realpath -m "$2") ;;
        *) break ;;
    esac
    shift 2
done
if [ $# -gt 0 ]; then
    echo "gpu_check: expected --stage STAGE, --out DIR or --from DIR, got $*" >&2
    exit 2
fi
if [ -n "${COGEN_FAST_TEST_DATA:-}" ]; then
    export COGEN_FAST_TEST_DATA=$(realpath "$COGEN_FAST_TEST_DATA")
fi
cd "$root"
mkdir -p "$out"
if [ -d "$from" ]; then
    cp -R "$from/." "$out"
    chmod -R u+w "$out"
fi

# Seconds since this began, from which on nothing new is begun, and what runs is stopped.
begin=420
limit=510

left() { echo $((${1} > SECONDS ? ${1} - SECONDS : 0)); }

capability() { nvidia-smi --query-gpu=compute_cap --format=csv,noheader | head -1 | tr -d .; }

installed() { (cd benchmarks && python3 -c 'import cogen_fast' 2>/dev/null); }

build() {
    local stamp=build/gpu/installed sources name
    sources=$(python3 benchmarks/machine.py)
    name=wheel-$sources-$(capability)
    if [ ! -d "$out/$name" ]; then
        rm -rf "$out"/wheel-*
        # For this machine's GPU alone, which takes half the time.
        CUDAARCHS=${CUDAARCHS:-$(capability)} COGEN_FAST_CUDA=ON python3 -m pip wheel --quiet \
            --no-build-isolation --no-deps -C build-dir=build/gpu -w "$out/wheel-part" .
        mv "$out/wheel-part" "$out/$name"
    fi
    if [ "$(cat "$stamp" 2>/dev/null)" != "$name" ] || ! installed; then
        python3 -m pip install --quiet --no-deps --force-reinstall "$out/$name"/*.whl
        mkdir -p "${stamp%/*}"
        echo "$name" > "$stamp"
    fi
}

# What the log holds, into the JSON: LOG [SOURCES that its lines depend on beside the package].
keep() { python3 benchmarks/gpu_facts.py "$out/gpu_check.json" "$stage" "$@"; }

# A command that goes on by its log, within what time is left: LOG SOURCES COMMAND.
resumed() {
    local status=0
    "${@:3}" --out "$1" --seconds "$(left $begin)" || status=$?
    keep "$1" "$2"
    return $status
}

tests() { # LOG [ARGUMENTS]
    resumed "$1" tests python3 benchmarks/gpu_tests.py --limit "$(left $limit)" "${@:2}"
}

bench() {
    resumed "$out/progressive_gpu.jsonl" benchmarks/progressive_gpu.py \
        timeout -k 10 "$(left $limit)" python3 benchmarks/progressive_gpu.py
}

# A short benchmark, whole or not at all: LOG COMMAND.
short() {
    "${@:2}" > "$1.part"
    mv "$1.part" "$1"
    keep "$1"
}

case $stage in
    build-test) build; tests "$out/gpu_tests.jsonl" ;;
    sanitize) build; tests "$out/gpu_sanitizers.jsonl" --sanitizers ;;
    bench) build; bench ;;
    training)
        build
        short "$out/gpu_training.jsonl" python3 benchmarks/training_speed.py --resolution 128 \
            --channels 3 --latent-size 512 --batch 16 --precisions float32 bfloat16 --device cuda
        ;;
    dense) build; short "$out/gpu_dense.jsonl" python3 benchmarks/dense_speed.py --device cuda ;;
    *)
        echo "gpu_check: unknown stage $stage (build-test, sanitize, bench, training, dense)" >&2
        exit 2
        ;;
esac
