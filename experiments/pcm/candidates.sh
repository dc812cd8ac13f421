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
here=recipe.Pcm
fit fit_shipped
fit fit_slow --set $here.settings.fit.optimisation.learning_rate=1e-4 --set $here.settings.fit.epochs=4
fit fit_no_context --set $here.input.context=false --set $here.input.preference=Weights --set $here.input.statistics=false
$mope run experiments/pcm/validate.ron
