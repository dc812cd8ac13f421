"""The document of run.sh as a table, with the tiny models' numbers compared with the processor's.

    table.py OUT.json

Ends with 1 where they differ by more than 1e-4 nats, or a training's last loss by more than 1e-3.
"""

import json
import sys

document = json.load(open(sys.argv[1]))
device = document["device"]
members = {name: value for name, value in document.items() if isinstance(value, dict)}
print(f"{device}; {document['card'] or 'no NVIDIA card'}; {document['processor']}; {document['date']}\n")

wrong = False
for name, member in members.items():
    kind, _, rest = name.partition(" ")
    if kind not in ("parity", "training") or not rest.endswith(device):
        continue
    other = members[name.removesuffix(device) + "Cpu"]
    if "result" not in member or "result" not in other:
        said = member.get("said", other.get("said"))
        print(f"{name}: failed: {said}")
        wrong = True
        continue
    if kind == "parity":
        pairs = zip(member["result"]["log_probs"], other["result"]["log_probs"], strict=True)
        difference, limit = max(abs(a - b) for a, b in pairs), 1e-4
    else:
        losses = [m["result"]["last"]["loss"] for m in (member, other)]
        difference, limit = abs(losses[0] - losses[1]), 1e-3
    wrong |= not difference <= limit
    print(f"{name}: differs by {difference:.1e} (at most {limit:.0e})")

print("\n| measured | format | lanes | decode, steps/s | prefill or training, tokens/s | memory, GB |")
print("|---|---|--:|--:|--:|--:|")
for name, member in members.items():
    if name.split(" ")[0] not in ("decode", "train", "records"):
        continue
    if "result" not in member:
        print(f"| {name} | | | failed: {member['said']} | | |")
        continue
    for row in member["result"]:
        lanes = row["sequences"] * row.get("experts", 1)
        steps = row.get("decode_steps_per_s")
        tokens = row.get("prefill_tokens_per_s", row.get("train_tokens_per_s"))
        shown = [f"{v:.1f}" if v is not None else "" for v in (steps, tokens)]
        memory = row.get("peak_bytes", 0) / 1e9
        print(f"| {name} | {row.get('format', '')} | {lanes} | {shown[0]} | {shown[1]} | {memory:.1f} |")
sys.exit(wrong)
