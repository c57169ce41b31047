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
trap 'rm -f "$log"' EXIT

# error.c defines what failing.h puts a macro over
tidy() { # tidy EXTRA... -- FILE...
  local extra=()
  while [ "$1" != -- ]; do extra+=("--extra-arg=$1"); shift; done
  shift
  [ $# -eq 0 ] || printf '%s\n' "$@" |
    xargs -P "$(nproc)" -n 4 clang-tidy -quiet -p "$build" "${extra[@]}" >>"$log" 2>/dev/null || failed=1
}
echo "clang-tidy: ${#files[@]} files"
mapfile -t others < <(printf '%s\n' "${files[@]}" | grep -v '^src/base/error.c$' || true)
tidy -include "$PWD/tests/analysis/failing.h" -- "${others[@]}"
mapfile -t alone < <(printf '%s\n' "${files[@]}" | grep '^src/base/error.c$' || true)
tidy -- "${alone[@]}"
cat "$log"

echo "cppcheck"
cppcheck -j "$(nproc)" --quiet --error-exitcode=1 --std=c11 --library=posix --inline-suppr \
  --enable=warning,performance,portability --suppressions-list=tests/analysis/cppcheck.txt \
  -I include -I src -I kernels -I "$build/src/proto" -D_GNU_SOURCE -D__x86_64__ \
  -DPROTOBUF_C_VERSION_NUMBER=1004001 -DPROTOBUF_C_MIN_COMPILER_VERSION=1000000 \
  --template='{file}:{line}: {severity}: {message} [{id}]' "${files[@]}" || failed=1
exit $failed
