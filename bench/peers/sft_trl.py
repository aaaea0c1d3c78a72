"""Instruction tuning beside TRL's SFTTrainer: one model, one file, rows of one length; ours, theirs, ours, theirs, ...

    python bench/peers/sft_trl.py MODEL DATA [--loam target/release/loam] [--pairs 3] [--steps 12] [--batch 4] [--seq-len 512]

Both start from the directory MODEL and read DATA ({"prompt", "completion"} or {"question", "answer"} rows). A step has
batch x seq_len positions. Ours packs conversations into rows; TRL runs as it is by default (a conversation per row, padded to
the longest of the batch) and with its own packing, and the faster of the two counts. Tokens are those that belong to a
conversation, padding is none; the first two steps of every run are not counted. Ratios come from pairs; the table gives their
median with the smallest and the largest.
"""
import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

os.environ["TRL_EXPERIMENTAL_SILENCE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
WARM_UP = 2


def ours(options, run):
    recipe = Path(options.scratch) / f"{run}.toml"
    recipe.write_text(
        f'stage = "sft"\n[model]\npath = "{options.model}"\n[data]\ntrain = ["{options.data}"]\nvalidation_fraction = 0.0\n'
        f"seq_len = {options.seq_len}\n[train]\nprecision = \"f32\"\nsteps = {options.steps}\nbatch = {options.batch}\n"
        f"micro_batch = {options.batch}\nlr = 2e-4\nsample_every = 0\neval_every = 0\ncheckpoint_every = 0\n")
    place = Path(options.scratch) / run
    done = subprocess.run([options.loam, "train", recipe, "--dir", place, "--threads", str(options.threads)],
                          capture_output=True, text=True)
    if done.returncode != 0:
        sys.exit(done.stderr)
    rows = [json.loads(line) for line in (place / "metrics.jsonl").read_text().splitlines()]
    rows = [row for row in rows if "ms" in row and "tokens_per_s" in row]
    tokens = rows[-1]["tokens"] - rows[WARM_UP - 1]["tokens"]
    return dict(tokens_per_s=tokens / sum(row["ms"] / 1e3 for row in rows[WARM_UP:]), loss=rows[-1]["loss"])


def theirs(options, packing):
    import torch
    from datasets import Dataset
    from transformers import TrainerCallback
    from transformers.trainer_callback import PrinterCallback
    from trl import SFTConfig, SFTTrainer

    torch.set_num_threads(options.threads)
    rows = [json.loads(line) for line in Path(options.data).read_text().splitlines()]
    pair = ("prompt", "completion") if "prompt" in rows[0] else ("question", "answer")
    turn = lambda role, text: [{"role": role, "content": text}]
    data = Dataset.from_list([dict(prompt=turn("user", row[pair[0]]), completion=turn("assistant", row[pair[1]])) for row in rows])

    class Clock(TrainerCallback):
        times = []

        def on_step_end(self, *_, **__):
            self.times.append(time.perf_counter())

    clock, counted = Clock(), []
    clock.times = []
    mean = sum(len(row[pair[0]]) + len(row[pair[1]]) for row in rows) / len(rows)
    # As many conversations as fill the positions of a step of ours, where one has a row to itself.
    rows_per_step = options.batch if packing else max(1, round(options.batch * options.seq_len / (mean / options.bytes_per_token)))
    arguments = SFTConfig(output_dir=options.scratch, per_device_train_batch_size=rows_per_step, max_steps=options.steps,
                          learning_rate=2e-4, logging_steps=1, save_strategy="no", report_to=[], use_cpu=True, bf16=False,
                          max_length=options.seq_len, packing=packing, packing_strategy="wrapped" if packing else "bfd",
                          gradient_checkpointing=False, dataset_num_proc=None, seed=1, disable_tqdm=True,
                          model_init_kwargs={"dtype": torch.float32})
    trainer = SFTTrainer(model=str(options.model), args=arguments, train_dataset=data, callbacks=[clock])
    trainer.remove_callback(PrinterCallback)
    inner = trainer.compute_loss

    def compute_loss(model, inputs, *rest, **more):
        mask = inputs.get("attention_mask")
        counted.append(int(mask.sum()) if mask is not None else inputs["input_ids"].numel())
        return inner(model, inputs, *rest, **more)

    trainer.compute_loss = compute_loss
    trainer.train()
    seconds = clock.times[-1] - clock.times[WARM_UP - 1]
    return dict(tokens_per_s=sum(counted[WARM_UP:]) / seconds, loss=trainer.state.log_history[-2]["loss"])


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("model")
    parser.add_argument("data")
    parser.add_argument("--loam", default="target/release/loam")
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--seq-len", type=int, default=512)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--bytes-per-token", type=float, default=3.0)
    options = parser.parse_args()
    ratios, table = [], []
    with tempfile.TemporaryDirectory() as options.scratch:
        for number in range(options.pairs):
            own = ours(options, f"run{number}")
            other = {"padded": theirs(options, False), "packed": theirs(options, True)}
            name, best = max(other.items(), key=lambda item: item[1]["tokens_per_s"])
            ratios.append(own["tokens_per_s"] / best["tokens_per_s"])
            table.append((own["tokens_per_s"], *(side["tokens_per_s"] for side in other.values()), ratios[-1]))
            print("pair {}: loam {:.0f}, TRL padded {:.0f}, packed {:.0f} tokens/s; {:.2f} times the faster".format(
                number + 1, *table[-1]))
    print(f"ratio: median {statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})")


if __name__ == "__main__":
    main()
