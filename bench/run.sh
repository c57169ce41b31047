#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# All benchmarks: kernels, whole exports against a plain copier, peers; then the chart and the page.
#
#   bench/run.sh [--quick] [--keep] [--cold] [--sets main,linear,...]
#
# A full run wants a quiet machine, two or three hours, 24 GiB of memory and 30 GB of disk; its JSON
# goes to bench/results, its page to docs/benchmarks.md. --quick is a smoke run of small models and
# few rounds that leaves everything in BUILD-results. --keep leaves models and outputs in $WORK.
#
# Environment: BUILD (build folder), WORK (scratch data, default: $BUILD/bench-data), PYTHON (default:
# the tests' environment), TORCH_PYTHON (a Python with torch), LLAMA_QUANTIZE (llama.cpp's quantizer),
# ROUNDS (default 5), KERNEL_ARGS (of the kernel benchmark).
set -euo pipefail
cd "$(dirname "$0")/.."

build=${BUILD:-build}
work=${WORK:-$build/bench-data}
quick=() cold=() keep= sets=all
while [ $# -gt 0 ]; do
  case $1 in
    --quick) quick=(--quick) ;;
    --keep) keep=1 ;;
    --cold) cold=(--cold) ;;
    --sets) sets=${2:?--sets wants names}; shift ;;
    *) sed -n '3,14s/^# \{0,1\}//p' "$0" >&2; exit 2 ;;
  esac
  shift
done
results=bench/results page=docs/benchmarks.md
kernel_args=(--benchmark_repetitions=5 --benchmark_enable_random_interleaving=true)
rounds=(--rounds "${ROUNDS:-5}")
if [ ${#quick[@]} -gt 0 ]; then
  results=$build-results page=$build-results/benchmarks.md
  kernel_args=(--benchmark_min_time=0.01)
  rounds=(--rounds "${ROUNDS:-1}")
fi
[ -z "${KERNEL_ARGS:-}" ] || read -ra kernel_args <<<"$KERNEL_ARGS"

step() { printf '\n== %s ==\n' "$*"; }

if [ -z "${PYTHON:-}" ]; then
  tests/install-deps.sh tests
  PYTHON=build/venv/bin/python
fi

step "build"
reconfigure=()
[ ! -f "$build/build.ninja" ] || reconfigure=(--reconfigure)
log=$(mktemp)
trap 'rm -f "$log"' EXIT
{ meson setup "${reconfigure[@]}" "$build" -Dbench=true -Dbuildtype=release &&
  ninja -C "$build"; } >"$log" 2>&1 || { cat "$log"; exit 1; }

mkdir -p "$work" "$results"
cleanup() {
  rm -f "$log"
  [ -n "$keep" ] || rm -rf "$work"
}
trap cleanup EXIT
common=(--build "$build" --work "$work" "${quick[@]}" "${rounds[@]}")
[ -z "$keep" ] || common+=(--keep)
failed=0

step "kernels"
"$build/bench/bench_kernels" "${kernel_args[@]}" --benchmark_out_format=json \
  --benchmark_out="$results/kernels.json" >"$log" 2>&1 || { cat "$log"; failed=1; }
"$PYTHON" bench/kernel_tables.py "$results/kernels.json"

step "exports"
"$PYTHON" bench/export_bench.py "${common[@]}" "${cold[@]}" --sets "$sets" \
  --to "$results/exports.json" || failed=1

step "peers"
"$PYTHON" bench/peers.py "${common[@]}" --torch-python "${TORCH_PYTHON:-}" \
  --llama-quantize "${LLAMA_QUANTIZE:-}" --to "$results/peers.json" || failed=1

step "chart and page"
"$PYTHON" bench/chart.py --results "$results" --to "$(dirname "$page")/benchmarks.svg"
"$PYTHON" bench/report.py --results "$results" --to "$page" "${quick[@]}"
echo "$page"
exit "$failed"
