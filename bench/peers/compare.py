"""Loam beside PyTorch, measured in pairs: ours, theirs, ours, theirs, ...

    python bench/peers/compare.py [--loam target/release/loam] [--config small ...] [--precision bf16 ...]
                                  [--pairs 5] [--compile] [--json]

Timings on a shared machine drift by a factor of two within an hour, so only the two halves of a pair are divided by each
other; the table gives the median of those ratios with the smallest and the largest. With --compile the peer is
PyTorch's eager or compiled step, whichever is faster in that pair. Run it with the Python that has torch.
"""
import argparse
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
THREAD_VARIABLES = ("RAYON_NUM_THREADS", "OMP_NUM_THREADS")


def measure(command, threads):
    """The JSON object in the last line that the command prints."""
    environment = os.environ | {name: str(threads) for name in THREAD_VARIABLES}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, stdin=subprocess.DEVNULL)
    lines = done.stdout.strip().splitlines()
    if done.returncode != 0 or not lines:
        sys.exit(f"error: {' '.join(map(str, command))} ended with {done.returncode}\n{done.stderr.strip()}")
    return json.loads(lines[-1])


def peer(options, config, precision):
    command = [sys.executable, HERE / "gpt_torch.py", config, precision, "--threads", str(options.threads)]
    results = [measure(command, options.threads)]
    if options.compile:
        results.append(measure([*command, "--compile"], options.threads))
    return max(results, key=lambda result: result["tokens_per_s"])


def compare(options, config, precision):
    ours_command = [options.loam, "bench", "train", "--config", config, "--precision", precision, "--json"]
    pairs = []
    for number in range(options.pairs):
        ours, theirs = measure(ours_command, options.threads), peer(options, config, precision)
        pairs.append((ours, theirs))
        print(f"{config} {precision} pair {number + 1}: {ours['tokens_per_s']} and {theirs['tokens_per_s']} tokens/s",
              file=sys.stderr)
    ratios = [ours["tokens_per_s"] / theirs["tokens_per_s"] for ours, theirs in pairs]

    def middle(side, field):
        return statistics.median(pair[side][field] for pair in pairs)

    return {
        "config": config, "precision": precision, "peer": pairs[-1][1]["peer"], "pairs": len(pairs),
        "ratio": round(statistics.median(ratios), 3), "ratio_min": round(min(ratios), 3),
        "ratio_max": round(max(ratios), 3),
        "tokens_per_s": middle(0, "tokens_per_s"), "peer_tokens_per_s": middle(1, "tokens_per_s"),
        "gflop_per_s": middle(0, "gflop_per_s"), "peer_gflop_per_s": middle(1, "gflop_per_s"),
        "peak_rss_mib": middle(0, "peak_rss_mib"), "peer_peak_rss_mib": middle(1, "peak_rss_mib"),
        "loss": middle(0, "loss"), "peer_loss": middle(1, "loss"),
    }


def row(r):
    return (f"| {r['config']} | {r['precision']} | {r['tokens_per_s']:.0f} | {r['peer_tokens_per_s']:.0f} | "
            f"**{r['ratio']:.2f}** ({r['ratio_min']:.2f} to {r['ratio_max']:.2f}) | {r['gflop_per_s']:.0f} / "
            f"{r['peer_gflop_per_s']:.0f} | {r['peak_rss_mib']:.0f} / {r['peer_peak_rss_mib']:.0f} | {r['peer']} |")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--loam", default="target/release/loam", help="the binary, built with --release")
    parser.add_argument("--config", nargs="+", default=["small", "baby"], choices=["small", "baby", "gpt2"])
    parser.add_argument("--precision", nargs="+", default=["f32", "bf16"], choices=["f32", "bf16"])
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2, help="of both sides")
    parser.add_argument("--compile", action="store_true", help="also time torch.compile and take the faster one")
    parser.add_argument("--json", action="store_true", help="one JSON line per row instead of the table")
    options = parser.parse_args()
    if not Path(options.loam).is_file():
        sys.exit(f"error: no binary at {options.loam}\nhint: cargo build --release -p loam-cli, or name it with --loam")
    results = [compare(options, config, precision) for config in options.config for precision in options.precision]
    if options.json:
        print("\n".join(json.dumps(result) for result in results))
        return
    print("| config | precision | loam tokens/s | peer tokens/s | ratio, median (range) | GFLOP/s | peak MiB | peer |")
    print("|---|---|---|---|---|---|---|---|")
    print("\n".join(row(result) for result in results))


if __name__ == "__main__":
    main()
