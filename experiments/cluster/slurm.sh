#!/bin/bash
# Runs an experiment in four parts on a Slurm cluster, from the root of a checkout that every node sees:
#   sbatch experiments/cluster/slurm.sh EXPERIMENT.ron /shared/runs/mine
#SBATCH --job-name=mope
#SBATCH --array=1-4
#SBATCH --cpus-per-task=2
#SBATCH --requeue
set -euo pipefail
export MOPE="${MOPE:-target/release/mope}"
exec bash experiments/cluster/part.sh "$1" "$2" "${SLURM_ARRAY_TASK_COUNT:-4}"
