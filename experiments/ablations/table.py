"""Ablations as a table: means over three seeds, their spread, and the difference from the default (pandas, NumPy;
scripts/recompute/requirements.txt).

    python experiments/ablations/table.py runs/ablations [experiments/ablations/results.md]

Differences are paired on prompt, preference and seed; intervals are bootstraps over prompts (10,000 draws), so
they say what other prompts would give, and the spread says what other seeds would.
"""

import json
import sys
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.stats import norm, t

ROWS = {
    "default": "default",
    "probabilities": "probabilities mixed (paper)",
    "logs": "logits mixed",
    "mean": "plain mean instead of Bradley-Terry",
    "no_context": "context-free α",
    "statistics": "expert statistics as input",
    "probabilities_statistics": "probabilities mixed, expert statistics",
    "small": "PCM of 9M weights (small)",
    "enumerated": "preferences enumerated (paper)",
    "response": "credit: whole response (paper)",
    "immediate": "credit: segments, λ = 0",
    "to_go": "credit: segments, λ = 1",
    "price_in_utility": "divergence priced in the utility",
    "rebel_online": "REBEL, online",
    "ppo_online": "PPO, online",
    "hard": "hard switch",
    "hold_8": "weights held for 8 tokens",
    "probabilities_hard": "probabilities, hard switch",
    "probabilities_hold_8": "probabilities, held for 8 tokens",
    "probabilities_top_5": "probabilities, experts' top 5",
    "probabilities_top_20": "probabilities, experts' top 20",
    "probabilities_top_100": "probabilities, experts' top 100",
    "dera_2": "DeRa, λ = 2",
    "uniform": "uniform",
    "base": "base",
}


def scores(run):
    rows = pd.concat([pd.read_parquet(p) for p in sorted(Path(run).glob("scores/*.parquet"))], ignore_index=True)
    split = rows.strategy.str.extract(r"^(.*?)(?:_([123]))?$")
    known = split[0].isin(ROWS) & ~rows.strategy.isin(ROWS)
    rows["row"] = np.where(known, split[0], rows.strategy)
    rows["seed"] = np.where(known, split[1], "")
    if "kl" not in rows:
        rows["kl"] = np.nan
    return rows


def tails(prompts):
    """Percentiles of an interval over so few prompts: expanded for Student's t (docs/src/statistics.md)."""
    tail = 100 * norm.cdf(-np.sqrt(prompts / (prompts - 1)) * t.ppf(0.975, prompts - 1))
    return [tail, 100 - tail]


def table(run):
    rows = scores(run)
    missing = set(ROWS) - set(rows.row)
    if missing:
        sys.exit(f"{run}: there is no {', '.join(sorted(missing))}; run experiments/ablations/run.sh to its end")
    default = rows[rows.row == "default"]
    prompts = sorted(default.prompt.unique())
    draws = np.random.default_rng(0).integers(0, len(prompts), (10_000, len(prompts)))
    place = ["prompt", "preference", "sample"]
    lines = [
        "| ablation | utility | seeds | KL, nats per response | difference from the default | 95 % interval |",
        "|---|--:|--:|--:|--:|---|",
    ]
    for row, label in ROWS.items():
        own = rows[rows.row == row]
        means = own.groupby("seed").utility.mean()
        spread = f"{means.min():.3f} – {means.max():.3f}" if len(means) > 1 else ""
        seeds = own.groupby(place + ["seed"]).utility.mean().unstack("seed")
        reference = default.groupby(place + ["seed"]).utility.mean().unstack("seed")
        # What is not trained stands beside all seeds of the default.
        pairs = [(s, s) for s in seeds] if len(means) > 1 else [(seeds.columns[0], s) for s in reference]
        difference = sum(seeds[a] - reference[b] for a, b in pairs) / len(pairs)
        by_prompt = difference.groupby("prompt").mean().reindex(prompts).to_numpy()
        low, high = np.percentile(by_prompt[draws].mean(1), tails(len(prompts)))
        lead = "" if row == "default" else f"{by_prompt.mean():+.3f}"
        interval = "" if row == "default" else f"{low:+.3f} – {high:+.3f}"
        lines.append(f"| {label} | {means.mean():.3f} | {spread} | {own.kl.mean():.2f} | {lead} | {interval} |")
    return "\n".join(lines) + "\n"


def records(folder):
    """Bias of what is not recorded: mass of the others of each step where gates were sampled, by the records."""
    shares = []
    for path in sorted(Path(folder).glob("seed=1/rollouts/*.parquet"))[:2]:
        for _, r in pd.read_parquet(path, columns=["shares", "tokens", "support", "behaviour"]).iterrows():
            named = int((np.asarray(r.shares) > 0).sum())
            rows = np.asarray(r.support, dtype=np.float64).reshape(len(r.tokens), -1, named + 1)
            # Equal weights of the experts, as a fresh PCM that mixes logits has.
            values = rows[..., named] + rows[..., :named].mean(-1)
            values = np.exp(values - values.max(1, keepdims=True))
            shares.append((values[:, -1] / values.sum(1)).mean())
    return float(np.mean(shares)) if shares else float("nan")


if __name__ == "__main__":
    text = table(sys.argv[1])
    manifest = json.loads((Path(sys.argv[1]) / "manifest.json").read_text())
    seconds = sum(s for session in manifest["sessions"] for s in session["seconds"].values())
    text += f"\nEvaluation: {seconds / 60:.0f} minutes.\n"
    mass = records("runs/train/ablation_rollouts")
    if mass == mass:
        text += f"Mixing logits learns from records in which all tokens but the likeliest 64 hold {100 * mass:.2f} % of its mass.\n"
    print(text)
    if len(sys.argv) > 2:
        Path(sys.argv[2]).write_text(text)
