#!/usr/bin/env bash
# Runs the tests of `crates/kernels` for aarch64 under emulation. Needs the target (`rustup target add
# aarch64-unknown-linux-gnu`), a cross compiler and QEMU (Debian: gcc-aarch64-linux-gnu, libc6-dev-arm64-cross,
# qemu-user). QEMU says what the kernels compute, and nothing about their speed.
set -euo pipefail
cd "$(dirname "$0")/.."

export CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_LINKER=aarch64-linux-gnu-gcc
# A processor with 8-bit dot products, and one that is left with plain Rust.
for cpu in neoverse-n1 cortex-a72; do
  export CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_RUNNER="qemu-aarch64 -L /usr/aarch64-linux-gnu -cpu $cpu"
  cargo test --release -p mope-kernels --target aarch64-unknown-linux-gnu "$@"
done
