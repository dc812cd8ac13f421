"""What degrees.ron and wordings.ron say, from their rows (pandas, scipy; scripts/recompute/requirements.txt).

    python experiments/pcm/analyse.py runs/pcm_degrees runs/pcm_wordings
"""

import json
import sys
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.stats import spearmanr


def scores(run):
    return pd.concat([pd.read_parquet(p) for p in sorted(Path(run).glob("scores/*.parquet"))], ignore_index=True)


def degrees(run):
    dimensions = json.loads((Path(run) / "manifest.json").read_text())["experiment"]["dimensions"]
    ends = {d[end]: (name, sign) for name, d in dimensions.items() for end, sign in [("low", -1), ("high", 1)]}
    rows = scores(run)
    for direction, (dimension, sign) in ends.items():
        levels = {
            int(p.rsplit("_", 1)[1]) / 100: sign * own[f"reward_{dimension}"].mean()
            for p, own in rows[rows.strategy == "pcm"].groupby("preference")
            if p.rsplit("_", 1)[0] == direction
        }
        rho = spearmanr(list(levels), list(levels.values())).statistic
        means = " | ".join(f"{v:.2f}" for _, v in sorted(levels.items()))
        print(f"| {direction} | {means} | {rho:.2f} |")


def wordings(run):
    rows = scores(run)
    rows["wording"] = rows.preference.str.replace(r"^([a-z]+_){3}", "", regex=True)
    table = rows.pivot_table(index="wording", columns="strategy", values="utility")
    table["gain"] = table.pcm - table.base
    table["of the known gain"] = table.gain / table.gain["known"]
    print(table.round(3).to_string())
    # By prompt: the known gain less the mean unseen one.
    gain = rows.pivot_table(index="prompt", columns=["wording", "strategy"], values="utility")
    gain = gain.xs("pcm", axis=1, level=1) - gain.xs("base", axis=1, level=1)
    unseen = gain.drop(columns="known").mean(axis=1)
    draws = np.random.default_rng(0).integers(0, len(gain), (10_000, len(gain)))
    ratio = unseen.to_numpy()[draws].mean(1) / gain.known.to_numpy()[draws].mean(1)
    low, high = np.percentile(ratio, [2.5, 97.5])
    print(f"unseen wordings keep {unseen.mean() / gain.known.mean():.3f} of the gain, 95 % interval {low:.3f} to {high:.3f}")


if __name__ == "__main__":
    degrees(sys.argv[1])
    wordings(sys.argv[2])
