#!/usr/bin/env python3
"""Runs backends.ron on every device of a build and prints one table.

    experiments/backends/run.py target/release/mope [DEVICE ...]

Python's standard library is enough. Each device's run folder is runs/backends/<device>.
"""

import csv
import json
import pathlib
import subprocess
import sys

HERE = pathlib.Path(__file__).resolve().parent


def main():
    mope = sys.argv[1]
    ask = [mope, "--json"]
    known = json.loads(subprocess.run(ask + ["devices"], check=True, capture_output=True).stdout)
    devices = sys.argv[2:] or [d["device"] for d in known["devices"] if d["error"] is None]
    responses = {}
    print("| device | strategy | utility | same responses as the first device | tokens/s |")
    print("| --- | --- | --: | --: | --: |")
    for device in devices:
        folder = pathlib.Path("runs/backends") / "".join(c if c.isalnum() else "_" for c in device)
        command = ["--device", device, "run", str(HERE / "backends.ron"), "--out", str(folder)]
        subprocess.run([mope] + command, check=True, stdout=subprocess.DEVNULL)
        with open(folder / "tables/cost.csv", newline="") as file:
            rates = {r["strategy"]: float(r["tokens_per_second"] or "nan") for r in csv.DictReader(file)}
        with open(folder / "tables/responses.csv", newline="") as file:
            own = {(r["strategy"], r["preference"], r["prompt"]): r["response"] for r in csv.DictReader(file)}
        responses[device] = own
        first = responses[devices[0]]
        with open(folder / "tables/ranking.csv", newline="") as file:
            for row in csv.DictReader(file):
                keys = [k for k in own if k[0] == row["strategy"]]
                same = sum(own[k] == first[k] for k in keys)
                rate = rates[row["strategy"]]
                print(f"| {device} | {row['strategy']} | {float(row['utility']):.4f} | {same} of {len(keys)} | {rate:.1f} |")


if __name__ == "__main__":
    main()
