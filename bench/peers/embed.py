"""`loam embed` beside PyTorch on a sentence encoder, measured in turns: ours, theirs, ours, theirs, ...

    python bench/peers/embed.py MODEL --text FILE... [--loam target/release/loam] [--pairs 5] [--threads 2]

MODEL is a directory in the sentence-transformers layout. The texts are pieces of FILEs (plain text, or JSON lines): a
mixed set of 5 to 200 tokens and a set of short ones. The peer is sentence-transformers, which sorts by length, in f32:
first every mode is tried (eager and SDPA attention, torch.compile with dynamic shapes, bf16; batch sizes 1 to 32), then
the fastest one takes part in the pairs. Both sides turn texts into vectors, tokenizing counted, loading not; both are
warm but for ours' first pass, which counts: every timing of ours is a new process, which names it on standard error. Timings on a shared machine
drift, so only the two halves of a pair are divided by each other; the median of the ratios is given with the range.
On a machine that others use, OMP_WAIT_POLICY=passive keeps the peer's threads from spinning while they wait.
"""
import argparse
import json
import os
import random
import re
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path


def words_of(files):
    """Long runs of words."""
    words = []
    for file in files:
        text = Path(file).read_text(encoding="utf-8")
        if file.endswith(".jsonl"):
            text = " ".join(" ".join(str(v) for v in json.loads(line).values()) for line in text.splitlines() if line)
        words += text.split()
    return words


def texts(words, lengths, seed):
    """A text of so many words for every length, from somewhere in the files."""
    draw = random.Random(seed)
    starts = [draw.randrange(len(words) - n) for n in lengths]
    return [" ".join(words[start:start + n]) for start, n in zip(starts, lengths)]


def sets(words, count):
    draw = random.Random(1)
    # Most texts are short, some are long: 3 to 150 words, half of them below 21.
    mixed = [round(3 * 50 ** draw.random()) for _ in range(count)]
    short = [draw.randint(3, 12) for _ in range(count)]
    return {"mixed": texts(words, mixed, 2), "short": texts(words, short, 3)}


class Ours:
    def __init__(self, options, rows):
        self.command = [options.loam, "embed", options.model, "--json", "--threads", str(options.threads), "--file"]
        self.file = tempfile.NamedTemporaryFile("w", encoding="utf-8", suffix=".txt")
        self.file.write("".join(row + "\n" for row in rows))
        self.file.flush()
        self.count = len(rows)

    def seconds(self):
        done = subprocess.run([*self.command, self.file.name], capture_output=True, text=True, stdin=subprocess.DEVNULL)
        said = re.search(r"texts in ([0-9.]+) s", done.stderr)
        if done.returncode != 0 or not said:
            sys.exit(f"error: {' '.join(map(str, self.command))} ended with {done.returncode}\n{done.stderr}")
        assert done.stdout.count("\n") == self.count
        return float(said[1])


class Theirs:
    """Modes of sentence-transformers."""

    def __init__(self, options):
        import torch
        from sentence_transformers import SentenceTransformer

        torch.set_num_threads(options.threads)
        self.torch, self.models = torch, {}
        for name, kwargs in [("eager f32", {"attn_implementation": "eager"}), ("sdpa f32", {"attn_implementation": "sdpa"}),
                             ("sdpa bf16", {"attn_implementation": "sdpa", "dtype": torch.bfloat16})]:
            self.models[name] = SentenceTransformer(options.model, device="cpu", model_kwargs=kwargs)
        if not options.no_compile:
            model = SentenceTransformer(options.model, device="cpu", model_kwargs={"attn_implementation": "sdpa"})
            body = model[0].auto_model if hasattr(model[0], "auto_model") else model[0].model
            body.forward = torch.compile(body.forward, dynamic=True)
            self.models["compiled sdpa f32"] = model

    def seconds(self, mode, batch, rows):
        model, start = self.models[mode], time.perf_counter()
        with self.torch.inference_mode():
            model.encode(rows, batch_size=batch, convert_to_numpy=True, show_progress_bar=False)
        return time.perf_counter() - start

    def best(self, rows, name):
        """The fastest mode. Those that are hopeless on a few texts have no part in the longer trials."""
        few = rows[:max(32, len(rows) // 10)]
        found = []

        def trial(mode, batch, some):
            self.seconds(mode, batch, some[:8])
            found.append((self.seconds(mode, batch, some) / len(some), mode, batch))
            print(f"{name}: {mode}, batches of {batch}: {1 / found[-1][0]:.0f} texts/s", file=sys.stderr, flush=True)

        for mode in self.models:
            trial(mode, 8, few)
        hopeful = [mode for seconds, mode, _ in found if seconds < 1.6 * min(found)[0]]
        for mode in hopeful:
            for batch in [1, 2, 4, 16, 32]:
                trial(mode, batch, few)
        finalists = sorted(found)[:3]
        found.clear()
        for _, mode, batch in finalists:
            trial(mode, batch, rows)
        return min(found)[1:]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--text", nargs="+", required=True)
    parser.add_argument("--loam", default="target/release/loam", help="the binary, built with --release")
    parser.add_argument("--count", type=int, default=2000)
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2, help="of both sides")
    parser.add_argument("--no-compile", action="store_true")
    options = parser.parse_args()
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    os.environ.setdefault("RAYON_NUM_THREADS", str(options.threads))
    theirs, rows = Theirs(options), []
    for name, batch_of_texts in sets(words_of(options.text), options.count).items():
        lengths = [len(ids) for ids in theirs.models["sdpa f32"].tokenizer(batch_of_texts)["input_ids"]]
        ours, (mode, batch) = Ours(options, batch_of_texts), theirs.best(batch_of_texts, name)
        pairs = []
        for number in range(options.pairs):
            pairs.append((ours.seconds(), theirs.seconds(mode, batch, batch_of_texts)))
            print(f"{name} pair {number + 1}: {pairs[-1][0]:.3f} and {pairs[-1][1]:.3f} s", file=sys.stderr, flush=True)
        ratios = [other / own for own, other in pairs]
        rate = [options.count / statistics.median(pair[side] for pair in pairs) for side in (0, 1)]
        rows.append(f"| {name}: {options.count} texts of {min(lengths)} to {max(lengths)} tokens, mean "
                    f"{statistics.mean(lengths):.0f} | {rate[0]:.0f} | {rate[1]:.0f} | **{statistics.median(ratios):.2f}** "
                    f"({min(ratios):.2f} to {max(ratios):.2f}) | {mode}, batches of {batch} |")
    print("| texts | loam texts/s | peer texts/s | ratio, median (range) | peer |\n|---|---|---|---|---|")
    print("\n".join(rows))


if __name__ == "__main__":
    main()
