"""One table: what each way to adapt a small model costs and gains on a second task.

    cargo build --release && python scripts/bench_peft.py DIR [LOAM]

DIR is where `scripts/align_garden.sh` has left its garden and the SFT model of seed 1. That answers questions about the garden; the
second task is to say what a sentence is about (one of six topics), in its own chat format. Every method trains on the same rows
for the same steps, with a learning rate of its kind's. Accuracy is that of `loam eval --answers` on held-out sentences, time
that of all threads together, memory the process's peak. ONLY=LoRA,prefix takes some of the methods, STEPS sets the length, LR another
learning rate, THREADS the threads.
"""

import json
import os
import resource
import subprocess
import sys
import tempfile
from pathlib import Path

DIR = Path(sys.argv[1])
LOAM = sys.argv[2] if len(sys.argv) > 2 else str(Path(__file__).resolve().parent.parent / "target/release/loam")
STEPS = int(os.environ.get("STEPS", 200))
ONLY = os.environ.get("ONLY", "").split(",") if os.environ.get("ONLY") else None
THREADS = ["--threads", os.environ["THREADS"]] if os.environ.get("THREADS") else []
ALL = 'targets = ["all-linear"]'
METHODS = {
    "full fine-tuning": (None, 1e-3),
    "LoRA r8, all": (f'method = "lora"\nalpha = 16.0\n{ALL}', 5e-3),
    "LoRA+ r8, all": (f'method = "lora"\nalpha = 16.0\nlr_ratio = 8.0\n{ALL}', 2e-3),
    "DoRA r8, all": (f'method = "dora"\nalpha = 16.0\n{ALL}', 5e-3),
    "PiSSA r8, all": (f'method = "pissa"\n{ALL}', 2e-3),
    "AdaLoRA, all": (f'method = "adalora"\nalpha = 16.0\n{ALL}', 5e-3),
    "VeRA r256, all": (f'method = "vera"\n{ALL}', 2e-2),
    "QLoRA q8_0 r8, all": (f'method = "lora"\nalpha = 16.0\nquant = "q8_0"\n{ALL}', 5e-3),
    "IA3": ('method = "ia3"', 3e-2),
    "prefix, 20 of a text": ('method = "prefix"\ntext = "Answer the question in one short sentence."', 2e-2),
    "P-tuning, 20": ('method = "p_tuning"', 3e-2),
    "P-tuning, 20, LSTM": ('method = "p_tuning"\nencoder = "lstm"', 1e-2),
    "prompt tuning, 20": ('method = "prompt"', 3e-2),
    "Houlsby /4": ('method = "houlsby"\nreduction = 4.0', 5e-3),
    "Pfeiffer /4": ('method = "pfeiffer"\nreduction = 4.0', 5e-3),
    "parallel /2": ('method = "parallel"', 2e-3),
}


def loam(*args):
    done = subprocess.run([LOAM, *map(str, args), *THREADS], capture_output=True, text=True)
    if done.returncode != 0:
        raise SystemExit(f"loam {' '.join(map(str, args))}:\n{done.stderr}")
    return done.stdout


def spent():
    """Seconds of computing that all programs started so far have taken: on a busy machine as on an idle one."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def rows(work, split):
    """The sentences of a split as questions with answers."""
    path = work / f"{split}.jsonl"
    with (DIR / f"garden/topics-{split}.jsonl").open() as source, path.open("w") as out:
        for row in map(json.loads, source):
            row = {"question": f"What is this about? {row['text']}", "answer": f"{row['label']}."}
            out.write(json.dumps(row) + "\n")
    return path


def main():
    base = DIR / "sft-garden-s1/model"
    with tempfile.TemporaryDirectory() as scratch:
        work = Path(scratch)
        train, valid = rows(work, "train"), rows(work, "valid")
        ask = ("--answers", valid, "--pattern", "[a-z]+", "--max-tokens", 8, "--json")
        right = lambda model, *more: json.loads(loam("eval", model, *ask, *more))["right"]
        print("| method | learning rate | held-out loss | right | trained | CPU s | peak MiB |\n|---|---|---|---|---|---|---|")
        print(f"| as it was | | | {100 * right(base):.1f} % | 0 | | |", flush=True)
        for number, (name, (section, usual)) in enumerate(METHODS.items()):
            lr = float(os.environ.get("LR", usual))
            if ONLY and not any(part in name for part in ONLY):
                continue
            recipe = work / f"{number}.toml"
            peft = f"[peft]\n{section}\n" if section else ""
            recipe.write_text(
                f'stage = "sft"\n[model]\npath = "{base}"\n[data]\ntrain = ["{train}"]\nvalidation = ["{valid}"]\n'
                f"{peft}[train]\nsteps = {STEPS}\nlr = {lr}\nbatch_tokens = 1024\nweight_decay = 0.0\neval_every = 0\n"
                "sample_every = 0\ncheckpoint_every = 0\n"
            )
            start = spent()
            run = Path(loam("train", recipe, "--dir", work / f"run{number}").strip())
            seconds = spent() - start
            news = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
            peak = max(row.get("rss_mib", 0) for row in news)
            loss = [row["eval_loss"] for row in news if "eval_loss" in row][-1]
            adapter = run / "adapter"
            if section:
                share = right(base, "--adapter", adapter)
                trained = (adapter / "README.md").read_text().split("| trained parameters | ")[1].split(" ")[0]
            else:
                share = right(run / "model")
                trained = json.loads(loam("model", "show", base, "--json"))["footprint"]["parameters"]
            print(f"| {name} | {lr:g} | {loss:.4f} | {100 * share:.1f} % | {trained} | {seconds:.1f} | {peak:.0f} |", flush=True)


if __name__ == "__main__":
    main()
