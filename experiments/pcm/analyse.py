"""What the runs of this folder say, from their rows (pandas, scipy; scripts/recompute/requirements.txt).

    python experiments/pcm/analyse.py evaluate runs/pcm_evaluate
    python experiments/pcm/analyse.py degrees runs/pcm_degrees
    python experiments/pcm/analyse.py wordings runs/pcm_wordings
    python experiments/pcm/analyse.py seeds runs/pcm_seeds
    python experiments/pcm/analyse.py oracle runs/pcm_oracle
    python experiments/pcm/analyse.py divergence runs/pcm_divergence
    python experiments/pcm/analyse.py witnesses runs/pcm_witnesses

Intervals are bootstraps over prompts, 10,000 draws.
"""

import json
import sys
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.optimize import nnls
from scipy.stats import norm, spearmanr, t


def scores(run):
    return pd.concat([pd.read_parquet(p) for p in sorted(Path(run).glob("scores/*.parquet"))], ignore_index=True)


def experiment(run):
    return json.loads((Path(run) / "manifest.json").read_text())["experiment"]


def ends(run):
    """Dimension and sign of each direction."""
    dimensions = experiment(run)["dimensions"]
    return {d[end]: (name, sign) for name, d in dimensions.items() for end, sign in [("low", -1), ("high", 1)]}


def draws(prompts):
    return np.random.default_rng(0).integers(0, prompts, (10_000, prompts))


def tails(prompts):
    """Percentiles of an interval over so few prompts: expanded for Student's t (docs/src/statistics.md)."""
    tail = 100 * norm.cdf(-np.sqrt(prompts / (prompts - 1)) * t.ppf(0.975, prompts - 1))
    return [tail, 100 - tail]


def interval(by_prompt):
    """Mean of numbers by prompt, and its interval, as text."""
    values = np.asarray(by_prompt, dtype=float)
    low, high = np.percentile(values[draws(len(values))].mean(1), tails(len(values)))
    return f"{values.mean():+.3f} ({low:+.3f} – {high:+.3f})"


def evaluate(run):
    """Every strategy, and what the PCM is ahead of it."""
    tables = Path(run) / "tables"
    ranking = pd.read_csv(tables / "ranking.csv").set_index("strategy")
    wins = pd.read_csv(tables / "win_rates.csv").query("strategy == 'pcm' and measure == 'utility'").set_index("opponent")
    rows = scores(run)
    drawn = rows.preference.str.startswith("draw_")
    parts = [rows[~drawn].groupby("strategy").utility.mean(), rows[drawn].groupby("strategy").utility.mean()]
    print("| strategy | utility | win rate | composite | drawn | the PCM's lead | 95 % interval | p (Holm) | the PCM wins |")
    print("|---|--:|--:|--:|--:|--:|---|--:|--:|")
    for name, row in ranking.iterrows():
        half = (row.utility_high - row.utility_low) / 2
        cells = [name, f"{row.utility:.3f} ± {half:.3f}", f"{row.win_rate:.3f}", *(f"{part[name]:.3f}" for part in parts)]
        if name == "pcm":
            cells += [""] * 4
        else:
            cells += [f"{-row.difference:.3f}", f"{-row.difference_high:.3f} – {-row.difference_low:.3f}", f"{row.p_holm:.3f}"]
            cells.append(f"{100 * wins.win_rate[name]:.0f} %")
        print("| " + " | ".join(cells) + " |")


def degrees(run):
    rows = scores(run)
    for direction, (dimension, sign) in ends(run).items():
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
    chosen = draws(len(gain))
    ratio = unseen.to_numpy()[chosen].mean(1) / gain.known.to_numpy()[chosen].mean(1)
    low, high = np.percentile(ratio, tails(len(gain)))
    print(f"unseen wordings keep {unseen.mean() / gain.known.mean():.3f} of the gain, 95 % interval {low:.3f} to {high:.3f}")


def by_prompt(rows):
    """Mean utility, `[prompts, strategies]`."""
    return rows.pivot_table(index="prompt", columns="strategy", values="utility")


def seeds(run):
    table = by_prompt(scores(run))
    own = [c for c in table if c.startswith("pcm_")]
    means = table[own].mean()
    print("| strategy | utility | the seeds' mean less it |\n|---|--:|--:|")
    for name in table:
        lead = "" if name in own else interval(table[own].mean(axis=1) - table[name])
        print(f"| {name} | {table[name].mean():.3f} | {lead} |")
    print(f"spread of the seeds: {means.min():.3f} to {means.max():.3f}, standard deviation {means.std():.4f}")


def oracle(run):
    table = by_prompt(scores(run))
    print("| strategy | utility | less the PCM |\n|---|--:|--:|")
    for name in table.mean().sort_values(ascending=False).index:
        gap = "" if name == "pcm" else interval(table[name] - table.pcm)
        print(f"| {name} | {table[name].mean():.3f} | {gap} |")


def curve(nats, gains):
    """What a√KL − b KL, fitted through the settings of a strategy and 0, gives at other divergences."""
    nats = np.asarray(nats)
    (a, b), _ = nnls(np.stack([np.sqrt(nats), -nats], 1), gains)
    return lambda x: a * np.sqrt(x) - b * x


def divergence(run):
    """Utility of constant gates at the PCM's divergence per response, read off a curve through DeRa's settings. Nothing is
    said beyond the last of them."""
    everything = scores(run)
    drawn = everything.preference.str.startswith("draw_")
    for label, rows in [("all", everything), ("composite", everything[~drawn]), ("drawn", everything[drawn])]:
        utility = by_prompt(rows)
        kl = rows.pivot_table(index="prompt", columns="strategy", values="kl")
        print(f"\n| {label} | KL, nats per response | utility |\n|---|--:|--:|")
        for name in utility:
            print(f"| {name} | {kl[name].mean():.1f} | {utility[name].mean():.3f} |")
        constant = [c for c in utility if c.startswith("dera_")]
        for name in [c for c in utility if c.startswith("pcm_")]:
            last = max(kl[c].mean() for c in constant)
            if kl[name].mean() > last:
                print(f"{name}: {kl[name].mean():.1f} nats are beyond the last λ ({last:.1f}); run DeRa further")
                continue

            def lead(chosen):
                mean = lambda table, c: table[c].to_numpy()[chosen].mean()
                gains = [mean(utility, c) - mean(utility, "base") for c in constant]
                at = curve([mean(kl, c) for c in constant], gains)
                return mean(utility, name) - mean(utility, "base") - at(mean(kl, name))

            low, high = np.percentile([lead(d) for d in draws(len(utility))], tails(len(utility)))
            own = lead(np.arange(len(utility)))
            print(f"{name}: at equal divergence {own:+.3f} ({low:+.3f} – {high:+.3f}) over constant gates")


def witnesses(run):
    """What the reward and its witness say of each direction: against the base, and of the two ends of a dimension
    against each other with the same other directions, which leaves out what those do to the same score."""
    rows, preferences = scores(run), experiment(run)["preferences"]
    ended = ends(run)

    def both(difference, dimension):
        columns = [f"reward_{dimension}", f"reward_{dimension}_model"]
        return " | ".join(interval(difference(column)) for column in columns)

    def table(strategy, column):
        return rows[rows.strategy == strategy].pivot_table(index="prompt", columns="preference", values=column)

    def stated(direction):
        return [p for p, own in preferences.items() if direction in own["weights"]]

    strategies = [s for s in rows.strategy.unique() if s != "base"]
    print("| strategy | direction | against | reward | witness |\n|---|---|---|--:|--:|")
    for strategy in strategies:
        for direction, (dimension, sign) in ended.items():
            if stated(direction):

                def shift(column):
                    own = table(strategy, column) - table("base", column)
                    return sign * own[stated(direction)].mean(axis=1)

                print(f"| {strategy} | {direction} | base | {both(shift, dimension)} |")
        for dimension, spec in experiment(run)["dimensions"].items():
            low, high = spec["low"], spec["high"]
            if stated(low):
                swapped = {p.replace(low, "*"): p for p in stated(low)}
                pairs = [(p, swapped[p.replace(high, "*")]) for p in stated(high)]

                def contrast(column):
                    own = table(strategy, column)
                    return sum(own[a] - own[b] for a, b in pairs) / len(pairs)

                print(f"| {strategy} | {high} | {low} | {both(contrast, dimension)} |")


if __name__ == "__main__":
    known = {f.__name__: f for f in [evaluate, degrees, wordings, seeds, oracle, divergence, witnesses]}
    if len(sys.argv) != 3 or sys.argv[1] not in known:
        sys.exit(__doc__)
    known[sys.argv[1]](sys.argv[2])
