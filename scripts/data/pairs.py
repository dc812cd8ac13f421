#!/usr/bin/env python3
"""Turns public files into JSON lines with `prompt`, `chosen` and `rejected`, as trainings read them.

    pairs.py instructions FILE.json OUT.jsonl    # [{instruction, input, chosen, rejected}, ..]
    pairs.py sentences FILE.txt OUT.jsonl        # two lines a pair, the harder first, `*******` between pairs

Pairs whose longer text is the chosen one and pairs whose shorter text is are kept in equal numbers, so that length
says nothing about which is chosen. Needs Python 3.9 and nothing else.
"""

import json
import random
import re
import sys

# Consecutive pairs of sentences come from the same article; two of them are a passage.
SENTENCES = 2
LIMIT = 800


def words(text):
    return len(re.findall(r"\w+", text))


def instructions(path):
    with open(path, encoding="utf-8") as file:
        for row in json.load(file):
            prompt = "\n".join(part for part in (row["instruction"], row.get("input", "")) if part)
            yield prompt, row["chosen"], row["rejected"]


def sentences(path):
    with open(path, encoding="utf-8-sig") as file:
        blocks = [block.strip().split("\n") for block in re.split(r"^\*+\s*$", file.read(), flags=re.M)]
    both = [block for block in blocks if len(block) == 2]
    for start in range(0, len(both) - SENTENCES + 1, SENTENCES):
        hard, plain = zip(*both[start : start + SENTENCES])
        yield "Tell me about it.", " ".join(s.strip() for s in hard), " ".join(s.strip() for s in plain)


def main():
    if len(sys.argv) != 4 or sys.argv[1] not in ("instructions", "sentences"):
        sys.exit(__doc__)
    read = instructions if sys.argv[1] == "instructions" else sentences
    longer, shorter, even = [], [], []
    for prompt, chosen, rejected in read(sys.argv[2]):
        if not chosen.strip() or not rejected.strip() or chosen == rejected:
            continue
        difference = words(chosen) - words(rejected)
        place = longer if difference > 0 else shorter if difference < 0 else even
        place.append({"prompt": prompt, "chosen": chosen, "rejected": rejected})
    draw = random.Random(1)
    count = min(len(longer), len(shorter))
    kept = draw.sample(longer, count) + draw.sample(shorter, count) + even
    draw.shuffle(kept)
    with open(sys.argv[3], "w", encoding="utf-8") as out:
        out.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in kept[:LIMIT])
    print(f"{sys.argv[3]}: {len(kept[:LIMIT])} pairs of {len(longer) + len(shorter) + len(even)}")


if __name__ == "__main__":
    main()
