"""How fast the Python `tokenizers` package trains byte-level BPE on a file and encodes its lines.

    python bench/peers/tokenizers_speed.py FILE [--vocab 4096] [--threads 2] [--save tokenizer.json]

Prints one JSON line; MB are 10^6 bytes. Reading the file for the encoding is not timed, splitting into batches of lines
is. The peer of `loam tokenizer train` and `loam tokenizer encode --file`.
"""
import argparse
import json
import os
import resource
import sys
import time
from pathlib import Path

BATCH = 4096


def train(file, vocab):
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab, show_progress=False, initial_alphabet=pre_tokenizers.ByteLevel.alphabet())
    begun = time.perf_counter()
    tokenizer.train([str(file)], trainer)
    return tokenizer, time.perf_counter() - begun


def encode(tokenizer, lines):
    begun = time.perf_counter()
    count = 0
    for start in range(0, len(lines), BATCH):
        batch = tokenizer.encode_batch_fast(lines[start:start + BATCH])
        count += sum(len(encoding.ids) for encoding in batch)
    return count, time.perf_counter() - begun


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path)
    parser.add_argument("--vocab", type=int, default=4096)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--save", help="where to write the trained tokenizer.json")
    options = parser.parse_args()
    if not options.file.is_file():
        sys.exit(f"error: no file at {options.file}")
    # Read by the package when it first starts its threads, so before it is imported.
    os.environ |= {"RAYON_NUM_THREADS": str(options.threads), "TOKENIZERS_PARALLELISM": "true"}
    import tokenizers

    megabytes = options.file.stat().st_size / 1e6
    tokenizer, train_s = train(options.file, options.vocab)
    count, encode_s = encode(tokenizer, options.file.read_text(encoding="utf-8").splitlines(keepends=True))
    if options.save:
        tokenizer.save(options.save)
    print(json.dumps({
        "peer": f"tokenizers {tokenizers.__version__}", "file_mb": round(megabytes, 2),
        "vocab": tokenizer.get_vocab_size(), "train_s": round(train_s, 3),
        "train_mb_per_s": round(megabytes / train_s, 2), "encode_s": round(encode_s, 3),
        "encode_mb_per_s": round(megabytes / encode_s, 2), "tokens": count,
        "peak_rss_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
    }))


if __name__ == "__main__":
    main()
