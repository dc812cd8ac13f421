#!/usr/bin/env bash
# Licences, sources and wildcard versions of all dependencies, by the rules of deny.toml. Installs cargo-deny where it
# is missing, without optimisation: that shortens the build, and a check takes seconds either way.
set -euo pipefail
cd "$(dirname "$0")/.."
tools="${MOPE_TOOLS:-$HOME/.cache/mope/tools}"

deny="$(command -v cargo-deny || echo "$tools/bin/cargo-deny")"
if [ ! -x "$deny" ]; then
    if ! CARGO_TARGET_DIR="$tools/target" CARGO_PROFILE_DEV_DEBUG=0 \
        cargo install -q --debug --locked --no-default-features --root "$tools" cargo-deny; then
        echo "check-dependencies: cargo-deny is not installed and could not be. With a network, run this script again;" \
            "without one, put the program cargo-deny into $tools/bin or on the PATH." >&2
        exit 1
    fi
    rm -rf "$tools/target"
fi
"$deny" --locked check licenses bans sources
echo "dependencies: 1 passed, 0 failed"
