"""Loam beside llama.cpp on the same GGUF files, measured in pairs: ours, theirs, ours, theirs, ...

    python bench/peers/llama_cpp.py FILE.gguf ... --bench LLAMA_CPP/build/bin/llama-bench [--loam target/release/loam]
                                    [-p 512] [-n 128] [-d 0 ...] [--pairs 3] [--precision bf16] [--start-up] [--json]

Timings on a shared machine drift, so only the two halves of a pair are divided by each other; the table gives the median
of those ratios with the smallest and the largest. Prompts and decoding are runs of their own, as llama-bench makes them.
With --start-up it also compares the wall time and the peak resident size of a process that opens the file and decodes
one token. llama.cpp rounds what a file of halves is multiplied with to that type; ours does with --precision bf16.
`random_gguf.py` makes files.
"""
import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path


def measure(command, threads):
    """What the command prints, its seconds and the largest resident size of its process in MiB."""
    environment = os.environ | {name: str(threads) for name in ("RAYON_NUM_THREADS", "OMP_NUM_THREADS")}
    start = time.perf_counter()
    process = subprocess.Popen([str(part) for part in command], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
                               stdin=subprocess.DEVNULL, env=environment)
    printed = process.stdout.read()
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - start
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        sys.exit(f"error: {' '.join(map(str, command))} ended with {process.returncode}")
    return json.loads(printed), seconds, usage.ru_maxrss / 1024


def commands(options, file, prompt, tokens, depth, repetitions, roof):
    counts = ["-p", prompt, "-n", tokens, "-d", depth, "-r", repetitions]
    ours = [options.loam, "bench", "infer", file, *counts, "--precision", options.precision, "--json"]
    theirs = [options.bench, "-m", file, *counts, "-t", options.threads, "-o", "json"]
    return ours if roof else [*ours, "--no-roof"], theirs


def ratio(values):
    return {"ratio": round(statistics.median(values), 3), "ratio_min": round(min(values), 3),
            "ratio_max": round(max(values), 3)}


def speed(options, file, prompt, tokens, depth):
    pairs = []
    for number in range(options.pairs):
        repetitions = 1 if depth else options.repetitions
        ours, theirs = commands(options, file, prompt, tokens, depth, repetitions, bool(tokens))
        pair = [measure(command, options.threads)[0][0] for command in (ours, theirs)]
        pairs.append(pair)
        print(f"{file.name} pp{prompt} tg{tokens} d{depth} pair {number + 1}: {pair[0]['avg_ts']:.2f} and "
              f"{pair[1]['avg_ts']:.2f} tokens/s", file=sys.stderr)
    share = [pair[0]["share_of_bandwidth"] for pair in pairs if pair[0]["share_of_bandwidth"]]
    middle = [statistics.median(pair[side]["avg_ts"] for pair in pairs) for side in (0, 1)]
    test = (f"pp{prompt}" if prompt else f"tg{tokens}") + (f" @ d{depth}" if depth else "")
    return {"file": file.stem, "test": test, "avg_ts": middle[0], "peer_avg_ts": middle[1],
            **ratio([pair[0]["avg_ts"] / pair[1]["avg_ts"] for pair in pairs]),
            "share_of_bandwidth": round(statistics.median(share), 3) if share else None, "pairs": len(pairs)}


def start_up(options, file):
    pairs = []
    for _ in range(options.pairs):
        ours, theirs = commands(options, file, 0, 1, 0, 1, False)
        pairs.append([measure(command, options.threads)[1:] for command in (ours, [*theirs, "--no-warmup"])])
    middle = [[statistics.median(pair[side][field] for pair in pairs) for side in (0, 1)] for field in (0, 1)]
    return {"file": file.stem, "test": "start-up", "seconds": middle[0][0], "peer_seconds": middle[0][1],
            "peak_rss_mib": middle[1][0], "peer_peak_rss_mib": middle[1][1], "pairs": len(pairs)}


def line(row):
    if row["test"] == "start-up":
        return (f"| {row['file']} | start-up | {row['seconds']:.2f} s, {row['peak_rss_mib']:.0f} MiB | "
                f"{row['peer_seconds']:.2f} s, {row['peer_peak_rss_mib']:.0f} MiB | | |")
    share = f"{100 * row['share_of_bandwidth']:.0f} %" if row["share_of_bandwidth"] else ""
    return (f"| {row['file']} | {row['test']} | {row['avg_ts']:.1f} | {row['peer_avg_ts']:.1f} | **{row['ratio']:.2f}** "
            f"({row['ratio_min']:.2f} to {row['ratio_max']:.2f}) | {share} |")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="+", type=Path)
    parser.add_argument("--bench", required=True, help="llama-bench")
    parser.add_argument("--loam", default="target/release/loam", help="the binary, built with --release")
    parser.add_argument("-p", "--prompt", type=int, default=512, help="tokens of the prompt; 0 for none")
    parser.add_argument("-n", "--tokens", type=int, default=128, help="tokens that are decoded; 0 for none")
    parser.add_argument("-d", "--depth", type=int, nargs="+", default=[0], help="tokens in the cache before")
    parser.add_argument("-r", "--repetitions", type=int, default=2, help="of each run at depth 0")
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2, help="of both sides")
    parser.add_argument("--precision", default="f32", help="of our products with files of halves: f32 or bf16")
    parser.add_argument("--start-up", action="store_true", help="compare start-up time and resident size, too")
    parser.add_argument("--json", action="store_true", help="one JSON line per row instead of the table")
    options = parser.parse_args()
    rows = []
    for file in options.files:
        for depth in options.depth:
            if options.prompt:
                rows.append(speed(options, file, options.prompt, 0, depth))
            if options.tokens:
                rows.append(speed(options, file, 0, options.tokens, depth))
        if options.start_up:
            rows.append(start_up(options, file))
    if options.json:
        return print("\n".join(map(json.dumps, rows)))
    print("| file | test | loam tokens/s | llama.cpp tokens/s | ratio, median (range) | share of memory speed |")
    print("|---|---|---|---|---|---|")
    print("\n".join(map(line, rows)))


if __name__ == "__main__":
    main()
