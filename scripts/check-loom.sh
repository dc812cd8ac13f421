#!/usr/bin/env bash
# Models of the team of threads and of what its members share (crates/kernels/src/models.rs): loom runs them in
# every order in which the threads may interleave. A build of its own, kept apart from the daily one.
#
#   scripts/check-loom.sh            all models
#   scripts/check-loom.sh barrier    those with `barrier` in their names
set -euo pipefail
cd "$(dirname "$0")/.."
export CARGO_TARGET_DIR="${CARGO_TARGET_DIR:-$HOME/.cache/mope/target}/loom"
export RUSTFLAGS="--cfg loom"
cargo test -p mope-kernels --release --locked --lib -- models "$@" --nocapture --test-threads=1
