#!/usr/bin/env bash
# Measures on a machine with a GPU, without a network, in at most 8 minutes; writes one JSON document. Made by
# scripts/gpu/pack.sh, beside which it lies.
#
#   run.sh OUT.json [DEVICE]    DEVICE: as `mope devices` lists it; default Wgpu(Discrete(0))
#
# What fails is in the document with its last words, and the rest goes on: `table.py OUT.json` shows it and compares
# the tiny models' numbers with the processor's. SHAPES, FORMATS and BUDGET (seconds) can be set.
set -uo pipefail
here="$(cd "$(dirname "$0")" && pwd)"
out="$(realpath "${1:?where the results go}")"
device="${2:-Wgpu(Discrete(0))}"
shapes="${SHAPES:-llama-3.2-1b llama-3.1-8b}"
formats="${FORMATS:-F32 Bf16}"
deadline=$((SECONDS + ${BUDGET:-460}))

work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT
if [ -f "$here/mope.xz" ]; then xz -dc "$here/mope.xz" >"$work/mope" && chmod +x "$work/mope"; else cp "$here/mope" "$work/mope"; fi
if ! ldconfig -p | grep -q libvulkan.so.1 && ls "$here"/libvulkan1_*.deb >/dev/null 2>&1; then
    dpkg -x "$(ls "$here"/libvulkan1_*.deb | head -n 1)" "$work/loader"
    LD_LIBRARY_PATH="$(dirname "$(find "$work/loader" -name 'libvulkan.so.1' | head -n 1)"):${LD_LIBRARY_PATH:-}"
    export LD_LIBRARY_PATH
fi
export MOPE_CACHE="$work/cache" HF_HUB_OFFLINE=1 XDG_RUNTIME_DIR="${XDG_RUNTIME_DIR:-/tmp}"
cd "$work"

# measure NAME SECONDS ARGUMENTS…: a member of the document: what the program printed, or its last words.
first=1
measure() {
    local name="$1" limit="$2" began code left
    shift 2
    left=$((deadline - SECONDS))
    [ "$limit" -le "$left" ] || limit="$left"
    began="$SECONDS"
    if [ "$limit" -lt 3 ]; then
        code=124
        : >stdout
        echo "no time was left" >stderr
    else
        timeout "$limit" "$work/mope" --json "$@" >stdout 2>stderr
        code=$?
    fi
    [ "$first" = 1 ] || printf ',\n' >>"$out"
    first=0
    printf '"%s": {"code": %s, "seconds": %s, ' "$name" "$code" "$((SECONDS - began))" >>"$out"
    if [ "$code" = 0 ] && [ -s stdout ]; then
        printf '"result": %s}' "$(cat stdout)" >>"$out"
    else
        printf '"said": "%s"}' "$(tail -n 3 stderr | tr -d '\000-\037"\\' | cut -c1-500)" >>"$out"
    fi
    echo "$name: code $code" >&2
}

processor="$(grep -m1 'model name' /proc/cpuinfo | cut -d: -f2- | sed 's/^ *//' | tr -d '"\\')"
card="$(nvidia-smi --query-gpu=name,driver_version --format=csv,noheader 2>/dev/null | head -n 1 | tr -d '"\\')"
printf '{"device": "%s", "processor": "%s", "card": "%s", "date": "%s",\n' \
    "$device" "$processor" "$card" "$(date -u +%F)" >"$out"

measure devices 30 devices
for model in llama qwen3; do
    for where in Cpu "$device"; do
        measure "parity $model $where" 40 --device "$where" score --model "$here/pico/$model" --raw \
            --prompt "Why is it so?" --response " Because it is."
    done
done
for where in Cpu "$device"; do
    measure "parity adapter $where" 40 --device "$where" score --model "$here/pico/llama" \
        --adapter "$here/pico/adapter_plain" --raw --prompt "Why is it so?" --response " Because it is."
    printf '{"prompt": "Why?", "response": "So."}\n{"prompt": "And?", "response": "Well."}\n' >data.jsonl
    printf '(name: "tiny", model: "%s", device: %s, recipe: Sft(data: "data.jsonl", settings: (epochs: 15)))' \
        "$here/pico/llama" "$where" >tiny.ron
    rm -rf trained
    measure "training $where" 60 train tiny.ron --out trained
done
for shape in $shapes; do
    for format in $formats; do
        measure "decode $shape $format" 110 --device "$device" --format "$format" bench decode --shape "$shape" \
            --experts 3 --sequences 1,16,64 --prompt-tokens 128 --new-tokens 32 --repeat 1
    done
done
first_shape="${shapes%% *}"
measure "train $first_shape" 90 --device "$device" --format Bf16 bench train --shape "$first_shape" --sequences 4 \
    --prompt-tokens 128 --new-tokens 64 --repeat 1
measure "records $first_shape" 60 --device "$device" bench records --shape "$first_shape" --experts 3 \
    --sequences 16 --prompt-tokens 64 --new-tokens 32 --repeat 1
printf '\n}\n' >>"$out"
