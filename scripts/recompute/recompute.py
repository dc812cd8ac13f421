"""Computes every table of a run again, from its raw rows and its stored draws, with pandas and scipy.

    pip install -r scripts/recompute/requirements.txt
    python scripts/recompute/recompute.py runs/quickstart

Says how far each column of each table is from what is written there, and fails above 1e-9. BLEU comes from
sacrebleu and volumes from pymoo; `--no-bleu` leaves the former out, which takes long for many responses.
"""

import argparse
import itertools
import json
import sys
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.optimize import minimize
from scipy.special import expit, rel_entr
from scipy.stats import norm, t
from uniseg import wordbreak

TOLERANCE = 1e-9
PRIOR = 0.5  # wins that every pair is given each way


def widening(clusters):
    """How much wider than a standard normal interval one from so few clusters is."""
    return np.sqrt(clusters / (clusters - 1)) * t.ppf(0.975, clusters - 1) if clusters > 1 else np.inf


def ends(drawn, clusters, axis=0):
    """Expanded percentile interval: the normal tails beyond t's quantile."""
    tail = 100 * norm.cdf(-widening(clusters))
    return np.percentile(drawn, [tail, 100 - tail], axis=axis)


def splitmix(counters):
    """Words of SplitMix64 from seed 0."""
    with np.errstate(over="ignore"):
        z = (counters + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


def sign_test(sums):
    """Two-sided p of sums by cluster, whose signs turn: exact up to 20, else from drawn signs."""
    sums = np.asarray(sums, float)
    sums = sums[sums != 0]
    n = len(sums)
    if n == 0:
        return 1.0
    least = abs(sums.sum()) - 1e-9 * np.abs(sums).sum()

    def totals(words):
        turned = np.stack([(words[:, i // 64] >> np.uint64(i % 64)) & np.uint64(1) for i in range(n)], 1)
        return np.abs((1.0 - 2.0 * turned) @ sums)

    if n <= 20:
        return (totals(np.arange(2**n, dtype=np.uint64)[:, None]) >= least).mean()
    width = -(-n // 64)
    hits = draws = 0
    for last in [10_000, 1_000_000]:
        for start in range(draws, last, 100_000):
            draw = np.arange(start, min(start + 100_000, last), dtype=np.uint64)
            words = splitmix(draw[:, None] * np.uint64(width) + np.arange(width, dtype=np.uint64))
            hits += (totals(words) >= least).sum()
        draws = last
        p = (1 + hits) / (1 + draws)
        if p >= 0.1:
            break
    return p


class Run:
    def __init__(self, folder):
        self.folder = Path(folder)
        self.manifest = json.loads((self.folder / "manifest.json").read_text())
        frontier = self.manifest["experiment"].get("frontier", {})
        named = lambda curve, s: f"{curve}-{str(int(s) if s == int(s) else s).replace('.', '_')}"
        self.curves = {c: [(s, named(c, s)) for s in spec["strengths"]] for c, spec in frontier.items()}
        arms = {name for curve in self.curves.values() for _, name in curve}
        self.strategies = [s for s in self.manifest["experiment"]["strategies"] if s not in arms]
        rows = [pd.read_parquet(p) for p in sorted((self.folder / "scores").glob("*.parquet"))]
        self.scores = pd.concat(rows, ignore_index=True)
        rows = [pd.read_parquet(p) for p in sorted((self.folder / "generations").glob("*.parquet"))]
        self.generations = pd.concat(rows, ignore_index=True)
        self.dimensions = sorted(c[4:] for c in self.scores if c.startswith("raw_"))
        self.preferences = sorted(self.scores.preference.unique())
        # The clusters, in the order that draws refer to: bytes, not locale.
        self.prompts = sorted(self.scores.prompt.unique(), key=lambda p: p.encode())
        self.scores["cluster"] = self.scores.prompt.map({p: i for i, p in enumerate(self.prompts)})
        stored = pd.read_parquet(self.folder / "tables" / "resamples.parquet")
        self.draws = np.stack(stored.prompts.to_numpy())
        counts = np.zeros((len(self.draws), len(self.prompts)))
        for row, draw in zip(counts, self.draws):
            np.add.at(row, draw, 1)
        self.counts = counts

    def of(self, strategy):
        return self.scores[self.scores.strategy == strategy]

    def ratio(self, clusters, numerator, denominator):
        """Estimate and interval of a sum over a sum, both by cluster."""
        n = len(self.prompts)
        top = np.bincount(clusters, numerator, n)
        bottom = np.bincount(clusters, denominator, n)
        if bottom.sum() == 0:
            return np.nan, np.nan, np.nan
        with np.errstate(invalid="ignore", divide="ignore"):
            drawn = (self.counts @ top) / (self.counts @ bottom)
        low, high = ends(drawn[np.isfinite(drawn)], n)
        return top.sum() / bottom.sum(), low, high

    def mean(self, frame, values):
        keep = np.isfinite(values)
        return self.ratio(frame.cluster.to_numpy()[keep], values[keep], np.ones(keep.sum()))

    def added(self, strategy):
        """What keeping the best of n responses adds to the divergence at most, in nats a response."""
        specs, n = self.manifest["experiment"]["strategies"], 1
        spec = specs[strategy]
        while isinstance(spec, dict) and "BestOfN" in spec:
            n *= spec["BestOfN"]["n"]
            spec = spec["BestOfN"]["of"]
        return np.log(n) - (n - 1) / n

    def base(self):
        """The strategy that never leaves the base."""
        text = lambda s: set(self.manifest["experiment"]["strategies"][s]) & {"Canned", "Empty", "Recorded"}
        still = lambda s: self.added(s) == 0 and not text(s) and (self.of(s).kl.abs() < 1e-9).all()
        return next((s for s in self.strategies if still(s)), None)

    def divergence(self, strategy):
        """Divergence per response and utility gained per root of it, with intervals."""
        own, base, n = self.of(strategy), self.base(), len(self.prompts)
        kl = own.kl.to_numpy(float) + self.added(strategy)
        row = dict(zip(["kl", "kl_low", "kl_high"], self.mean(own, kl)))
        if base is not None and row["kl"] > 1e-9:
            pairs = self.pairs(strategy, base, "utility")
            gain = np.bincount(pairs.cluster, pairs.value - pairs.value_other, n), np.bincount(pairs.cluster, minlength=n)
            nats = np.bincount(own.cluster, kl, n), np.bincount(own.cluster, minlength=n)
            a = lambda w: (w @ gain[0] / (w @ gain[1])) / np.sqrt(w @ nats[0] / (w @ nats[1]))
            row.update(zip(["a", "a_low", "a_high"], (a(np.ones(n)), *ends(a(self.counts), n))))
        return row

    def measure(self, frame, name):
        if name == "utility":
            return frame.utility.to_numpy()
        stated = frame[f"stated_{name}"].to_numpy()
        return np.where(stated != 0, frame[f"reward_{name}"].to_numpy() * np.sign(stated), np.nan)

    def pairs(self, a, b, name):
        place = ["preference", "prompt", "sample"]
        a, b = self.of(a), self.of(b)
        a = a.assign(value=self.measure(a, name)).dropna(subset="value")
        b = b.assign(value=self.measure(b, name)).dropna(subset="value")
        return a[place + ["cluster", "value"]].merge(b[place + ["value"]], on=place, suffixes=("", "_other"))


def wins(pairs):
    return (np.sign(pairs.value - pairs.value_other).to_numpy() + 1) / 2


def strengths(won):
    """Bradley-Terry log-strengths of [draws, n, n] wins, by Newton's method."""
    won = won + PRIOR * (1 - np.eye(won.shape[-1]))
    n = won.shape[-1]
    games = won + np.swapaxes(won, 1, 2)
    s = np.zeros(won.shape[:2])
    for _ in range(100):
        p = expit(s[:, :, None] - s[:, None, :])
        gradient = (won - games * p).sum(2)
        weight = games * p * (1 - p)
        curvature = -weight + 1 / n
        diagonal = np.arange(n)
        curvature[:, diagonal, diagonal] = weight.sum(2) - weight[:, diagonal, diagonal] + 1 / n
        step = np.linalg.solve(curvature, gradient[:, :, None])[:, :, 0]
        largest = np.abs(step).max(1, keepdims=True)
        s += step / np.maximum(largest, 1)
        if largest.max() < 1e-12:
            break
    return s - s.mean(1, keepdims=True)


def holm(p):
    order = np.argsort(p, kind="stable")
    out = np.empty(len(p))
    out[order] = np.maximum.accumulate(np.minimum(p[order] * (len(p) - np.arange(len(p))), 1))
    return out


def differences(run):
    rows = []
    for j, a in enumerate(run.strategies):
        for b in run.strategies[:j]:
            pairs = run.pairs(a, b, "utility")
            delta = (pairs.value - pairs.value_other).to_numpy()
            mean, low, high = run.ratio(pairs.cluster.to_numpy(), delta, np.ones(len(delta)))
            sums = np.bincount(pairs.cluster, delta, len(run.prompts))
            p = sign_test(sums)
            means = pd.Series(delta).groupby(pairs.cluster.to_numpy()).mean()
            z = norm.ppf(0.975) + norm.ppf(0.8)
            needed = np.ceil((z / 0.02) ** 2 * means.var(ddof=1)) if len(means) > 1 else np.nan
            rows.append((a, b, mean, low, high, p, needed))
    names = ["strategy", "opponent", "difference", "low", "high", "p", "prompts_needed"]
    table = pd.DataFrame(rows, columns=names)
    table["p_holm"] = holm(table.p.to_numpy()) if len(table) else []
    # What a run tests are the differences to its first strategy.
    tested = table.opponent == run.strategies[0]
    table.loc[tested, "p_holm"] = holm(table.p[tested].to_numpy()) if tested.any() else []
    return table


def win_rates(run):
    rows = []
    for name in ["utility", *run.dimensions]:
        for a, b in itertools.permutations(run.strategies, 2):
            pairs = run.pairs(a, b, name)
            if len(pairs) == 0:
                continue
            won = wins(pairs)
            estimate = run.ratio(pairs.cluster.to_numpy(), won, np.ones(len(won)))
            rows.append((a, b, name, *estimate, (won == 0.5).mean(), len(won)))
    names = ["strategy", "opponent", "measure", "win_rate", "low", "high", "ties", "pairs"]
    return pd.DataFrame(rows, columns=names)


def ranking(run):
    n, m = len(run.strategies), len(run.prompts)
    won = np.zeros((m, n, n))
    for i, j in itertools.permutations(range(n), 2):
        pairs = run.pairs(run.strategies[i], run.strategies[j], "utility")
        won[:, i, j] = np.bincount(pairs.cluster, wins(pairs), m)
    mean = strengths(won.sum(0)[None])[0]
    parts = np.array_split(run.counts, max(1, len(run.counts) * n * n // 2_000_000))
    drawn = np.concatenate([strengths(np.einsum("dm,mij->dij", c, won)) for c in parts])
    low, high = ends(drawn, m)
    to_first = differences(run)
    to_first = to_first[to_first.opponent == run.strategies[0]].set_index("strategy")
    rate = win_rates(run)
    rate = rate[rate.measure == "utility"].groupby("strategy").win_rate.mean()
    rows = []
    for i, s in enumerate(run.strategies):
        own = run.of(s)
        row = {"strategy": s, "responses": len(own), "win_rate": rate.get(s, np.nan)}
        row.update(zip(["utility", "utility_low", "utility_high"], run.mean(own, own.utility.to_numpy())))
        row.update(dict.fromkeys(["a", "a_low", "a_high"], np.nan))
        row.update(run.divergence(s))
        row.update(zip(["strength", "strength_low", "strength_high"], [mean[i], low[i], high[i]]))
        if s in to_first.index:
            d = to_first.loc[s]
            row.update(difference=d.difference, difference_low=d.low, difference_high=d.high)
            row.update(p_holm=d.p_holm, prompts_needed=d.prompts_needed)
        rows.append(row)
    return pd.DataFrame(rows)


def rewards(run):
    rows = []
    for s, d in itertools.product(run.strategies, run.dimensions):
        own = run.of(s)
        stated = own[f"stated_{d}"].to_numpy()
        ahead = (own[f"reward_{d}"] - own[f"reference_{d}"]).to_numpy() * np.sign(stated)
        beats = expit(ahead[stated != 0])
        raw = own[f"raw_{d}"]
        mean, low, high = run.mean(own, run.measure(own, d))
        rows.append((s, d, mean, low, high, beats.mean() if len(beats) else np.nan, raw.mean(), raw.std(ddof=1)))
    names = ["strategy", "dimension", "reward", "reward_low", "reward_high", "bradley_terry", "raw_mean", "raw_sd"]
    return pd.DataFrame(rows, columns=names)


def preferences(run):
    rows = []
    for s in run.strategies:
        row = {"strategy": s}
        for p in run.preferences:
            own = run.of(s)
            own = own[own.preference == p]
            row.update(zip([p, f"{p}_low", f"{p}_high"], run.mean(own, own.utility.to_numpy())))
        rows.append(row)
    return pd.DataFrame(rows)


def repetition(tokens):
    trigrams = list(zip(tokens, tokens[1:], tokens[2:]))
    return 1 - len(set(trigrams)) / len(trigrams) if trigrams else 0.0


def distinct(texts, n):
    words = [[w for w in wordbreak.words(t.lower()) if any(c.isalnum() for c in w)] for t in texts]
    grams = [tuple(w[i : i + n]) for w in words for i in range(len(w) - n + 1)]
    return len(set(grams)) / len(grams) if grams else np.nan


def quality(run, bleu):
    place = ["strategy", "preference", "prompt", "sample"]
    # Per response from the per-token lists, not from the scores.
    g = run.generations.copy()
    g["length"] = g.tokens.map(len)
    g["kl_sum"] = g.kl.map(lambda v: np.sum(v, dtype=float) if len(v) else np.nan)
    g["nll"] = g.base_log_probs.map(lambda v: -np.sum(v, dtype=float) if len(v) else np.nan)
    g["repeated"] = g.tokens.map(lambda t: repetition(list(t)))
    stated = run.scores[[f"stated_{d}" for d in run.dimensions]].to_numpy()
    reward = run.scores[[f"reward_{d}" for d in run.dimensions]].to_numpy() * np.sign(stated)
    worst = np.nanmin(np.where(stated != 0, reward, np.nan), axis=1)
    own = run.scores[place + ["cluster"]].assign(worst=worst)
    g = g.merge(own, on=place)
    rows = []
    for s in run.strategies:
        own = g[g.strategy == s]
        c, length = own.cluster.to_numpy(), own.length.to_numpy().astype(float)
        row = {"strategy": s}
        if own.kl_sum.notna().all():
            own = own.assign(kl_sum=own.kl_sum + run.added(s))
            kl = run.ratio(c, own.kl_sum.to_numpy(), length)
            row.update(zip(["kl_per_token", "kl_per_token_low", "kl_per_token_high"], kl))
            row["kl_per_response"] = own.kl_sum.mean()
            row["base_perplexity"] = np.exp(own.nll.sum() / length.sum())
        ended = run.mean(own, own.ended.to_numpy().astype(float))
        row.update(zip(["ended", "ended_low", "ended_high"], ended))
        row["lost"] = (run.of(s).utility == 0).mean()
        row.update(worst_dimension=own.worst.mean(), tokens=length.mean(), repetition=own.repeated.mean())
        for n in [1, 2]:
            row[f"distinct_{n}"] = distinct(own.response, n)
        if bleu:
            import sacrebleu

            sets = []
            for _, texts in own.groupby(["preference", "sample"]).response:
                texts = list(texts)
                each = [
                    sacrebleu.sentence_bleu(t, texts[:i] + texts[i + 1 :]).score for i, t in enumerate(texts)
                ]
                sets.append(np.mean(each))
            row["self_bleu"] = np.mean(sets)
        rows.append(row)
    return pd.DataFrame(rows)


def fronts(run):
    from pymoo.indicators.hv import HV

    reference = run.manifest["experiment"]["reference_point"]
    stated = run.scores.groupby("preference")[[f"stated_{d}" for d in run.dimensions]].first()
    sweeps = {}
    for preference, shares in stated.iterrows():
        own = {d: shares[f"stated_{d}"] for d in run.dimensions if shares[f"stated_{d}"] != 0}
        if len(own) > 1:
            sweeps.setdefault(tuple((d, np.sign(v)) for d, v in own.items()), []).append((preference, own))
    rows = []
    for directions, preferences in sweeps.items():
        if len(preferences) < 2:
            continue
        found = []
        name = " ".join(("+" if sign > 0 else "−") + d for d, sign in directions)
        volume = HV(ref_point=np.full(len(directions), -float(reference)))
        for s in run.strategies:
            own = run.of(s)

            cells = []
            for p, _ in preferences:
                mine = own[own.preference == p]
                n = np.bincount(mine.cluster, minlength=len(run.prompts))
                sums = [np.bincount(mine.cluster, mine[f"reward_{d}"] * sign, len(run.prompts)) for d, sign in directions]
                cells.append((n, np.stack(sums, 1)))

            def points(weights):
                return np.array([weights @ sums / (weights @ n) for n, sums in cells])

            def inner(front):
                return np.mean([np.dot(f, [abs(own[d]) for d, _ in directions]) for f, (_, own) in zip(front, preferences)])

            front = points(np.ones(len(run.prompts)))
            drawn = [points(c) for c in run.counts]
            volumes = np.array([volume(-d) for d in drawn])
            # The bias of a maximum, as the draws show it, is taken off.
            corrected = 2 * volume(-front) - volumes.mean()
            half = widening(len(run.prompts)) * volumes.std() if len(run.prompts) > 1 else 0.0
            product = (inner(front), *ends([inner(d) for d in drawn], len(run.prompts)))
            found.append((s, front, np.maximum([corrected, corrected - half, corrected + half], 0), product))
        every = np.concatenate([front for _, front, _, _ in found])
        for s, front, own_volume, product in found:
            beaten = [((every >= p).all(1) & (every > p).any(1)).any() for p in front]
            rows.append((name, s, len(front), len(front) - sum(beaten), *own_volume, *product))
    names = ["sweep", "strategy", "points", "on_front"]
    names += [n + e for n in ["hypervolume", "inner_product"] for e in ["", "_low", "_high"]]
    return pd.DataFrame(rows, columns=names)


def frontier(run):
    """Curves of utility against divergence, and their differences at the same divergence, from the rows."""
    n, specs = len(run.prompts), run.manifest["experiment"]["strategies"]
    base = next(s for s, spec in specs.items() if isinstance(spec, dict) and "Base" in spec)

    def means(strategy):
        own = run.of(strategy)
        rows = np.vstack([np.ones(n), run.counts])
        mean = lambda v: (rows @ np.bincount(own.cluster, v, n)) / (rows @ np.bincount(own.cluster, minlength=n))
        return mean(own.utility.to_numpy()), mean(own.kl.to_numpy(float) + run.added(strategy))

    def estimate(values):
        known = values[1:][np.isfinite(values[1:])]
        if np.isnan(values[0]) or len(known) < 0.95 * len(run.counts):
            return [np.nan] * 3
        return [values[0], *ends(known, n)]

    start, (points, lines) = means(base)[0], ([], {})
    for curve, arms in run.curves.items():
        each = [means(name) for _, name in arms]
        for (strength, _), (u, kl) in zip(arms, each):
            with np.errstate(invalid="ignore", divide="ignore"):
                a = np.where(kl > 0, (u - start) / np.sqrt(kl), np.nan)
            points.append((curve, strength, *estimate(u), *estimate(kl), *estimate(a)))
        u, kl = np.stack([start] + [u for u, _ in each], 1), np.stack([0 * start] + [kl for _, kl in each], 1)
        order = np.argsort(kl, 1, kind="stable")
        lines[curve] = np.take_along_axis(u, order, 1), np.sqrt(np.take_along_axis(kl, order, 1))
    rows = []
    for curve, (u, root) in lines.items():
        for nats in [5.0, 10.0, 20.0]:
            at = lambda u, root: np.array([np.interp(np.sqrt(nats), r, v, right=np.nan) for r, v in zip(root, u)])
            first = next(iter(lines))
            apart = at(u, root) - at(*lines[first]) if curve != first else np.full(len(u), np.nan)
            rows.append((curve, nats, *estimate(at(u, root)), *estimate(apart)))
    three = lambda name: [name, f"{name}_low", f"{name}_high"]
    points = pd.DataFrame(points, columns=["curve", "strength", *three("utility"), *three("kl"), *three("a")])
    return points, pd.DataFrame(rows, columns=["curve", "nats", *three("utility"), *three("difference")])


def retention(run):
    """From what every strategy gave the passages and the options of the questions."""
    stored = {
        name: np.stack(pd.read_parquet(run.folder / "tables" / f"resamples_{name}.parquet").prompts.to_numpy())
        for name in ["passages", "questions"]
    }

    def estimate(name, top, bottom):
        if len(top) == 0:
            return np.full(3, np.nan)
        top, bottom = np.asarray(top, float), np.asarray(bottom, float)
        drawn = top[stored[name]].sum(1) / bottom[stored[name]].sum(1)
        return np.array([top.sum() / bottom.sum(), *ends(drawn, stored[name].shape[1])])

    rows = []
    for s in run.strategies:
        if not list((run.folder / "retention").glob(f"{s}.*.parquet")):
            rows.append({"strategy": s})
            continue
        files = sorted((run.folder / "retention").glob(f"{s}.*.parquet"))
        read = pd.concat([pd.read_parquet(p).assign(file=p.name) for p in files], ignore_index=True)
        text, asked = read[read.right.isna()], read[read.right.notna()]
        sums = text.groupby("item")[["log_prob", "tokens"]].sum()
        best = asked.loc[asked.groupby(["file", "item"]).log_prob.idxmax()]
        right = best.right.astype(bool).groupby(best.item)
        row = {"strategy": s}
        perplexity = np.exp(estimate("passages", -sums.log_prob, sums.tokens))
        row.update(zip(["perplexity", "perplexity_low", "perplexity_high"], perplexity))
        accuracy = estimate("questions", right.sum(), right.count())
        row.update(zip(["accuracy", "accuracy_low", "accuracy_high"], accuracy))
        rows.append(row)
    return pd.DataFrame(rows)


def weights(run):
    rows = []
    for s in run.strategies:
        own = run.generations[run.generations.strategy == s]
        experts = sorted({e for row in own.experts for e in row}, key=str.encode)
        if not experts:
            continue
        below = set()
        for _, row in own.iterrows():
            w = np.array(row.weights, float).reshape(-1, len(row.experts))
            below |= {e for e, low in zip(row.experts, (w < 0).any(0)) if low}
        # What is left for the base where gates go past the experts.
        experts = [e for e in experts if e != "base" or e not in below]
        if len(experts) < 2 or below - {"base"}:
            continue
        within, level, shares, ran, spread = [], [], {}, {}, {e: [] for e in experts}
        for _, row in own.iterrows():
            w = np.zeros((len(row.tokens), len(experts)))
            columns = np.array(row.weights, float).reshape(len(row.tokens), -1).T
            for e, column in zip(row.experts, columns):
                if e in experts:
                    w[:, experts.index(e)] = column
                    spread[e].append(np.var(column) if len(column) else 0.0)
                    ran.setdefault(row.preference, set()).add(e)
            total = w.sum(1)
            each = w[total > 0] / total[total > 0, None]
            # Mutual information as divergences from the mean, not as a difference of entropies.
            average = each.mean(0) if len(each) else each.sum(0)
            within.append(np.mean(rel_entr(each, average).sum(1)) if len(each) else 0.0)
            level.append(np.var(np.log(total[total > 0])) if (total > 0).any() else 0.0)
            shares[row.preference] = shares.get(row.preference, 0) + each.sum(0)
        given = {p: v / v.sum() for p, v in shares.items()}
        mean = np.mean(list(given.values()), axis=0)
        told = np.mean([rel_entr(g, mean).sum() for g in given.values()])
        equal = [np.array([1.0 / len(ran[p]) if e in ran[p] else 0.0 for e in experts]) for p in given]
        alone = np.mean([rel_entr(q, np.mean(equal, axis=0)).sum() for q in equal])
        row = {"strategy": s, "preference_information": told, "preference_excess": told - alone}
        row.update(token_information=np.mean(within), level_variance=np.mean(level))
        row.update((f"{e}_variance", np.mean(v)) for e, v in spread.items())
        row.update(zip(experts, mean))
        rows.append(row)
    return pd.DataFrame(rows)


def seeds(run):
    """Repetitions over their samples, and over the strategies that are one method."""
    first = run.strategies[0]
    groups = [(n, "trainings", [(m, None) for m in ms]) for n, ms in run.manifest["experiment"].get("repeats", {}).items()]
    for s in run.strategies:
        samples = sorted(run.of(s)["sample"].unique())
        if len(samples) > 1:
            groups.append((s, "samples", [(s, i) for i in samples]))
    rows = []
    for name, over, members in groups:
        row = {"strategy": name, "over": over, "seeds": len(members)}

        def summarise(what, frames):
            both = pd.concat(frames)
            mean = run.ratio(both.cluster.to_numpy(), both.value.to_numpy(), np.ones(len(both)))
            each = pd.Series([f.value.mean() for f in frames])
            row.update(zip([what, f"{what}_low", f"{what}_high"], mean))
            k = len(frames)
            if over == "trainings" and k > 1 and len(run.prompts) > 1:
                prompts, trainings = ((mean[2] - mean[1]) / 2 / t.ppf(0.975, len(run.prompts) - 1)) ** 2, each.var(ddof=1) / k
                degrees = (prompts + trainings) ** 2 / (prompts**2 / (len(run.prompts) - 1) + trainings**2 / (k - 1))
                half = t.ppf(0.975, np.floor(degrees + 1e-9)) * np.sqrt(prompts + trainings) if prompts + trainings > 0 else 0.0
                row.update({f"{what}_trainings_low": mean[0] - half, f"{what}_trainings_high": mean[0] + half})
            row.update({f"{what}_sd": each.std(ddof=1), f"{what}_lowest": each.min(), f"{what}_highest": each.max()})
            return both

        keep = lambda frame, i: frame if i is None else frame[frame["sample"] == i]
        own = [keep(run.of(s), i) for s, i in members]
        summarise("utility", [f.assign(value=f.utility) for f in own])
        if all(s != first for s, _ in members):
            pairs = [keep(run.pairs(s, first, "utility"), i) for s, i in members]
            both = summarise("difference", [f.assign(value=f.value - f.value_other) for f in pairs])
            sums = np.bincount(both.cluster, both.value, len(run.prompts))
            row["p"] = sign_test(sums)
        rows.append(row)
    return pd.DataFrame(rows)


def length_controlled(won, longer):
    """Win rate at equal length: a logistic fit with a small ridge, by scipy."""
    sd = np.std(longer)
    if len(won) == 0 or (sd == 0 and np.mean(longer) != 0):
        return np.nan
    x = np.tanh(longer / max(sd, 1e-9))

    def loss(v):
        z = v[0] + v[1] * x
        return -(won * z - np.logaddexp(0, z)).sum() + 0.5e-3 * (v @ v)

    def slope(v):
        apart = expit(v[0] + v[1] * x) - won
        return np.array([apart.sum(), (apart * x).sum()]) + 1e-3 * v

    def curvature(v):
        p = expit(v[0] + v[1] * x)
        w = p * (1 - p)
        return np.array([[w.sum(), (w * x).sum()], [(w * x).sum(), (w * x * x).sum()]]) + 1e-3 * np.eye(2)

    v = np.zeros(2)
    found = minimize(loss, v, jac=slope, method="BFGS", options={"gtol": 1e-6})
    v = found.x
    for _ in range(5):
        v = v - np.linalg.solve(curvature(v), slope(v))
    return expit(v[0])


def judgements(folder, run):
    """The tables of judges, from the verdict on every pair."""
    pairs = pd.read_parquet(folder / "pairs.parquet")
    prompts = sorted(pairs.prompt.unique(), key=lambda p: p.encode())
    draws = np.stack(pd.read_parquet(folder / "resamples.parquet").prompts.to_numpy())
    value = {"First": 1.0, "Second": 0.0, "Tie": 0.5, "Unreadable": np.nan}
    own, swapped = pairs.own_first.map(value), 1 - pairs.own_second.map(value)
    pairs["won"] = np.where(own == swapped, own, np.where(own.isna() | swapped.isna(), np.nan, 0.5))
    # What a direction's question names may be what the preference does not want.
    pairs["won"] = 0.5 + pairs.sign.fillna(1) * (pairs.won - 0.5)
    # One win of the directions that a preference states, where these were asked.
    wants = {p: set(spec["weights"]) for p, spec in run.manifest["experiment"]["preferences"].items()}
    place = ["judge", "strategy", "preference", "prompt", "sample"]
    directed = pairs[[c in wants[p] for c, p in zip(pairs.criterion, pairs.preference)]]
    lead = directed.dropna(subset="won").groupby(place).won.apply(lambda w: (np.sign((w - 0.5).sum()) + 1) / 2)
    rows = pairs.criterion == "together"
    pairs.loc[rows, "won"] = lead.reindex(pd.MultiIndex.from_frame(pairs.loc[rows, place])).to_numpy()
    pairs["flip"] = (pairs.own_first == pairs.own_second) & pairs.own_first.isin(["First", "Second"])
    rows = []
    for (judge, criterion, strategy), g in pairs.groupby(["judge", "criterion", "strategy"], sort=False):
        read = g[g.won.notna()]
        cluster = read.prompt.map({p: i for i, p in enumerate(prompts)}).to_numpy(int)
        top, bottom = np.bincount(cluster, read.won, len(prompts)), np.bincount(cluster, minlength=len(prompts))
        row = {"judge": judge, "criterion": criterion, "strategy": strategy, "pairs": len(g)}
        if len(read):
            with np.errstate(invalid="ignore"):
                drawn = top[draws].sum(1) / bottom[draws].sum(1)
            low, high = ends(drawn[np.isfinite(drawn)], len(prompts))
            row.update(win_rate=read.won.mean(), win_rate_low=low, win_rate_high=high)
        row["length_controlled"] = length_controlled(read.won.to_numpy(), read.longer.to_numpy())
        row.update(ties=(g.won == 0.5).mean(), flips=g.flip.mean(), unreadable=g.won.isna().mean())
        rows.append(row)
    verdicts = pd.DataFrame(rows)
    place = ["strategy", "preference", "prompt", "sample"]
    rows = []
    for criterion, g in pairs.groupby("criterion", sort=False):
        said = {"utility": g.drop_duplicates(place).set_index(place).utility.dropna()}
        said.update({j: own.set_index(place).won.dropna() for j, own in g.groupby("judge", sort=False)})
        for b, a in ((b, a) for i, b in enumerate(said) for a in list(said)[:i]):
            both = pd.concat([said[a], said[b]], axis=1, join="inner", keys=["a", "b"])
            if len(both) == 0 and a == "utility":
                continue
            same = (both.a == both.b).mean() if len(both) else np.nan
            chance = sum((both.a == v).mean() * (both.b == v).mean() for v in [0, 0.5, 1]) if len(both) else 1
            kappa = (same - chance) / (1 - chance) if chance < 1 else np.nan
            rows.append((criterion, a, b, same, kappa, len(both)))
    agreement = pd.DataFrame(rows, columns=["criterion", "judge", "other", "agreement", "kappa", "pairs"])
    return {"verdicts": verdicts, "agreement": agreement}


KEYS = {"frontier": ["curve", "strength"], "frontier_differences": ["curve", "nats"], "seeds": ["strategy", "over"], "verdicts": ["judge", "criterion", "strategy"],
        "agreement": ["criterion", "judge", "other"], "win_rates": ["strategy", "opponent", "measure"], "differences": ["strategy", "opponent"],
        "rewards": ["strategy", "dimension"], "fronts": ["sweep", "strategy"]}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run")
    parser.add_argument("--no-bleu", action="store_true")
    args = parser.parse_args()
    run = Run(args.run)
    # Without divergence there is no ranking.
    tables = {"ranking": ranking(run)} if run.manifest["experiment"]["kl"] else {}
    tables |= {
        "differences": differences(run),
        "win_rates": win_rates(run),
        "rewards": rewards(run),
        "preferences": preferences(run),
        "quality": quality(run, not args.no_bleu),
        "fronts": fronts(run),
        "weights": weights(run),
    }
    if (run.folder / "tables" / "seeds.parquet").exists():
        tables["seeds"] = seeds(run)
    if run.curves:
        tables["frontier"], tables["frontier_differences"] = frontier(run)
    if run.manifest["experiment"].get("retention"):
        tables["retention"] = retention(run)
    places = dict.fromkeys(tables, run.folder / "tables")
    judged = run.folder / "judgements"
    if (judged / "pairs.parquet").exists():
        tables.update(judgements(judged, run))
    worst = 0.0
    for name, own in tables.items():
        written = pd.read_parquet(places.get(name, judged) / f"{name}.parquet")
        keys = KEYS.get(name, ["strategy"])
        if len(own) != len(written):
            sys.exit(f"{name}: {len(own)} rows here, {len(written)} there")
        if len(own) == 0:
            continue
        both = own.merge(written, on=keys, suffixes=("", "_written"), how="inner", validate="1:1")
        assert len(both) == len(own), name
        for column in (c for c in own if c not in keys):
            here, there = both[column].to_numpy(float), both[f"{column}_written"].to_numpy(float)
            if not (np.isnan(here) == np.isnan(there)).all():
                sys.exit(f"{name}.{column}: a value is missing on one side")
            scale = np.maximum(1, np.abs(there))
            distance = np.nanmax(np.abs(here - there) / scale, initial=0)
            worst = max(worst, distance)
            print(f"{name:12} {column:36} {distance:.1e}")
    print(f"largest distance {worst:.1e}")
    if worst > TOLERANCE:
        sys.exit(f"above {TOLERANCE}")


if __name__ == "__main__":
    main()
