#!/usr/bin/env bash
# Everything that needs a GPU, from one command:
#
#     COGEN_FAST_TEST_DATA=DIR benchmarks/gpu_check.sh [--stage STAGE] [--out DIR]
#
# Stages: build-test (default), training, dense, bench (progressive GANs: some minutes a call, which
# goes on where the last one stopped, until nothing is left) and sanitize (the CUDA kernels of the
# extension under compute-sanitizer).
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

bench() {
    python3 benchmarks/progressive_gpu.py --out "$out/progressive_gpu.jsonl"
    python3 benchmarks/gpu_facts.py "$out/gpu_check.json" --figures "$out/progressive_gpu.jsonl"
}

# Small runs only, under memory of exactly the tensors' sizes: each is many times slower than usual.
sanitize() {
    local small="one_launch_equals and 2-20-20-2 and 100-published"
    small="($small) or (adaptive_run_in_one_launch_begins and low and 16 and 7)"
    for tool in memcheck racecheck synccheck; do
        PYTORCH_NO_CUDA_MEMORY_CACHING=1 compute-sanitizer --tool "$tool" --error-exitcode 9 \
            python3 -m pytest -q tests/test_cuda.py -k "$small"
    done
}

case $stage in
    build-test) build_test ;;
    training) training ;;
    dense) dense ;;
    bench) bench ;;
    sanitize) sanitize ;;
    *)
        echo "gpu_check: unknown stage $stage (build-test, training, dense, bench, sanitize)" >&2
        exit 2
        ;;
esac
