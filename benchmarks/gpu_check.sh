#!/usr/bin/env bash
# Everything that needs a GPU, from one command:
#
#     COGEN_FAST_TEST_DATA=DIR benchmarks/gpu_check.sh [--stage build-test|training|dense] [--out DIR]
#
# Builds with CUDA, offline, against the Python that is active; runs the test suite (data missing is
# a failure); writes gpu_check.json (device, versions, commit, figures) to --out, by default
# benchmarks/results.
set -euo pipefail
cd "$(dirname "$0")/.."

stage=build-test
out=benchmarks/results
while [ $# -gt 0 ]; do
    case $1 in
        --stage) stage=$2; shift 2 ;;
        --out) out=$2; shift 2 ;;
        *) echo "gpu_check: unknown argument $1" >&2; exit 2 ;;
    esac
done
mkdir -p "$out"

build_test() {
    COGEN_FAST_CUDA=ON python3 -m pip install --no-build-isolation --no-deps --quiet .
    python3 benchmarks/gpu_facts.py "$out/gpu_check.json"
    COGEN_FAST_REQUIRE_DATA=1 pytest -q --junitxml="$out/gpu_tests.xml"
    python3 benchmarks/gpu_facts.py "$out/gpu_check.json" --tests "$out/gpu_tests.xml"
}

training() {
    python3 benchmarks/training_speed.py --resolution 128 --channels 3 --latent-size 512 --batch 16 \
        --precisions float32 bfloat16 --device cuda > "$out/gpu_training.jsonl"
    python3 benchmarks/gpu_facts.py "$out/gpu_check.json" --figures "$out/gpu_training.jsonl"
}

dense() {
    python3 benchmarks/dense_speed.py --device cuda > "$out/gpu_dense.jsonl"
    python3 benchmarks/gpu_facts.py "$out/gpu_check.json" --figures "$out/gpu_dense.jsonl"
}

case $stage in
    build-test) build_test ;;
    training) training ;;
    dense) dense ;;
    *) echo "gpu_check: unknown stage $stage (build-test, training, dense)" >&2; exit 2 ;;
esac
