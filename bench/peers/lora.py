"""Training a LoRA adapter: `loam train` beside PEFT on transformers, measured in turns: ours, theirs, ours, theirs, ...

    python bench/peers/lora.py MODEL --text FILE [--loam target/release/loam] [--pairs 3] [--threads 2]
                               [--rows 4] [--length 256] [--rank 16] [--steps 6] [--precision bf16] [--recompute]

MODEL is a Hugging Face directory with a tokenizer. Both sides open it in a new process each time, put LoRA on every linear
layer but the head, and take steps of AdamW on `rows` sequences of `length` tokens: ours of the text, theirs of random ones,
which take as long. Theirs is in the precision asked, ours computes in it. A side's speed is the median of its steps but the
first; its memory is the most that its process has had. Timings on a shared machine drift, so only the two halves of a pair are
divided by each other; the median of the ratios is given with the range.
"""
import argparse
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path


def options():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--text")
    parser.add_argument("--loam", default="target/release/loam")
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rows", type=int, default=4)
    parser.add_argument("--length", type=int, default=256)
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--steps", type=int, default=6, help="two or more: the first is not counted")
    parser.add_argument("--precision", choices=["f32", "bf16"], default="bf16")
    parser.add_argument("--recompute", action="store_true", help="make activations again in backward, on both sides")
    parser.add_argument("--peer", action="store_true", help=argparse.SUPPRESS)
    return parser.parse_args()


def ours(o):
    """Tokens per second and MiB of one run."""
    recipe = f"""stage = "pretrain"
[model]
path = {json.dumps(o.model)}
[data]
train = [{json.dumps(o.text)}]
seq_len = {o.length}
validation_fraction = 0.002
[peft]
method = "lora"
targets = ["all-linear"]
r = {o.rank}
alpha = {2.0 * o.rank}
[train]
precision = "{o.precision}"
recompute = "{"block" if o.recompute else "none"}"
lr = 2e-4
batch = {o.rows}
steps = {o.steps}
clip = 1.0
eval_every = 0
sample_every = 0
checkpoint_every = {o.steps + 1}
"""
    with tempfile.TemporaryDirectory() as place:
        file, run = Path(place, "lora.toml"), Path(place, "run")
        file.write_text(recipe)
        command = [o.loam, "train", file, "--dir", run, "--threads", str(o.threads)]
        # What it says is worth reading where it fails.
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode != 0:
            sys.exit(f"{' '.join(map(str, command))}:\n{done.stderr}")
        rows = [json.loads(line) for line in Path(run, "metrics.jsonl").read_text().splitlines()]
    steps = [row for row in rows if "loss" in row]
    return statistics.median(row["tokens_per_s"] for row in steps[1:]), steps[-1]["rss_mib"]


def theirs(o):
    """The same of the peer, in a process of its own."""
    answer = subprocess.run([sys.executable, __file__, *sys.argv[1:], "--peer"], capture_output=True, text=True)
    if answer.returncode != 0:
        sys.exit(f"the peer:\n{answer.stderr}")
    found = json.loads(answer.stdout.splitlines()[-1])
    return found["tokens_per_s"], found["mib"]


def peer(o):
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    torch.set_num_threads(o.threads)
    dtype = {"f32": torch.float32, "bf16": torch.bfloat16}[o.precision]
    model = AutoModelForCausalLM.from_pretrained(o.model, dtype=dtype)
    if o.recompute:
        model.gradient_checkpointing_enable()
        model.enable_input_require_grads()
    config = LoraConfig(r=o.rank, lora_alpha=2 * o.rank, target_modules="all-linear", task_type="CAUSAL_LM")
    model = get_peft_model(model, config).train()
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=2e-4, weight_decay=0.0)
    tokens = torch.randint(0, 1000, (o.rows, o.length), generator=torch.Generator().manual_seed(1))
    seconds = []
    for _ in range(o.steps):
        start = time.time()
        model(input_ids=tokens, labels=tokens).loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        seconds.append(time.time() - start)
    mib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    print(json.dumps({"tokens_per_s": o.rows * o.length / statistics.median(seconds[1:]), "mib": mib}))


def main():
    o = options()
    if o.peer:
        return peer(o)
    if not o.text:
        sys.exit("--text FILE: what ours is trained on")
    pairs = [(ours(o), theirs(o)) for _ in range(o.pairs)]
    for (speed, mib), (their_speed, their_mib) in pairs:
        print(f"loam {speed:.0f} tokens/s, {mib} MiB; peft {their_speed:.0f} tokens/s, {their_mib} MiB", file=sys.stderr)
    ratios = sorted(a[0] / b[0] for a, b in pairs)
    of = lambda side, what: statistics.median(pair[side][what] for pair in pairs)
    print("| precision | loam tokens/s | PEFT tokens/s | ratio, median (range) | MiB |")
    print("|---|---|---|---|---|")
    print(f"| {o.precision}{', recomputed' if o.recompute else ''} | {of(0, 0):.0f} | {of(1, 0):.0f} | "
          f"**{statistics.median(ratios):.2f}** ({ratios[0]:.2f} to {ratios[-1]:.2f}) | {of(0, 1):.0f} / {of(1, 1):.0f} |")


if __name__ == "__main__":
    main()
