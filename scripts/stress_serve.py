#!/usr/bin/env python3
"""Storms a running `loam serve`: many streaming clients at once, of which some go away, some are slow, some send nonsense.

    python scripts/stress_serve.py http://127.0.0.1:8080 [--clients 32] [--seconds 60] [--pid PID]

Afterwards, every text that came to its end is asked for again, alone, and must be the same. With --pid the memory of the
server is printed in between. The exit status is 1 where anything was lost, mixed up, or answered in the wrong way.
"""

import argparse
import http.client
import json
import random
import threading
import time
import urllib.parse

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("base")
parser.add_argument("--clients", type=int, default=32)
parser.add_argument("--seconds", type=float, default=60)
parser.add_argument("--pid", type=int)
parser.add_argument("--again", type=int, default=10_000, help="most texts that are asked for again")
args = parser.parse_args()
place = urllib.parse.urlparse(args.base)

finished, problems, counts = [], [], {}
lock = threading.Lock()


def count(what):
    with lock:
        counts[what] = counts.get(what, 0) + 1


def connect():
    return http.client.HTTPConnection(place.hostname, place.port, timeout=120)


def post(body, path="/v1/chat/completions"):
    link = connect()
    link.request("POST", path, body if isinstance(body, (bytes, str)) else json.dumps(body))
    return link, link.getresponse()


def text_of(answer, limit=None, pause=0.0):
    """The text of a stream, its end, and whether it was read to there."""
    text, tokens = "", 0
    for line in answer:
        if not line.startswith(b"data: "):
            continue
        data = line[6:].strip()
        if data == b"[DONE]":
            return text, True
        choice = json.loads(data)["choices"][0]
        text += choice["delta"].get("content") or ""
        tokens += 1
        time.sleep(pause)
        if limit is not None and tokens >= limit:
            return text, False
    return text, False


def request(dice):
    topics = ["the fox", "the pear", "Tom", "12 + 7", "花园里的狐狸", "a library, and what is read there"]
    system = dice.choice(["You are kind.", "You are kind. " * 20, "Answer in one word."])
    ask = {
        "messages": [{"role": "system", "content": system}, {"role": "user", "content": f"Tell me of {dice.choice(topics)}"}],
        "seed": dice.randrange(1_000_000),
        "max_tokens": dice.randrange(1, 80),
        "temperature": dice.choice([0, 0.7, 1.3]),
        "stream": True,
    }
    if dice.random() < 0.2:
        ask["ignore_eos"] = True
    elif dice.random() < 0.2:
        ask["response_format"] = {"type": "json_object"}
    return ask


def client(number, until):
    dice = random.Random(number)
    while time.time() < until:
        kind = dice.random()
        try:
            if kind < 0.08:
                link, answer = post(json.dumps(request(dice))[: dice.randrange(1, 60)])
                assert answer.status == 400, f"malformed: {answer.status}"
                count("malformed")
            elif kind < 0.14:
                link, answer = post({"messages": [{"role": "user", "content": "far too long " * 20_000}]})
                assert answer.status == 400 and "context" in json.loads(answer.read())["error"]["code"]
                count("too long")
            else:
                ask = request(dice)
                link, answer = post(ask)
                if answer.status == 429:
                    assert answer.getheader("retry-after")
                    count("sent away")
                    time.sleep(0.2)
                    continue
                assert answer.status == 200, answer.read()
                if kind < 0.34:
                    text_of(answer, limit=dice.randrange(1, 20))
                    count("left")
                else:
                    text, whole = text_of(answer, pause=0.02 if kind < 0.44 else 0)
                    assert whole, f"a stream broke off: {ask}"
                    with lock:
                        finished.append((ask, text))
                    count("slow" if kind < 0.44 else "finished")
            link.close()
        except Exception as error:  # noqa: BLE001 - every failure is reported alike
            with lock:
                problems.append(f"client {number}: {error!r}")


def memory():
    if not args.pid:
        return None
    with open(f"/proc/{args.pid}/status") as status:
        return int(next(line for line in status if line.startswith("VmRSS")).split()[1]) // 1024


def watch(until):
    while time.time() < until:
        time.sleep(max(1, args.seconds / 6))
        print(f"{time.time() - begin:5.0f} s: {counts}, memory {memory()} MiB", flush=True)


begin = time.time()
until = begin + args.seconds
print(f"memory {memory()} MiB")
threads = [threading.Thread(target=client, args=(number, until)) for number in range(args.clients)]
threads.append(threading.Thread(target=watch, args=(until,)))
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
took = time.time() - begin

link = connect()
for _ in range(100):
    link.request("GET", "/metrics")
    page = link.getresponse().read().decode()
    running = sum(float(line.split()[-1]) for line in page.splitlines() if line.startswith("vllm:num_requests_running"))
    if running == 0:
        break
    time.sleep(0.1)
else:
    problems.append(f"{running} texts are still being written for nobody")
written = sum(float(line.split()[-1]) for line in page.splitlines() if line.startswith("vllm:generation_tokens_total"))
print(f"{len(finished)} texts in {took:.0f} s, {written / took:.0f} tokens per second, memory {memory()} MiB")

wrong = 0
chosen = random.Random(0).sample(finished, min(args.again, len(finished)))
for ask, text in chosen:
    link, answer = post(ask)
    alone, whole = text_of(answer)
    link.close()
    wrong += not whole or alone != text
print(f"{len(chosen)} asked for again, alone: {wrong} differ; memory {memory()} MiB")
if wrong:
    problems.append(f"{wrong} texts differ")
for problem in problems[:20]:
    print("problem:", problem)
raise SystemExit(bool(problems))
