"""Adapters that Loam trained, opened by PEFT: the same logits?

    cargo build --release && python scripts/check_peft.py [LOAM]

Makes a tiny model and trains one adapter per method on the garden's conversations (two steps of a large learning rate, so that
nothing is at its start), opens each with Python's peft over the same model in transformers, and compares the logits with those
of `loam model logits --adapter`. Also compares what `loam model merge` writes. Needs torch, transformers, peft.
"""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"

import peft
import torch
from transformers import AutoModelForCausalLM

LOAM = sys.argv[1] if len(sys.argv) > 1 else str(Path(__file__).resolve().parent.parent / "target/release/loam")
TOKENS = [5, 17, 3, 40, 8, 99, 21]
FAMILIES = {
    "llama": 'family = "llama"\nhidden_size = 32\nintermediate_size = 48\nnum_hidden_layers = 2\nnum_attention_heads = 4\n'
    "num_key_value_heads = 2\nmax_position_embeddings = 256\n",
    "gpt2": 'family = "gpt2"\nn_embd = 32\nn_layer = 2\nn_head = 4\nn_positions = 256\n',
}
METHODS = {
    "lora": 'method = "lora"\nr = 4\nalpha = 16.0\ntargets = ["all-linear"]',
    "lora patterns": 'method = "lora"\nr = 2\nrslora = true\nrank_pattern = { %s = 4 }',
    "dora": 'method = "dora"\nr = 2',
    "pissa": 'method = "pissa"\nr = 2',
    "olora": 'method = "olora"\nr = 2',
    "adalora": 'method = "adalora"\nr = 3\ntarget_r = 2',
    "vera": 'method = "vera"\nr = 16',
    "ia3": 'method = "ia3"',
    "prefix": 'method = "prefix"\nvirtual_tokens = 4',
    "prefix, network": 'method = "prefix"\nvirtual_tokens = 4\nprojection = 16',
    "prompt": 'method = "prompt"\nvirtual_tokens = 4',
    "p-tuning, MLP": 'method = "p_tuning"\nvirtual_tokens = 4',
    "p-tuning, LSTM": 'method = "p_tuning"\nvirtual_tokens = 4\nencoder = "lstm"\nencoder_width = 8',
    "token rows": 'method = "lora"\nr = 2\ntrainable_tokens = ["<|im_start|>", "<|im_end|>"]',
    "modules": 'method = "lora"\nr = 2\nmodules_to_save = ["lm_head"]',
}
VIRTUAL = ("prefix", "prompt", "p-tuning")


def loam(*args):
    done = subprocess.run([LOAM, *map(str, args)], capture_output=True, text=True)
    if done.returncode != 0:
        raise SystemExit(f"loam {' '.join(map(str, args))}:\n{done.stderr}")
    return done.stdout


def train(work, name, text):
    recipe = work / f"{name}.toml"
    recipe.write_text(text)
    return Path(loam("train", recipe, "--dir", work / name).strip())


def logits(model, *more):
    out = loam("model", "logits", model, "--tokens", ",".join(map(str, TOKENS)), "--json", *more)
    return torch.tensor(json.loads(out)["logits"])


def theirs(model):
    with torch.no_grad():
        return model.eval()(input_ids=torch.tensor([TOKENS])).logits[0, -len(TOKENS):]


def main():
    worst = 0.0
    with tempfile.TemporaryDirectory() as scratch:
        work = Path(scratch)
        os.environ["LOAM_HOME"] = str(work / "home")
        loam("data", "garden", work / "garden", "--train-bytes", 20000, "--chats", 40, "--questions", 5, "--examples", 10)
        settings = f'precision = "f32"\nbatch = 2\neval_every = 0\nsample_every = 0\n'
        print(f"| model | method | trained by Loam | by PEFT | logits | merged by Loam |\n|---|---|---|---|---|---|")
        for family, fields in FAMILIES.items():
            base = train(work, family, f'stage = "pretrain"\n[model]\n{fields}[tokenizer]\nkind = "byte_bpe"\nvocab_size = 500\n'
                         f'[data]\ntrain = ["{work}/garden/train.txt"]\nseq_len = 64\n[train]\nsteps = 5\nlr = 1e-2\n{settings}') / "model"
            for number, (name, section) in enumerate(METHODS.items()):
                section = section.replace("%s", "v_proj" if family == "llama" else "c_attn")
                run = train(work, f"{family}-{number}", f'stage = "sft"\n[model]\npath = "{base}"\n[data]\n'
                            f'train = ["{work}/garden/chats.jsonl"]\nseq_len = 192\n[peft]\n{section}\n[train]\nsteps = 4\nlr = 3e-2\n'
                            f'warmup = 0.0\n{settings}')
                adapter = run / "adapter"
                ours = logits(base, "--adapter", adapter)
                model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
                model = peft.PeftModel.from_pretrained(model, adapter, is_trainable=not name.startswith(VIRTUAL))
                gap = (ours - theirs(model)).abs().max().item()
                moved = (ours - logits(base)).abs().max().item()
                count = model.get_nb_trainable_parameters()[0] if model.training or not name.startswith(VIRTUAL) else None
                card = (adapter / "README.md").read_text()
                trained = card.split("| trained parameters | ")[1].split(" ")[0]
                merged = "-"
                # A head that is trained apart from the vectors that it is tied to is no plain model (gpt2).
                if not name.startswith(VIRTUAL) and not (name == "modules" and family == "gpt2"):
                    loam("model", "merge", base, adapter, work / f"merged-{family}-{number}")
                    plain = AutoModelForCausalLM.from_pretrained(work / f"merged-{family}-{number}", dtype=torch.float32)
                    difference = (ours - theirs(plain)).abs().max().item()
                    worst, merged = max(worst, difference), f"{difference:.1e}"
                assert moved > 1e-3, f"{name}: the adapter does nothing"
                worst = max(worst, gap)
                print(f"| {family} | {name} | {trained} | {count if count is not None else '-'} | {gap:.1e} | {merged} |", flush=True)
    print(f"\nlargest difference {worst:.1e}")
    sys.exit(worst > 1e-4)


if __name__ == "__main__":
    main()
