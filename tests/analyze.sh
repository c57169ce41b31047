#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Static analysis of src, kernels and include; exit code 1 on findings. Needs build-clang, for how each
# file is compiled and for the generated headers. What is asked for: .clang-tidy and, of cppcheck,
# tests/analysis/cppcheck.txt. Files can be given to look at them alone.
set -euo pipefail
cd "$(dirname "$0")/.."

build=build-clang
[ -f "$build/build.ninja" ] || CC=clang CXX=clang++ meson setup "$build" -Dtests=true -Dwerror=true >/dev/null
ninja -C "$build" --quiet src/proto/onnx.pb-c.h src/proto/record.pb-c.h

mapfile -t files < <(printf '%s\n' "$@")
[ $# -gt 0 ] || mapfile -t files < <(find src kernels -name '*.c' ! -name '*_neon.c' | sort)
failed=0
log=$(mktemp)
said=$(mktemp) # clang-tidy's stderr: how many warnings were left out, or why it could not run
trap 'rm -f "$log" "$said"' EXIT

# One file a process: clang-tidy 14 loses va_start in the second. error.c defines what failing.h puts macros over; kernels do not fail
tidy() { # tidy EXTRA... -- FILE...
  local extra=()
  while [ "$1" != -- ]; do extra+=("--extra-arg=$1"); shift; done
  shift
  [ $# -eq 0 ] || printf '%s\n' "$@" |
    xargs -P "$(nproc)" -n 1 clang-tidy -quiet -p "$build" "${extra[@]}" >>"$log" 2>>"$said" || failed=1
}
echo "clang-tidy: ${#files[@]} files"
mapfile -t others < <(printf '%s\n' "${files[@]}" | grep -Ev '^(kernels/|src/base/error.c$)' || true)
tidy -include "$PWD/tests/analysis/failing.h" -- "${others[@]}"
mapfile -t alone < <(printf '%s\n' "${files[@]}" | grep -E '^(kernels/|src/base/error.c$)' || true)
tidy -- "${alone[@]}"
cat "$log"
[ $failed -eq 0 ] || grep -v " warnings generated\.$" "$said" >&2 || true

# Of gcc's analyzer, what it is right about. Version 12 takes arrays and structs that `= {0}` fills for
# uninitialised, blocks behind their head for leaks, and follows what a status rules out.
echo "gcc -fanalyzer"
flags=(-std=c11 -O1 -D_GNU_SOURCE -DQF_VERSION='""' -DQF_BUILD_TARGET='""' -DQF_BUILD_TYPE='""' -I include -I src -I kernels -isystem "$build/src/proto"
       -fopenmp -mavx512f -mavx512bw -mavx512dq -mavx512vl -mf16c -c -o /dev/null -Werror -fanalyzer)
for check in use-of-uninitialized-value null-dereference null-argument possible-null-dereference \
  possible-null-argument malloc-leak; do
  flags+=("-Wno-analyzer-$check")
done
[ "$(uname -m)" = x86_64 ] || mapfile -t flags < <(printf '%s\n' "${flags[@]}" | grep -v '^-m')
printf '%s\n' "${files[@]}" | xargs -P "$(nproc)" -n 1 gcc "${flags[@]}" || failed=1

echo "cppcheck"
cppcheck -j "$(nproc)" --quiet --error-exitcode=1 --std=c11 --library=posix --inline-suppr \
  --enable=warning,performance,portability --suppressions-list=tests/analysis/cppcheck.txt \
  -I include -I src -I kernels -I "$build/src/proto" -D_GNU_SOURCE -D__x86_64__ \
  -DPROTOBUF_C_VERSION_NUMBER=1004001 -DPROTOBUF_C_MIN_COMPILER_VERSION=1000000 \
  --template='{file}:{line}: {severity}: {message} [{id}]' "${files[@]}" || failed=1
exit $failed
