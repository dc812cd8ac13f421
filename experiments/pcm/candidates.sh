#!/usr/bin/env bash
# Fits of the rollouts of seed 1 with other settings, compared on prompts for choosing settings. Prints which share of
# held-out pairs each explains; utility and divergence are in the run's tables.
set -euo pipefail
cd "$(dirname "$0")/../.."

mope="${MOPE:-cargo run --release --}"
fit() {
    local name="$1"
    shift
    $mope train experiments/pcm/gates.ron --out "runs/train/$name" "$@"
}
fit fit_shipped
fit fit_no_statistics --set recipe.Pcm.input.statistics=false
fit fit_no_context --set recipe.Pcm.input.context=false --set recipe.Pcm.input.preference=Weights \
    --set recipe.Pcm.input.statistics=false
$mope run experiments/pcm/validate.ron
