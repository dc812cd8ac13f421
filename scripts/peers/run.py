#!/usr/bin/env python3
"""Times mope beside transformers + peft and llama.cpp on the same weights, and prints the ratios.

    python3 -m venv /tmp/peers && /tmp/peers/bin/pip install -r scripts/peers/requirements.txt
    /tmp/peers/bin/python scripts/peers/run.py target/release/mope MODEL.gguf

Prompt 128 tokens, 128 generated, adapters of rank 8 on q, v, o and down, two threads. Measurements of the
programs alternate; each figure is the median of the rounds. llama.cpp is skipped where it is not installed.
"""

import copy
import gc
import json
import os
import statistics
import subprocess
import sys
import time

import train

THREADS = int(os.environ.get("MOPE_THREADS", "2"))
PROMPT, NEW, ROUNDS = 128, 128, 3


def mope(program, experts, sequences, weights):
    command = [program, "--json", "bench", "decode", "--experts", str(experts), "--sequences", str(sequences), "--format", weights]
    command += ["--prompt-tokens", str(PROMPT), "--new-tokens", str(NEW), "--repeat", "1"]
    out = subprocess.run(command, check=True, capture_output=True).stdout
    return json.loads(out)[0]


class Torch:
    """A LLaMA with three adapters; the experts are rows of one batch, each with its adapter's name."""

    def __init__(self, path):
        import torch
        from peft import LoraConfig, get_peft_model
        from transformers import AutoModelForCausalLM

        torch.set_num_threads(THREADS)
        torch.set_grad_enabled(False)
        folder, file = os.path.split(path)
        self.torch = torch
        base = AutoModelForCausalLM.from_pretrained(folder, gguf_file=file, dtype=torch.float32).eval()
        self.bf16 = copy.deepcopy(base).to(torch.bfloat16)
        config = LoraConfig(r=8, lora_alpha=8, target_modules=["q_proj", "v_proj", "o_proj", "down_proj"])
        self.names = [f"expert{i}" for i in range(3)]
        self.model = get_peft_model(base, config, adapter_name=self.names[0])
        for name in self.names[1:]:
            self.model.add_adapter(name, config)
        self.model.eval()
        self.ids = torch.randint(10, 40000, (1, PROMPT), generator=torch.Generator().manual_seed(0))

    def decode(self, sequences):
        """Steps per second of three experts mixed with equal weights."""
        torch = self.torch
        names = [n for n in self.names for _ in range(sequences)]
        ids = self.ids.repeat(len(names), 1)
        out = self.model(input_ids=ids, use_cache=True, logits_to_keep=1, adapter_names=names)
        start = time.perf_counter()
        for _ in range(NEW):
            logits = out.logits[:, -1].float().view(3, sequences, -1)
            mixed = logits.softmax(-1).mean(0)
            token = torch.multinomial(mixed, 1).repeat(3, 1)
            out = self.model(input_ids=token, past_key_values=out.past_key_values, use_cache=True, adapter_names=names)
        return NEW / (time.perf_counter() - start)

    def prefill(self, model):
        start = time.perf_counter()
        model(input_ids=self.ids, use_cache=True, logits_to_keep=1)
        return PROMPT / (time.perf_counter() - start)


def llama(path):
    """Tokens per second of one model; printed by a process of its own, whose threads disturb nobody."""
    from llama_cpp import Llama

    model = Llama(model_path=path, n_ctx=512, n_threads=THREADS, n_threads_batch=THREADS, verbose=False)
    model.eval(list(range(10, 10 + PROMPT)))
    start = time.perf_counter()
    for _ in range(NEW):
        model.eval([model.sample(temp=0.7)])
    print(NEW / (time.perf_counter() - start))


def llama_rate(path):
    out = subprocess.run([sys.executable, __file__, "--llama", path], capture_output=True, text=True)
    if out.returncode != 0:
        print(f"llama.cpp: exit code {out.returncode} {out.stderr[-300:]}", file=sys.stderr)
        return None
    return float(out.stdout)


def main():
    if sys.argv[1] == "--llama":
        return llama(sys.argv[2])
    program, path = sys.argv[1:3]
    peer = Torch(path)
    peer.prefill(peer.bf16), peer.decode(1)
    figures = {}

    def note(name, value):
        figures.setdefault(name, []).append(value)

    for _ in range(ROUNDS):
        for weights in ["F32", "Q8", "Q4"]:
            note(f"mope {weights} 3x1 steps/s", mope(program, 3, 1, weights)["decode_steps_per_s"])
        note("torch f32 3x1 steps/s", peer.decode(1))
        rate = llama_rate(path)
        if rate:
            note("llama.cpp Q4_1 1x1 tokens/s", rate)
        one, eight = mope(program, 1, 1, "Q8"), mope(program, 8, 1, "Q8")
        for lanes in [one, mope(program, 3, 1, "Q8"), mope(program, 4, 1, "Q8")]:
            share = lanes["weight_bytes_per_s"] / lanes["read_bytes_per_s"]
            note(f"mope Q8, {lanes['experts']} lanes: weights read per read bandwidth", share)
        note("read bandwidth, GB/s", one["read_bytes_per_s"] / 1e9)
        note("mope Q8, base and six adapters, peak GB", mope(program, 6, 1, "Q8")["peak_bytes"] / 1e9)
        note("mope Q8 1x1 steps/s", one["decode_steps_per_s"])
        note("mope Q8 8x1 steps/s", eight["decode_steps_per_s"])
        note("mope Q8 prefill tokens/s", one["prefill_tokens_per_s"])
        note("mope Q8 3x16 steps/s", mope(program, 3, 16, "Q8")["decode_steps_per_s"])
        note("torch f32 3x16 steps/s", peer.decode(16))
        note("torch bf16 prefill tokens/s", peer.prefill(peer.bf16))
        note("torch f32 prefill tokens/s", peer.prefill(peer.model.get_base_model()))
    six = 6 * 4 * sum(p.numel() for p in peer.bf16.parameters()) / 1e9
    note("six models in f32, GB of weights alone", six)
    del peer
    gc.collect()
    train.torch.set_grad_enabled(True)
    trained = train.mope(program)
    for format, dtype in train.FORMATS:
        note(f"mope {format} LoRA step, tokens/s", trained[format])
        note(f"torch {format} LoRA step, tokens/s", train.peer(path, dtype))
    median = {name: statistics.median(values) for name, values in figures.items()}
    print("| figure | median | lowest | highest |\n| --- | --: | --: | --: |")
    for name, values in figures.items():
        digits = 2 if median[name] < 10 else 1
        print(f"| {name} | " + " | ".join(f"{v:.{digits}f}" for v in [median[name], min(values), max(values)]) + " |")

    def ratio(name, a, b):
        if a in median and b in median:
            print(f"| {name} | {median[a] / median[b]:.2f} |")

    print("\n| ratio | |\n| --- | --: |")
    for weights in ["Q8", "Q4"]:
        ratio(f"three experts, one sequence, {weights} : llama.cpp, one model", f"mope {weights} 3x1 steps/s", "llama.cpp Q4_1 1x1 tokens/s")
    for weights in ["F32", "Q8", "Q4"]:
        ratio(f"three experts, one sequence, {weights} : transformers + peft f32", f"mope {weights} 3x1 steps/s", "torch f32 3x1 steps/s")
    ratio("time per token, eight experts : one (Q8)", "mope Q8 1x1 steps/s", "mope Q8 8x1 steps/s")
    ratio("3 x 16 lanes, Q8 : transformers + peft f32", "mope Q8 3x16 steps/s", "torch f32 3x16 steps/s")
    ratio("prefill, Q8 : PyTorch bf16", "mope Q8 prefill tokens/s", "torch bf16 prefill tokens/s")
    ratio("prefill, Q8 : PyTorch f32", "mope Q8 prefill tokens/s", "torch f32 prefill tokens/s")
    ratio("memory, base in Q8 and six adapters : six models in f32", "mope Q8, base and six adapters, peak GB", "six models in f32, GB of weights alone")
    for format, _ in train.FORMATS:
        ratio(f"LoRA step, {format} : PyTorch + peft", f"mope {format} LoRA step, tokens/s", f"torch {format} LoRA step, tokens/s")


if __name__ == "__main__":
    main()
