#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# From a fresh clone to an exported model: installs what is missing, builds, and exports the trained
# digits network of datasets/digits into build/digits.
set -euo pipefail
cd "$(dirname "$0")/.."

tests/install-deps.sh
if [ ! -f build/build.ninja ]; then
  meson setup build -Dtests=false >build-setup.log 2>&1 || { cat build-setup.log; exit 1; }
  rm -f build-setup.log
fi
ninja -C build --quiet quantfold
build/quantfold export --model datasets/digits/model.onnx --config datasets/digits/config.json \
  --record datasets/digits/record.txt --save-path build/digits/digits
