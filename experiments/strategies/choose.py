"""Which parameters of each strategy are the best on the validation prompts (pandas).

    python experiments/strategies/choose.py runs/strategies_validation/tables

Highest utility among those within 0.5 nats per token of the base and three points of its repetition; where none is, the
nearest to the base.
"""

import sys
from pathlib import Path

import pandas as pd

KL, REPETITION = 0.5, 0.03


def main():
    folder = Path(sys.argv[1])
    table = pd.read_csv(folder / "ranking.csv").merge(pd.read_csv(folder / "quality.csv"), on="strategy")
    base = table[table.strategy == "base"].iloc[0]
    table["family"] = table.strategy.str.replace(r"_\d+$", "", regex=True)
    for family, own in table[table.family != table.strategy].groupby("family"):
        bounded = own[(own.kl_per_token <= KL) & (own.repetition <= base.repetition + REPETITION)]
        best = bounded.loc[bounded.utility.idxmax()] if len(bounded) else own.loc[own.kl_per_token.idxmin()]
        print(f"{best.strategy:20} utility {best.utility:.3f}  KL {best.kl_per_token:.3f}  repetition {best.repetition:.3f}")


if __name__ == "__main__":
    main()
