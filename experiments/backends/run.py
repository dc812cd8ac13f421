#!/usr/bin/env python3
"""Runs backends.ron and makes the trainings adapter.ron and pcm.ron on every device of a build, and prints one table.

    experiments/backends/run.py target/release/mope [DEVICE ...]

Python's standard library is enough. Folders are runs/backends/<device>; what is there already is made again.
"""

import csv
import json
import pathlib
import shutil
import subprocess
import sys
import time

HERE = pathlib.Path(__file__).resolve().parent
TRAININGS = ["adapter", "pcm"]


def table(path):
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def run(mope, device, folder):
    """The experiment: per strategy its utility, its responses, and tokens per second."""
    command = ["--device", device, "run", str(HERE / "backends.ron"), "--out", str(folder)]
    subprocess.run([mope] + command, check=True, stdout=subprocess.DEVNULL)
    rates = {r["strategy"]: float(r["tokens_per_second"] or "nan") for r in table(folder / "tables/cost.csv")}
    responses = {}
    for row in table(folder / "tables/responses.csv"):
        responses.setdefault(row["strategy"], {})[row["preference"], row["prompt"]] = row["response"]
    utilities = {r["strategy"]: float(r["utility"]) for r in table(folder / "tables/ranking.csv")}
    return {s: (utilities[s], responses[s], rates[s]) for s in utilities}


def train(mope, device, name, folder):
    """A training: the loss of every step, and seconds."""
    start = time.perf_counter()
    command = ["--device", device, "train", str(HERE / f"{name}.ron"), "--out", str(folder)]
    subprocess.run([mope] + command, check=True, stdout=subprocess.DEVNULL)
    losses = [float(row["loss"]) for row in table(folder / "metrics.csv")]
    return losses, time.perf_counter() - start


def main():
    mope = sys.argv[1]
    ask = [mope, "--json"]
    known = json.loads(subprocess.run(ask + ["devices"], check=True, capture_output=True).stdout)
    devices = sys.argv[2:] or [d["device"] for d in known["devices"] if d["error"] is None]
    first = {}
    print("| device | what | result | beside the first device | speed |")
    print("| --- | --- | --: | --: | --: |", flush=True)
    for device in devices:
        folder = pathlib.Path("runs/backends") / "".join(c if c.isalnum() else "_" for c in device)
        shutil.rmtree(folder, ignore_errors=True)
        for strategy, (utility, responses, rate) in run(mope, device, folder / "run").items():
            reference = first.setdefault(strategy, responses)
            same = sum(responses[key] == reference[key] for key in responses)
            difference = f"{same} of {len(responses)} responses equal"
            print(f"| {device} | `{strategy}` | utility {utility:.4f} | {difference} | {rate:.1f} tokens/s |", flush=True)
        for name in TRAININGS:
            losses, seconds = train(mope, device, name, folder / name)
            reference = first.setdefault(name, losses)
            worst = max(abs(a - b) for a, b in zip(losses, reference, strict=True))
            difference = f"losses differ by {worst:.1e} at most"
            print(f"| {device} | training `{name}` | loss {losses[-1]:.4f} | {difference} | {seconds:.1f} s |", flush=True)


if __name__ == "__main__":
    main()
