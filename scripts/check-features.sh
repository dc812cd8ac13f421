#!/usr/bin/env bash
# The libraries build without their features, and who only mixes needs no data frames, plots or network:
# mope-mixing without features depends on none of polars, plotters, ureq and tokio.
set -euo pipefail
cd "$(dirname "$0")/.."

# without PACKAGE CRATE …: the package without features needs none of the crates, nor others whose names begin so.
without() {
    local package="$1" tree
    shift
    tree="$(cargo tree -p "$package" --no-default-features -e normal --prefix none --locked)"
    # So that an empty answer does not pass.
    grep -q "^mope-kernels v" <<<"$tree" || { echo "cargo tree of $package knows no mope-kernels" >&2; exit 1; }
    for crate in "$@"; do
        if grep -E "^$crate[ -]" <<<"$tree" | sort -u >&2; then
            echo "$package without features depends on $crate" >&2
            exit 1
        fi
    done
}
without mope-mixing polars plotters ureq tokio clap
without mope-eval polars plotters ureq tokio clap
without mope-harness ureq clap

cargo check --workspace --release --lib --no-default-features --locked
# In the workspace the program brings all features of the libraries; here they are built without.
cargo check -p mope-mixing -p mope-eval --release --lib --no-default-features --locked
cargo check -p mope-training --release --lib --no-default-features --locked
echo "features: 3 passed, 0 failed"
