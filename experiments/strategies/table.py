"""The table of README.md from the tables of a run (pandas).

    python experiments/strategies/table.py runs/strategies/tables [PARAMETERS.json]

PARAMETERS.json says what stands in the second column, by strategy.
"""

import json
import sys
from pathlib import Path

import pandas as pd

DIMENSIONS = ["expertise", "informativeness", "style"]


def number(value, digits):
    return f"{value:.{digits}f}".replace("-", "−")


def main():
    folder = Path(sys.argv[1])
    parameters = json.loads(Path(sys.argv[2]).read_text()) if len(sys.argv) > 2 else {}
    read = lambda name: pd.read_csv(folder / f"{name}.csv")
    rewards = read("rewards").pivot(index="strategy", columns="dimension", values="reward")
    table = read("ranking").merge(read("quality"), on="strategy").merge(read("cost"), on="strategy")
    print("| strategy | parameters | utility | win rate | " + " | ".join(DIMENSIONS)
          + " | KL, nats/token | repeated trigrams | ended | tokens | passes/token | ms/token | peak MB |")
    print("|---|---|" + "--:|" * (9 + len(DIMENSIONS)))
    for row in table.sort_values("rank").itertuples():
        mark = "†" if row.p_holm < 0.05 else ""
        cells = [
            row.strategy + mark,
            parameters.get(row.strategy, ""),
            f"{number(row.utility, 3)} ± {number((row.utility_high - row.utility_low) / 2, 3)}",
            number(row.win_rate, 3),
            *(number(rewards.loc[row.strategy, d], 2) for d in DIMENSIONS),
            number(row.kl_per_token, 3),
            f"{100 * row.repetition:.1f} %",
            f"{100 * row.ended:.0f} %",
            f"{row.tokens:.0f}",
            f"{row.passes_per_token:g}",
            f"{1000 * row.seconds_per_token:.1f}",
            f"{row.peak_bytes / 1e6:.0f}",
        ]
        print("| " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()
