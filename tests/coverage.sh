#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Coverage of src and kernels by the tests: lines and branches of each room and in all, and the files of
# which less than 80 % is run. Exit code 1 below 90 % of lines. The unit tests run under each
# instruction set that the machine has, the Python tests once, or not at all with --unit.
# build-cov/coverage.html shows each line.
set -euo pipefail
cd "$(dirname "$0")/.."

build=build-cov
python=build/venv/bin/python
export QUANTFOLD_GOLDEN=${QUANTFOLD_GOLDEN:-$PWD/../shared/golden}

[ -f "$build/build.ninja" ] ||
  meson setup "$build" -Db_coverage=true -Dbuildtype=debug -Doptimization=1 -Dtests=true \
    -Dc_args=-fprofile-update=prefer-atomic >/dev/null
ninja -C "$build" --quiet
find "$build" -name '*.gcda' -delete

failed=0 # what a failing test has run counts all the same
isas=(scalar)
grep -qw avx2 /proc/cpuinfo && isas+=(avx2)
grep -qw avx512bw /proc/cpuinfo && isas+=(avx512)
for isa in "${isas[@]}"; do
  QUANTFOLD_ISA=$isa meson test -C "$build" --no-rebuild --quiet --print-errorlogs || failed=1
done
if [ "${1:-}" != --unit ]; then
  QUANTFOLD_BIN=$build/quantfold QUANTFOLD_LIBRARY=$PWD/$build/src/libquantfold.so \
    "$python" -m pytest tests --ignore tests/large --ignore tests/hpc --ignore tests/python/test_wheel.py \
    -q -p no:cacheprovider -n "$(nproc)" || failed=1
fi

tests/analysis/coverage.sh "$build" || failed=1
exit $failed
