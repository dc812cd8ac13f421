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
here=recipe.Pcm.settings.fit
fit fit_response --set "$here.credit=Response"
fit fit_segments
fit fit_no_context --set recipe.Pcm.input.context=false --set recipe.Pcm.input.preference=Weights
$mope run experiments/pcm/validate.ron
