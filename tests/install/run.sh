#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Installs a build into an empty folder and compiles example.c against what is there, the way a user
# of the library would: pkg-config for the shared library, and the archive for a static one.
set -euo pipefail
build=$(cd "$1" && pwd)
here=$(cd "$(dirname "$0")" && pwd)
data=$(cd "$here/../../datasets/digits" && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

DESTDIR=$work/root meson install -C "$build" --quiet --no-rebuild
prefix=$work/root/usr/local
PKG_CONFIG_PATH=$(dirname "$(find "$prefix" -name quantfold.pc)")
export PKG_CONFIG_PATH PKG_CONFIG_SYSROOT_DIR=$work/root
lib=$(dirname "$PKG_CONFIG_PATH")

strict=(-std=c11 -Wall -Wextra -Wpedantic -Wstrict-prototypes -Werror)
read -ra flags <<<"$(pkg-config --cflags --libs quantfold)"
cc "${strict[@]}" "$here/example.c" -o "$work/shared" "${flags[@]}"
read -ra flags <<<"$(pkg-config --cflags quantfold)"
cc "${strict[@]}" "$here/example.c" -o "$work/static" "${flags[@]}" "$lib/libquantfold.a" \
  -lprotobuf-c -lcjson -lxxhash -fopenmp -lm
echo '#include <quantfold/quantfold.h>' | c++ -std=c++17 -Wall -Werror -fsyntax-only "${flags[@]}" -x c++ -

for program in shared static; do
  LD_LIBRARY_PATH=$lib "$work/$program" "$data" "$work/out-$program/m"
done
cmp "$work/out-shared/m_deploy_model.onnx" "$work/out-static/m_deploy_model.onnx"

# nothing but the API is exported
if nm -D --defined-only "$lib/libquantfold.so" | awk '$2 ~ /[A-Z]/ {print $3}' | grep -v '^qf_'; then
  echo "symbols outside the API are exported" >&2
  exit 1
fi
"$prefix/bin/quantfold" --version

# what belongs to the program is where shells and man look for it
for file in man/man1/quantfold.1 man/man1/quantfold-export.1 bash-completion/completions/quantfold \
  zsh/site-functions/_quantfold; do
  [ -s "$prefix/share/$file" ] || { echo "share/$file is not installed" >&2; exit 1; }
done
