#!/usr/bin/env bash
# Packs what scripts/gpu/run.sh needs on a machine with a GPU and without a network: the program with WebGPU, stripped
# and compressed, the tiny models, and the Vulkan loader. At most 20 MB.
#
#   scripts/gpu/pack.sh [FOLDER]    default: gpu-pack
#
# Builds with feature `wgpu` (minutes), or takes the program that MOPE_PROGRAM names. MOPE_LOADER names the loader's
# package (libvulkan1_*.deb) where apt cannot download it.
set -euo pipefail
cd "$(dirname "$0")/../.."
out="${1:-gpu-pack}"
target="${CARGO_TARGET_DIR:-target}"

program="${MOPE_PROGRAM:-}"
if [ -z "$program" ]; then
    cargo build --release --locked --features wgpu
    program="$target/release/mope"
fi
mkdir -p "$out"
strip -o "$out/mope" "$program"
xz -T0 -9 --force "$out/mope"
if [ -n "${MOPE_LOADER:-}" ]; then
    cp "$MOPE_LOADER" "$out/"
elif ! ls "$out"/libvulkan1_*.deb >/dev/null 2>&1; then
    (cd "$out" && apt-get download -q libvulkan1)
fi
rm -rf "$out/pico"
mkdir "$out/pico"
for model in llama qwen3 adapter_plain; do
    cp -r "crates/lm/tests/fixtures/pico/$model" "$out/pico/"
done
cp scripts/gpu/run.sh scripts/gpu/table.py "$out/"
bytes="$(du -sb "$out" | cut -f1)"
echo "$out: $((bytes / 1000)) kB"
[ "$bytes" -le 20000000 ] || { echo "over 20 MB" >&2; exit 1; }
