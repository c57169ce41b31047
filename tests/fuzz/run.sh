#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Fuzzes: tests/fuzz/run.sh [SECONDS] [TARGET...]
# Each target runs SECONDS (60), one on each core, from tests/fuzz/corpus and what earlier runs kept in
# build-fuzz/corpus; then one table. Exit code 1 if anything was found: the inputs are in
# build-fuzz/findings, and count until they are mended. One that is understood goes to
# tests/fuzz/regressions/TARGET.
set -euo pipefail
cd "$(dirname "$0")/../.."

build=${QUANTFOLD_FUZZ_BUILD:-build-fuzz}
seconds=${1:-60}
shift || true
targets=("$@")
[ $# -gt 0 ] || targets=(export onnx qdq external record config safetensors checkpoint json
  commit)
cores=${QUANTFOLD_FUZZ_CORES:-$(nproc)}

[ -f "$build/build.ninja" ] ||
  CC=clang meson setup "$build" -Dfuzz=true -Dtests=true -Dwerror=true -Dbuildtype=debugoptimized \
    -Db_sanitize=address,undefined -Db_lundef=false >/dev/null
ninja -C "$build" --quiet $(printf 'tests/fuzz/fuzz_%s ' "${targets[@]}")

folder=$(mktemp -d "$([ -w /dev/shm ] && echo /dev/shm || echo /tmp)/quantfold-fuzz.XXXXXX")
export QUANTFOLD_FUZZ_FOLDER=$folder
export UBSAN_OPTIONS=halt_on_error=1:print_stacktrace=1
# short stacks and a small quarantine are faster; the replay of an input has all
export ASAN_OPTIONS=malloc_context_size=3:quarantine_size_mb=32
trap 'rm -rf "$folder"' EXIT

# An input that takes 25 seconds ($QUANTFOLD_FUZZ_TIMEOUT, for a machine with much else to do), asks for
# 1 GiB at once or makes the process larger than 2 GiB is a finding.
fuzz() { # fuzz TARGET
  local target=$1 corpus=$build/corpus/$1 found=$build/findings/$1 from=() place
  mkdir -p "$corpus" "$found" "$build/logs"
  for place in "tests/fuzz/corpus/$target" "tests/fuzz/regressions/$target" "$build/seeds/$target"; do
    [ -d "$place" ] && from+=("$place")
  done
  local start=$SECONDS dictionaries=(json)
  case $target in
    export) dictionaries=(onnx record json) ;;
    onnx | qdq | external) dictionaries=(onnx) ;;
    record) dictionaries=(record) ;;
  esac
  for place in "${dictionaries[@]}"; do cat "tests/fuzz/$place.dict"; done >"$folder/$target.dict"
  for place in "$found"/*; do # of earlier runs: what is mended is an input like any other
    [ ! -f "$place" ] || ! "$build/tests/fuzz/fuzz_$target" "$place" >/dev/null 2>&1 || mv "$place" "$corpus/"
  done
  : >"$build/logs/$target.failed"
  "$build/tests/fuzz/fuzz_$target" "-max_total_time=$seconds" \
    "-timeout=${QUANTFOLD_FUZZ_TIMEOUT:-25}" -rss_limit_mb=2048 -malloc_limit_mb=1024 \
    -max_len=16384 -print_final_stats=1 "-artifact_prefix=$found/" \
    "-dict=$folder/$target.dict" "$corpus" "${from[@]}" >"$build/logs/$target.log" 2>&1 ||
    echo "exit code $?" >"$build/logs/$target.failed"
  printf '%s\t%s\t%s\n' "$target" $((SECONDS - start)) "$(final "$target" number_of_executed_units)" \
    >>"$build/totals.tsv"
}

final() { # final TARGET NAME: of libFuzzer's statistics
  sed -n "s/^stat::$2: *//p" "$build/logs/$1.log" | tail -1 | grep . || echo 0
}

last() { # last TARGET NAME: the value behind NAME in the last line of progress
  grep -E "^#[0-9]+.* $2: " "$build/logs/$1.log" | tail -1 | sed -E "s#.* $2: ([^ /]+).*#\1#" | grep . || echo -
}

for target in "${targets[@]}"; do
  while [ "$(jobs -rp | wc -l)" -ge "$cores" ]; do wait -n || true; done
  fuzz "$target" &
done
wait

failed=0
printf '%-12s %10s %8s %8s %8s %8s %9s %10s %12s\n' \
  target runs exec/s corpus edges features findings seconds 'runs in all'
for target in "${targets[@]}"; do
  findings=$(find "$build/findings/$target" -type f | wc -l)
  [ "$findings" -eq 0 ] && [ ! -s "$build/logs/$target.failed" ] || failed=1
  read -r time runs < <(awk -v t="$target" '$1 == t { s += $2; n += $3 } END { print s + 0, n + 0 }' \
    "$build/totals.tsv")
  printf '%-12s %10s %8s %8s %8s %8s %9s %10s %12s\n' "$target" \
    "$(final "$target" number_of_executed_units)" "$(last "$target" exec/s)" "$(last "$target" corp)" \
    "$(last "$target" cov)" "$(last "$target" ft)" "$findings" "$time" "$runs"
done
for target in "${targets[@]}"; do
  [ -z "$(ls -A "$build/findings/$target")" ] && [ ! -s "$build/logs/$target.failed" ] || {
    printf '\n%s: %s\n' "$target" "$(cat "$build/logs/$target.failed")"
    find "$build/findings/$target" -type f
    grep -E 'ERROR:|does not hold|runtime error|SUMMARY' "$build/logs/$target.log" | head -5
  }
done
exit $failed
