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
from scipy.special import expit, xlogy
from scipy.stats import norm
from uniseg import wordbreak

TOLERANCE = 1e-9
PRIOR = 0.5  # wins that every pair is given each way


class Run:
    def __init__(self, folder):
        self.folder = Path(folder)
        self.manifest = json.loads((self.folder / "manifest.json").read_text())
        self.strategies = list(self.manifest["experiment"]["strategies"])
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
        self.signs = 1.0 - 2.0 * np.stack(stored.turned.to_numpy())
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
        low, high = np.percentile(drawn[np.isfinite(drawn)], [2.5, 97.5])
        return top.sum() / bottom.sum(), low, high

    def mean(self, frame, values):
        keep = np.isfinite(values)
        return self.ratio(frame.cluster.to_numpy()[keep], values[keep], np.ones(keep.sum()))

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
            least = abs(sums.sum()) - 1e-9 * np.abs(sums).sum()
            p = (1 + (np.abs(run.signs @ sums) >= least).sum()) / (1 + len(run.signs))
            means = pd.Series(delta).groupby(pairs.cluster.to_numpy()).mean()
            z = norm.ppf(0.975) + norm.ppf(0.8)
            needed = np.ceil((z / 0.02) ** 2 * means.var(ddof=1)) if len(means) > 1 else np.nan
            rows.append((a, b, mean, low, high, p, needed))
    names = ["strategy", "opponent", "difference", "low", "high", "p", "prompts_needed"]
    table = pd.DataFrame(rows, columns=names)
    table["p_holm"] = holm(table.p.to_numpy()) if len(table) else []
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
    low, high = np.percentile(drawn, [2.5, 97.5], axis=0)
    to_first = differences(run)
    to_first = to_first[to_first.opponent == run.strategies[0]].set_index("strategy")
    rate = win_rates(run)
    rate = rate[rate.measure == "utility"].groupby("strategy").win_rate.mean()
    rows = []
    for i, s in enumerate(run.strategies):
        own = run.of(s)
        row = {"strategy": s, "responses": len(own), "win_rate": rate.get(s, np.nan)}
        row.update(zip(["utility", "utility_low", "utility_high"], run.mean(own, own.utility.to_numpy())))
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
            kl = run.ratio(c, own.kl_sum.to_numpy(), length)
            row.update(zip(["kl_per_token", "kl_per_token_low", "kl_per_token_high"], kl))
            row["kl_per_response"] = own.kl_sum.mean()
            row["base_perplexity"] = np.exp(own.nll.sum() / length.sum())
        ended = run.mean(own, own.ended.to_numpy().astype(float))
        row.update(zip(["ended", "ended_low", "ended_high"], ended))
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

            def points(weights):
                out = []
                for p, _ in preferences:
                    mine = own[own.preference == p]
                    w = weights[mine.cluster]
                    out.append([np.average(mine[f"reward_{d}"] * sign, weights=w) for d, sign in directions])
                return np.array(out)

            front = points(np.ones(len(run.prompts)))
            product = np.mean([np.dot(f, [abs(own[d]) for d, _ in directions]) for f, (_, own) in zip(front, preferences)])
            found.append((s, front, volume(-front), product))
        every = np.concatenate([front for _, front, _, _ in found])
        for s, front, own_volume, product in found:
            beaten = [((every >= p).all(1) & (every > p).any(1)).any() for p in front]
            rows.append((name, s, len(front), len(front) - sum(beaten), own_volume, product))
    return pd.DataFrame(rows, columns=["sweep", "strategy", "points", "on_front", "hypervolume", "inner_product"])


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
        return np.array([top.sum() / bottom.sum(), *np.percentile(drawn, [2.5, 97.5])])

    rows = []
    for s in run.strategies:
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
    entropy = lambda w: -xlogy(w, w).sum()
    rows = []
    for s in run.strategies:
        own = run.generations[run.generations.strategy == s]
        experts = sorted({e for row in own.experts for e in row}, key=str.encode)
        below = set()
        for _, row in own.iterrows():
            w = np.array(row.weights, float).reshape(-1, len(row.experts))
            below |= {e for e, low in zip(row.experts, (w < 0).any(0)) if low}
        # What is left for the base where gates go past the experts.
        experts = [e for e in experts if e != "base" or e not in below]
        if len(experts) < 2 or below - {"base"}:
            continue
        within, sums = [], {}
        for _, row in own.iterrows():
            w = np.zeros((len(row.tokens), len(experts)))
            columns = np.array(row.weights, float).reshape(len(row.tokens), -1).T
            for e, column in zip(row.experts, columns):
                if e in experts:
                    w[:, experts.index(e)] = column
            each = w / w.sum(1, keepdims=True)
            mean = w.sum(0) / w.sum()
            within.append(entropy(mean) - np.mean([entropy(e) for e in each]))
            sums[row.preference] = sums.get(row.preference, 0) + w.sum(0)
        given = {p: v / v.sum() for p, v in sums.items()}
        mean = np.mean(list(given.values()), axis=0)
        information = entropy(mean) - np.mean([entropy(g) for g in given.values()])
        row = {"strategy": s, "preference_information": max(information, 0), "token_information": max(np.mean(within), 0)}
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
            row.update({f"{what}_sd": each.std(ddof=1), f"{what}_lowest": each.min(), f"{what}_highest": each.max()})
            return both

        keep = lambda frame, i: frame if i is None else frame[frame["sample"] == i]
        own = [keep(run.of(s), i) for s, i in members]
        summarise("utility", [f.assign(value=f.utility) for f in own])
        if all(s != first for s, _ in members):
            pairs = [keep(run.pairs(s, first, "utility"), i) for s, i in members]
            both = summarise("difference", [f.assign(value=f.value - f.value_other) for f in pairs])
            sums = np.bincount(both.cluster, both.value, len(run.prompts))
            least = abs(sums.sum()) - 1e-9 * np.abs(sums).sum()
            row["p"] = (1 + (np.abs(run.signs @ sums) >= least).sum()) / (1 + len(run.signs))
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


def judgements(folder):
    """The tables of judges, from the verdict on every pair."""
    pairs = pd.read_parquet(folder / "pairs.parquet")
    prompts = sorted(pairs.prompt.unique(), key=lambda p: p.encode())
    draws = np.stack(pd.read_parquet(folder / "resamples.parquet").prompts.to_numpy())
    value = {"First": 1.0, "Second": 0.0, "Tie": 0.5, "Unreadable": np.nan}
    own, swapped = pairs.own_first.map(value), 1 - pairs.own_second.map(value)
    pairs["won"] = np.where(own == swapped, own, np.where(own.isna() | swapped.isna(), np.nan, 0.5))
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
            low, high = np.percentile(drawn[np.isfinite(drawn)], [2.5, 97.5])
            row.update(win_rate=read.won.mean(), win_rate_low=low, win_rate_high=high)
        row["length_controlled"] = length_controlled(read.won.to_numpy(), read.longer.to_numpy())
        row.update(ties=(g.won == 0.5).mean(), flips=g.flip.mean(), unreadable=g.won.isna().mean())
        rows.append(row)
    verdicts = pd.DataFrame(rows)
    place = ["strategy", "preference", "prompt", "sample"]
    rows = []
    for criterion, g in pairs.groupby("criterion", sort=False):
        said = {"utility": g.drop_duplicates(place).set_index(place).utility}
        said.update({j: own.set_index(place).won.dropna() for j, own in g.groupby("judge", sort=False)})
        for b, a in ((b, a) for i, b in enumerate(said) for a in list(said)[:i]):
            both = pd.concat([said[a], said[b]], axis=1, join="inner", keys=["a", "b"])
            same = (both.a == both.b).mean() if len(both) else np.nan
            chance = sum((both.a == v).mean() * (both.b == v).mean() for v in [0, 0.5, 1]) if len(both) else 1
            kappa = (same - chance) / (1 - chance) if chance < 1 else np.nan
            rows.append((criterion, a, b, same, kappa, len(both)))
    agreement = pd.DataFrame(rows, columns=["criterion", "judge", "other", "agreement", "kappa", "pairs"])
    return {"verdicts": verdicts, "agreement": agreement}


KEYS = {"seeds": ["strategy", "over"], "verdicts": ["judge", "criterion", "strategy"],
        "agreement": ["criterion", "judge", "other"], "win_rates": ["strategy", "opponent", "measure"], "differences": ["strategy", "opponent"],
        "rewards": ["strategy", "dimension"], "fronts": ["sweep", "strategy"]}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run")
    parser.add_argument("--no-bleu", action="store_true")
    args = parser.parse_args()
    run = Run(args.run)
    tables = {
        "ranking": ranking(run),
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
    if run.manifest["experiment"].get("retention"):
        tables["retention"] = retention(run)
    places = dict.fromkeys(tables, run.folder / "tables")
    judged = run.folder / "judgements"
    if (judged / "pairs.parquet").exists():
        tables.update(judgements(judged))
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
