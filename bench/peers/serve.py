"""`loam serve` beside llama-server: clients that stream at the same time, measured in pairs: ours, theirs, ours, theirs, ...

    python bench/peers/serve.py FILE.gguf --server LLAMA_CPP/build/bin/llama-server [--loam target/release/loam]
                                [--clients 16] [--requests 4] [--tokens 64] [--pairs 3] [--json]

Each client sends its requests one after the other over /v1/completions: prompts of 50 to 350 letters, all different, greedy,
exactly --tokens tokens each, streamed. What counts is all tokens that arrived by the seconds from the first request to the
last token; the time to the first token is that of the median request. Both servers are warm (one request each) and have
two threads and room for all clients at once. `random_gguf.py --tokenizer` makes a file.
"""
import argparse
import http.client
import json
import os
import random
import socket
import statistics
import subprocess
import sys
import threading
import time
from pathlib import Path

LETTERS = "abcdefghijklmnopqrstuvwxyz    "


def free_port():
    with socket.socket() as place:
        place.bind(("127.0.0.1", 0))
        return place.getsockname()[1]


def stream(port, prompt, tokens):
    """Seconds to the first token, and how many tokens came."""
    body = {"model": "m", "prompt": prompt, "max_tokens": tokens, "temperature": 0, "stream": True, "ignore_eos": True,
            "stream_options": {"include_usage": True}}
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=600)
    start = time.perf_counter()
    connection.request("POST", "/v1/completions", json.dumps(body), {"Content-Type": "application/json"})
    answer = connection.getresponse()
    if answer.status != 200:
        sys.exit(f"error: status {answer.status}: {answer.read()[:500]!r}")
    first, count = None, None
    for line in answer:
        if line.startswith(b"data: {"):
            event = json.loads(line[6:])
            first = first or time.perf_counter() - start
            count = (event.get("usage") or {}).get("completion_tokens", count)
    connection.close()
    return first, count


def wait_for(port, process):
    for _ in range(600):
        if process.poll() is not None:
            sys.exit(f"error: the server ended with {process.returncode}")
        try:
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
            connection.request("GET", "/health")
            if connection.getresponse().status == 200:
                return
        except OSError:
            pass
        time.sleep(0.1)
    sys.exit("error: the server did not start")


def measure(command, port, options, seed):
    environment = os.environ | {name: str(options.threads) for name in ("RAYON_NUM_THREADS", "OMP_NUM_THREADS")}
    process = subprocess.Popen([str(part) for part in command], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
                               stdin=subprocess.DEVNULL, env=environment)
    try:
        wait_for(port, process)
        draw = random.Random(seed)
        prompts = [["".join(draw.choices(LETTERS, k=draw.randint(50, 350))) for _ in range(options.requests)]
                   for _ in range(options.clients)]
        stream(port, "one to be warm", 4)
        results = []

        def client(mine):
            results.extend(stream(port, prompt, options.tokens) for prompt in mine)

        threads = [threading.Thread(target=client, args=(mine,)) for mine in prompts]
        start = time.perf_counter()
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        seconds = time.perf_counter() - start
        if [count for _, count in results] != [options.tokens] * (options.clients * options.requests):
            sys.exit(f"error: not all {options.tokens} tokens of each request came: {results}")
        return {"tokens_per_s": options.tokens * len(results) / seconds,
                "first_token_s": statistics.median(first for first, _ in results)}
    finally:
        process.terminate()
        process.wait(timeout=60)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path)
    parser.add_argument("--server", type=Path, required=True)
    parser.add_argument("--loam", type=Path, default=Path("target/release/loam"))
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--requests", type=int, default=4)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    pairs = []
    for number in range(options.pairs):
        port, other = free_port(), free_port()
        ours = [options.loam, "serve", f"m={options.file}", "--port", port, "--max-concurrent", options.clients]
        theirs = [options.server, "-m", options.file, "--port", other, "-np", options.clients, "-c", 1024 * options.clients,
                  "-t", options.threads, "-tb", options.threads]
        pair = [measure(ours, port, options, number), measure(theirs, other, options, number)]
        pairs.append(pair)
        print(f"pair {number + 1}: {pair[0]['tokens_per_s']:.1f} and {pair[1]['tokens_per_s']:.1f} tokens/s", file=sys.stderr)
    ratios = [ours["tokens_per_s"] / theirs["tokens_per_s"] for ours, theirs in pairs]
    middle = {name: [statistics.median(pair[side][name] for pair in pairs) for side in (0, 1)] for name in pairs[0][0]}
    result = {"file": options.file.stem, "clients": options.clients, "pairs": len(pairs), **middle,
              "ratio": round(statistics.median(ratios), 3), "ratio_min": round(min(ratios), 3),
              "ratio_max": round(max(ratios), 3)}
    if options.json:
        print(json.dumps(result))
        return
    print("| file | clients | loam tokens/s | llama-server | ratio, median (range) | first token, s |\n|---|---|---|---|---|---|")
    print(f"| {result['file']} | {options.clients} | {middle['tokens_per_s'][0]:.1f} | {middle['tokens_per_s'][1]:.1f} | "
          f"**{result['ratio']:.2f}** ({result['ratio_min']:.2f} to {result['ratio_max']:.2f}) | "
          f"{middle['first_token_s'][0]:.2f} / {middle['first_token_s'][1]:.2f} |")


if __name__ == "__main__":
    main()
