#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# All tests, as CI runs them: both compilers with warnings as errors, static analysis, unit tests and
# Python tests of the release build, then both again under AddressSanitizer and UBSan, with the lines
# counted that they run, a minute of fuzzing for each target, and at last, on x86-64, what an aarch64
# build does under emulation.
set -euo pipefail
cd "$(dirname "$0")/.."

tests/install-deps.sh tests
step() { printf '\n== %s (%d s so far) ==\n' "$*" "$SECONDS"; }

configure() { # configure FOLDER OPTION...
  local folder=$1
  shift
  local reconfigure=()
  [ -f "$folder/build.ninja" ] && reconfigure=(--reconfigure)
  meson setup "${reconfigure[@]}" "$folder" -Dwerror=true -Dtests=true "$@" >"$folder.log" 2>&1 ||
    { cat "$folder.log"; exit 1; }
  rm -f "$folder.log"
}

python=build/venv/bin/python
pytest() { "$python" -m pytest -q -p no:cacheprovider "$@"; }
all_cores=(-n "$(nproc)")
export QUANTFOLD_GOLDEN=${QUANTFOLD_GOLDEN:-$PWD/../shared/golden}

step "build with gcc, with benchmarks"
configure build -Dbench=true
ninja -C build --quiet

step "build with clang, with MPI"
CC=clang CXX=clang++ configure build-clang -Dbench=false -Dmpi=enabled
ninja -C build-clang --quiet

step "build with AddressSanitizer, UBSan and coverage"
configure build-asan -Dbuildtype=debugoptimized -Db_sanitize=address,undefined -Db_lundef=false \
  -Db_coverage=true -Dc_args=-fprofile-update=prefer-atomic
ninja -C build-asan --quiet
find build-asan -name '*.gcda' -delete # of earlier runs

step "formatting"
find src kernels include tests bench -name '*.[ch]' -o -name '*.cc' | xargs clang-format --dry-run -Werror
"$python" -m black --quiet --check --line-length 100 python tests datasets bench

step "types of the Python package"
"$python" -m mypy --strict python/quantfold

step "static analysis"
tests/analyze.sh

step "unit tests: gcc, clang, sanitizers"
export UBSAN_OPTIONS=halt_on_error=1:print_stacktrace=1 ASAN_OPTIONS=detect_leaks=1
for folder in build build-clang build-asan; do
  meson test -C "$folder" --quiet --print-errorlogs
done

step "a program that uses the installed library alone"
tests/install/run.sh build

step "golden, conformance, fault and Python tests: release build"
# what is wrong with inputs, and what verify says of it, is tried under the sanitizers alone
wrong_inputs=(tests/fault/test_bad_{input,layers,batch,checkpoint}.py tests/fault/test_verify_{forms,kinds}.py)
pytest "${all_cores[@]}" tests --ignore tests/large --ignore tests/hpc "${wrong_inputs[@]/#/--ignore=}"

step "ranks of MPI (the rest of tests/hpc has a suite of its own)"
hpc=tests/hpc/test_hpc.py
QUANTFOLD_BIN=build-clang/quantfold pytest "$hpc::test_ranks" "$hpc::test_killed_rank[3]" \
  "$hpc::test_ranks_of_a_checkpoint" "$hpc::test_killed_rank_of_a_checkpoint[4]"

step "golden, conformance and fault tests: sanitizers"
# the Python package loads the library, which a sanitizer does not allow; the browser sees the same
# page, and what takes long in these models is ONNX Runtime
QUANTFOLD_BIN=build-asan/quantfold pytest "${all_cores[@]}" tests --ignore tests/large \
  --ignore tests/hpc --ignore tests/python --ignore tests/report/test_browser.py \
  --ignore tests/conformance/test_runnable_real.py --ignore tests/conformance/test_qdq_real.py

step "coverage of those two (tests/coverage.sh: of all tests)"
tests/analysis/coverage.sh build-asan

step "fuzzing: a minute for each target"
tests/fuzz/run.sh 60

[ "$(uname -m)" = x86_64 ] || exit 0 # aarch64 itself has had its tests above

step "build for aarch64"
configure build-aarch64 \
  --cross-file build/aarch64-sysroot/meson.txt --cross-file tests/cross/aarch64.txt
ninja -C build-aarch64 --quiet

step "unit tests: aarch64 under emulation"
export OMP_NUM_THREADS=2
meson test -C build-aarch64 --quiet --print-errorlogs

step "golden and synthetic exports: aarch64 under emulation, each byte for byte as x86-64 writes it"
emulated=build-aarch64/quantfold-emulated
printf '#!/bin/sh\nexec qemu-aarch64 -L "%s" "%s" "$@"\n' \
  "$PWD/build/aarch64-sysroot" "$PWD/build-aarch64/quantfold" >"$emulated"
chmod +x "$emulated"
QUANTFOLD_BIN=$emulated QUANTFOLD_BIN_OTHER=build/quantfold \
  pytest "${all_cores[@]}" tests/golden tests/conformance/test_synthetic.py \
  -k "not threads_and_repetition and not our_output_is_sound"
