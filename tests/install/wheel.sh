#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Builds the wheel, looks at what is in it, and runs example.py on it alone: in an environment without
# another package, outside the tree. Its exports must be those of the program in the build folder.
set -euo pipefail
build=$(cd "$1" && pwd)
here=$(cd "$(dirname "$0")" && pwd)
root=$(cd "$here/../.." && pwd)
data=$root/datasets/digits
pip=$root/build/venv/bin/pip
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
unset PYTHONPATH QUANTFOLD_LIBRARY

"$pip" wheel --quiet --disable-pip-version-check --no-deps --no-build-isolation \
  --config-settings=build-dir="$root/build/wheel" --wheel-dir "$work" "$root"
wheel=$(echo "$work"/*.whl)
case $wheel in
*-py3-none-linux_*.whl) ;;
*) echo "a wheel for any Python 3 on Linux was expected, not $wheel" >&2; exit 1 ;;
esac

# the package as it stands in the tree, the library, the program, and what describes them
{ cd "$root/python" && find quantfold -type f -not -path '*/__pycache__/*' &&
  printf '%s\n' METADATA RECORD WHEEL licenses/LICENSE quantfold quantfold/libquantfold.so; } |
  sort >"$work/wanted"
python3 -c 'import sys, zipfile; print(*zipfile.ZipFile(sys.argv[1]).namelist(), sep="\n")' "$wheel" |
  sed -E 's,^quantfold-[^/]*\.(dist-info|data/scripts|data/purelib)/,,' | sort >"$work/found"
diff "$work/wanted" "$work/found"

python3 -m venv --without-pip "$work/venv"
"$pip" --disable-pip-version-check --python "$work/venv/bin/python" install --quiet --no-index --no-deps "$wheel"
cd "$work"
venv/bin/python "$here/example.py" "$data" "$work/python/m"
for program in "$build/quantfold" venv/bin/quantfold; do
  "$program" export --model "$data/model.onnx" --config "$data/config.json" \
    --record "$data/record.txt" --save-path "$work/program/m" --quiet
  diff -r python program
done
