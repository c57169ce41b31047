#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# From a fresh clone to an exported model: installs what is missing, builds, and exports the trained
# digits network of datasets/digits into build/digits.
set -euo pipefail
cd "$(dirname "$0")/.."

tests/install-deps.sh
echo "building into build/"
log=$(mktemp)
trap 'rm -f "$log"' EXIT
{ [ -f build/build.ninja ] || meson setup build -Dtests=false; } >"$log" 2>&1 &&
  ninja -C build quantfold >>"$log" 2>&1 || { cat "$log"; exit 1; }
build/quantfold export --model datasets/digits/model.onnx --config datasets/digits/config.json \
  --record datasets/digits/record.txt --save-path build/digits/digits
