"""GGUF files of Loam run by llama.cpp, and files of llama-quantize run by Loam: the same tokens and perplexity.

    python scripts/check_llama_cpp.py DIR... --loam target/release/loam --bin LLAMA_CPP/build/bin --text FILE
                                      [--types f32,f16,q8_0,q4_k_m,..] [--context 128] [--chunks 8] [--adapter DIR]

For every model directory and type: `loam model convert` writes a file; both programs tokenise the text (llama-tokenize)
and compute its perplexity as llama-perplexity does (chunks of the context, the second half of each is scored). For every
quantised type llama-quantize makes a file of its own from the F32 one, which both run, too. With --adapter, a LoRA of the
(one) model is written for llama.cpp by `loam model combine`, and both put it into the F32 file. One JSON line per file.
Ends with 1 where token ids differ or perplexities differ by more than 0.1 %.
"""
import argparse
import json
import math
import re
import subprocess
import sys
import tempfile
from pathlib import Path

TOLERANCE = 1e-3


def run(*command, both=False):
    result = subprocess.run([str(part) for part in command], capture_output=True, text=True)
    if result.returncode:
        sys.exit(f"error: {' '.join(map(str, command))}: {result.stderr[-3000:]}")
    return result.stdout + result.stderr if both else result.stdout


def our_tokens(loam, model, text):
    # One line per line of the file: the text goes in as it is, by the library's own way for a prompt.
    ids = []
    for line in run(loam, "tokenizer", "encode", model, "--file", text, "--json").splitlines():
        ids.append(json.loads(line))
    return ids


def our_perplexity(loam, model, tokens, context, chunks, bos, more=()):
    """As llama-perplexity: the first token of a chunk gives way to the start token where the model adds one."""
    loss = count = 0
    for chunk in range(chunks):
        ids = tokens[chunk * context:(chunk + 1) * context]
        if bos is not None:
            ids = [bos] + ids[1:]
        logits = json.loads(run(loam, "model", "logits", model, "--tokens", ",".join(map(str, ids)), "--json", *more))["logits"]
        for place in range(context // 2, context - 1):
            row = logits[place]
            top = max(row)
            loss += top + math.log(math.fsum(math.exp(x - top) for x in row)) - row[tokens[chunk * context + place + 1]]
            count += 1
    return math.exp(loss / count)


def their_perplexity(binaries, model, text, context, chunks, more=()):
    # Its last lines go missing now and then: what it logs is written by a thread that it does not wait for.
    for _ in range(5):
        said = run(binaries / "llama-perplexity", "-m", model, "-f", text, "-c", context, "-b", context, "--chunks", chunks,
                   "-t", 2, "--no-escape", *more, both=True)
        found = re.search(r"Final estimate: PPL = ([0-9.]+)", said)
        if found:
            break
    else:
        sys.exit(f"error: no perplexity in: {said[-2000:]}")
    return float(found[1])


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("directories", nargs="+")
    parser.add_argument("--loam", required=True)
    parser.add_argument("--bin", required=True, type=Path)
    parser.add_argument("--text", required=True)
    parser.add_argument("--types", default="f32,f16,bf16,q8_0,q6_k,q5_k_m,q4_k_m,q4_k_s,q4_0,q5_1,iq4_xs,q3_k_m,q2_k")
    parser.add_argument("--context", type=int, default=128)
    parser.add_argument("--chunks", type=int, default=8)
    parser.add_argument("--adapter", help="a LoRA of the model, in PEFT's layout")
    args = parser.parse_args()
    failed = False
    for directory in args.directories:
        with tempfile.TemporaryDirectory() as scratch:
            scratch = Path(scratch)
            text = scratch / "text.txt"
            # One line, so that both programs see one text.
            text.write_text(" ".join(Path(args.text).read_text()[:20000].split()))
            plain = scratch / "plain.gguf"
            run(args.loam, "model", "convert", directory, plain, "--dtype", "float32")
            listed = run(args.bin / "llama-tokenize", "-m", plain, "-f", text, "--ids", "--no-escape", "--log-disable")
            theirs = json.loads(listed[listed.index("["):])
            ours = our_tokens(args.loam, plain, text)[0]
            same_tokens = ours == theirs
            failed |= not same_tokens
            print(json.dumps({"model": directory, "tokens": len(theirs), "same_tokens": same_tokens}), flush=True)
            bare = run(args.loam, "tokenizer", "encode", plain, "--file", text, "--no-special", "--json")
            bos = theirs[0] if len(json.loads(bare.splitlines()[0])) < len(theirs) else None
            files = []
            for kind in args.types.split(","):
                own = scratch / f"loam-{kind}.gguf"
                run(args.loam, "model", "convert", directory, own, "--quant", kind)
                files.append(("loam", kind, own))
                if kind != "f32":
                    other = scratch / f"llama-{kind}.gguf"
                    run(args.bin / "llama-quantize", plain, other, kind.upper(), 2)
                    files.append(("llama-quantize", kind, other))
            with_lora = {}
            if args.adapter:
                lora = scratch / "lora.gguf"
                run(args.loam, "model", "combine", directory, lora, args.adapter, "--how", "cat")
                files += [("loam", name, plain) for name in ("f32 with the adapter", "f32 with its GGUF file")]
                with_lora = {files[-2]: args.adapter, files[-1]: lora}
            for file in files:
                writer, kind, path = file
                ours, other = [("--adapter", with_lora[file]), ("--lora", lora)] if file in with_lora else [(), ()]
                here = our_perplexity(args.loam, path, theirs, args.context, args.chunks, bos, ours)
                there = their_perplexity(args.bin, path, text, args.context, args.chunks, other)
                apart = here / there - 1
                failed |= abs(apart) > TOLERANCE
                print(json.dumps({"model": directory, "written_by": writer, "type": kind, "loam": round(here, 5),
                                  "llama.cpp": there, "apart": f"{apart:+.2e}", "bytes": path.stat().st_size}), flush=True)
    sys.exit(int(failed))


if __name__ == "__main__":
    main()
