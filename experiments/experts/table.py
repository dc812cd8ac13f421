"""The tables of README.md from the rows of a run (pandas; scripts/recompute/requirements.txt).

    python experiments/experts/table.py runs/experts_evaluate            # shifts, KL, repetition
    python experiments/experts/table.py runs/experts_endings --endings   # who ends, and when
"""

import json
import sys
from pathlib import Path

import numpy as np
import pandas as pd

DRAWS = 10_000


def interval(values):
    """Mean and bootstrap 95 % interval over prompts."""
    values = np.asarray(values, dtype=float)
    draws = np.random.default_rng(0).integers(0, len(values), (DRAWS, len(values)))
    low, high = np.percentile(values[draws].mean(1), [2.5, 97.5])
    return values.mean(), low, high


def shift(rows, strategy, dimension):
    """Paired differences from the base, in standard deviations of the base's scores."""
    wide = rows.pivot_table(index="prompt", columns="strategy", values=f"raw_{dimension}")
    return interval((wide[strategy] - wide["base"]) / wide["base"].std())


def written(numbers):
    return "{:+.2f} | {:+.2f} to {:+.2f}".format(*numbers)


def shifts(rows, dimensions):
    base = rows[rows.strategy == "base"]
    for strategy, own in rows.groupby("strategy", sort=False):
        kl = own.kl.sum() / own.tokens.sum() if "kl" in own else float("nan")
        repeated = 100 * (own.repetition.mean() - base.repetition.mean())
        cells = [
            strategy if "_" not in strategy else strategy.replace("_", " "),
            *(written(shift(rows, strategy, d)) for d in dimensions),
            f"{kl:.3f}",
            f"{100 * own.repetition.mean():.1f} % ({repeated:+.1f})",
            f"{own.tokens.median():.0f}",
        ]
        print("| " + " | ".join(cells) + " |")


def endings(rows):
    base = rows[rows.strategy == "base"]
    median = base.tokens.median()
    for strategy, own in rows.groupby("strategy", sort=False):
        cells = [strategy, f"{own.tokens.median():.0f}", f"{100 * own.repetition.mean():.1f} %"]
        for times in (2, 4):
            ended = own.ended & (own.tokens <= times * median)
            mean, low, high = (100 * x for x in interval(ended))
            cells.append(f"{mean:.0f} % ({low:.0f} to {high:.0f})")
        print("| " + " | ".join(cells) + " |")


if __name__ == "__main__":
    run = Path(sys.argv[1])
    rows = pd.concat([pd.read_parquet(p) for p in sorted(run.glob("scores/*.parquet"))], ignore_index=True)
    experiment = json.loads((run / "manifest.json").read_text())["experiment"]
    rows["strategy"] = pd.Categorical(rows.strategy, list(experiment["strategies"]))
    if "--endings" in sys.argv:
        endings(rows)
    else:
        print("| | " + " | | ".join(experiment["dimensions"]) + " | | KL | repeated | tokens |")
        shifts(rows, list(experiment["dimensions"]))
