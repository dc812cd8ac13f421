#!/usr/bin/env bash
# Checks that `lm` compiles with feature `cuda`. Building the feature needs more than package registries: cubecl-cuda
# 0.11.3 fetches an LLVM bundle while it builds, which DOCS_RS=1 keeps it from. So this checks types and links nothing;
# .github/workflows/extra.yml builds it. A minute once the other dependencies are built. Not part of the gate.
set -euo pipefail
cd "$(dirname "$0")/.."
DOCS_RS=1 cargo check -p mope-lm --lib --release --locked --features cuda
echo "cuda: compiles"
