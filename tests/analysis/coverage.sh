#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# The table of what tests have run of a build with -Db_coverage=true: tests/analysis/coverage.sh BUILD.
# Exit code 1 below 90 % of lines. BUILD/coverage.html shows each line. Sanitizers add branches of
# their own, which only errors take.
set -euo pipefail
cd "$(dirname "$0")/../.."

build=$1
python=build/venv/bin/python
# NEON runs on another machine, or under emulation: tests/run.sh
"$python" -m gcovr --root . --object-directory "$build" --filter src/ --filter kernels/ \
  --exclude '.*_neon\.[ch]' --gcov-ignore-parse-errors=negative_hits.warn -j "$(nproc)" \
  --json-summary "$build/coverage.json" --html-details "$build/coverage.html" "$build" >/dev/null
"$python" tests/analysis/coverage.py "$build/coverage.json" 90
