#!/usr/bin/env bash
# Builds the wheel `mope-cli`, installs it into a fresh virtual environment and runs the program from there. Where
# qemu-x86_64 is installed (Debian: qemu-user), the same program also runs on an emulated processor that has AVX2 and
# no AVX-512: instructions are chosen when it starts, so both give the same text. Installs maturin from PyPI. Reuses
# what a release build left in the target folder. Not part of the gate.
#
#   scripts/check-wheel.sh [FOLDER]    FOLDER: keep the wheel there
set -euo pipefail
cd "$(dirname "$0")/.."
tools="${MOPE_TOOLS:-$HOME/.cache/mope/tools}"
work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT
wheels="${1:-$work/wheels}"
fail() { echo "check-wheel: $1" >&2; exit 1; }

if ! "$tools/wheel/bin/maturin" --version >/dev/null 2>&1; then
    python3 -m venv --clear "$tools/wheel"
    "$tools/wheel/bin/pip" install -q "maturin>=1.9,<2"
fi
started=$SECONDS
"$tools/wheel/bin/maturin" build --release --out "$wheels"
wheel="$(ls -t "$wheels"/mope_cli-*.whl | head -n 1)"
echo "$(basename "$wheel"): $(stat -c %s "$wheel" | awk '{ printf "%.1f MB", $1 / 1e6 }'), $((SECONDS - started)) s"

python3 -m venv "$work/venv"
"$work/venv/bin/pip" install -q --no-index "$wheel"
mope="$work/venv/bin/mope"
version="$(sed -n 's/^version = "\(.*\)"$/\1/p' Cargo.toml | head -n 1)"
"$mope" --version | grep -qF "mope $version" || fail "it says it is $("$mope" --version)"
"$mope" devices

model="crates/lm/tests/fixtures/pico/llama"
# speak DEVICE [COMMAND …]: what the program, started by the command, makes of the tiny model.
speak() {
    local device="$1"
    shift
    MOPE_CACHE="$work/cache" MOPE_THREADS=1 "$@" "$mope" --device "$device" generate --model "$model" \
        --prompt "Why is it so?" --max-new-tokens 12 --temperature 0
}
text="$(speak Cpu)"
[ -n "$text" ] || fail "it says nothing"
if command -v qemu-x86_64 >/dev/null && [ "$(uname -m)" = x86_64 ]; then
    for device in Cpu BurnFlex; do
        emulated="$(speak "$device" qemu-x86_64 -cpu Haswell)"
        [ "$emulated" = "$text" ] || fail "$device says '$emulated' on a Haswell, '$text' here"
    done
    echo "the same text with AVX2 alone"
else
    echo "not tried with AVX2 alone: qemu-x86_64 is not installed"
fi
echo "wheel: 1 passed, 0 failed"
