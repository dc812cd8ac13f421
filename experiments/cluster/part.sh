#!/usr/bin/env bash
# part.sh EXPERIMENT.ron RUN_FOLDER PARTS: makes one part of a run; the part that is done last scores and reports.
# Which part it is, an array of Slurm says (SLURM_ARRAY_TASK_ID, from 1) or an indexed job of Kubernetes
# (JOB_COMPLETION_INDEX, from 0). A part that was cut off goes on where it stopped when it is started again.
set -euo pipefail
experiment="$1" out="$2" parts="$3"
part="${SLURM_ARRAY_TASK_ID:-$((${JOB_COMPLETION_INDEX:?neither Slurm nor Kubernetes says which part this is} + 1))}"
mope="${MOPE:-mope}"

"$mope" run "$experiment" --out "$out" --shard "$part/$parts"

# Marks of this job, so that those of an earlier one don't count.
marks="$out/parts/${SLURM_ARRAY_JOB_ID:-${JOB_UID:-job}}"
mkdir -p "$marks"
touch "$marks/$part"
[ "$(find "$marks" -name '[0-9]*' | wc -l)" -eq "$parts" ] || exit 0
# Two may come last at the same time: one of them takes it, and takes it again should it die on the way.
(set -o noclobber && echo "$part" >"$marks/last") 2>/dev/null || true
[ "$(cat "$marks/last")" = "$part" ] || exit 0
exec "$mope" run "$experiment" --out "$out"
