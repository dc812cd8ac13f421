"""Times a LoRA step of mope beside PyTorch + peft: the same model, shape of adapter and batch.

    python scripts/peers/train.py target/release/mope [DEVICE ...]

Devices are those of the build (default: Cpu). Prints tokens per second (forward, backward, AdamW; medians) and the ratios. Needs torch, transformers, peft, gguf.
"""

import json
import os
import statistics
import subprocess
import sys
import time

import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

SEQUENCES, PROMPT, NEW, REPEAT = 16, 48, 48, 5
FORMATS = [("F32", torch.float32), ("Bf16", torch.bfloat16)]


def mope(binary, device):
    command = [binary, "--json", "--device", device, "bench", "train", "--format", "F32,Bf16", "--sequences", str(SEQUENCES),
               "--prompt-tokens", str(PROMPT), "--new-tokens", str(NEW), "--repeat", str(REPEAT)]
    rows = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    return {row["format"]: row["train_tokens_per_s"] for row in rows}


def peer(path, dtype):
    folder, name = os.path.split(path)
    base = AutoModelForCausalLM.from_pretrained(folder, gguf_file=name, dtype=torch.float32).to(dtype)
    config = LoraConfig(r=8, lora_alpha=16, target_modules=["q_proj", "v_proj", "o_proj", "down_proj"])
    model = get_peft_model(base, config)
    optimiser = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-4)
    ids = torch.randint(0, 40_000, (SEQUENCES, PROMPT + NEW))
    labels = ids.clone()
    labels[:, :PROMPT] = -100
    times = []
    for _ in range(REPEAT + 1):
        start = time.perf_counter()
        loss = model(input_ids=ids, labels=labels).loss
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        times.append(time.perf_counter() - start)
    return ids.numel() / statistics.median(times[1:])


def main():
    binary = sys.argv[1]
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    command = [binary, "--json", "fetch", "smollm2-135m-instruct"]
    path = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)["path"]
    if os.path.isdir(path):
        path = next(os.path.join(path, f) for f in os.listdir(path) if f.endswith(".gguf"))
    ours = {device: mope(binary, device) for device in sys.argv[2:] or ["Cpu"]}
    for name, dtype in FORMATS:
        other = peer(path, dtype)
        print(f"{name}: PyTorch + peft {other:.0f} tokens/s", flush=True)
        for device, rates in ours.items():
            print(f"{name} on {device}: mope {rates[name]:.0f} tokens/s, ratio {rates[name] / other:.2f}", flush=True)


if __name__ == "__main__":
    main()
