#!/usr/bin/env bash
# Trains every ablation with three seeds, evaluates them together and writes results.md. What is there already is
# not made again: killed, it goes on with the same command.
set -euo pipefail
cd "$(dirname "$0")/../.."

mope="${MOPE:-cargo run --release --}"
here=experiments/ablations
for name in rollouts rollouts_enumerated ppo \
    default enumerated response immediate to_go price_in_utility no_context statistics small mean \
    probabilities probabilities_statistics logs; do
    $mope train "$here/$name.ron" --set seed=1,2,3
done
$mope run "$here/evaluate.ron"
"${PYTHON:-python3}" "$here/table.py" runs/ablations "$here/results.md"
