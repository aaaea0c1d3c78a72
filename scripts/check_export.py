"""Opens directories that Loam wrote with transformers, and says whether both read the same model out of them.

    python scripts/check_export.py DIR... [--loam target/release/loam] [--tokens 1,2,3] [--text FILE]
                                          [--tolerance 1e-4] [--generate N] [--print]

A decoder, an encoder with a head for masked tokens, or an encoder with a decoder, whose decoder gets the same tokens in
the opposite order. With --generate the most likely continuation (or, with an encoder, answer) of each line of text, of at
most N tokens, is compared, too. For each directory one JSON line. Without --loam it holds what transformers computes (the logits, and the ids of each line
of text). With --loam the same is asked of `loam model logits DIR --tokens .. --json` and
`loam tokenizer encode DIR --file .. --json`, and the line says how far they are apart; --print adds the values. Ends with
1 where logits differ by more than the tolerance or any id or generated text differs.
"""
import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForMaskedLM, AutoModelForSeq2SeqLM, AutoTokenizer
from transformers.utils.logging import disable_progress_bar

LINES = [
    "Once upon a time, Anna had 12 apples and 3 pears.",
    "  two leading spaces,\ta tab, and trailing ones  ",
    "What is 17 + 25? It's 42!",
    "你好，世界。小明有三本书。",
    "naïve café — “quotes” … emoji 🙂👩‍🚀",
    "fn main() { println!(\"{}\", 1 << 3); }",
]


def transformers_model(directory):
    config = AutoConfig.from_pretrained(directory)
    kind = AutoModelForCausalLM
    if config.is_encoder_decoder:
        kind = AutoModelForSeq2SeqLM
    elif any(name.endswith("ForMaskedLM") for name in config.architectures or []):
        kind = AutoModelForMaskedLM
    return kind.from_pretrained(directory, dtype=torch.float32, attn_implementation="eager").eval()


def transformers_logits(model, tokens):
    vocab = model.config.vocab_size
    tokens = tokens or [(7 * index + 1) % vocab for index in range(12)]
    if max(tokens) >= vocab:
        sys.exit(f"error: {model.name_or_path}: token {max(tokens)} is outside of the vocabulary of {vocab}")
    more = {"decoder_input_ids": torch.tensor([tokens[::-1]])} if model.config.is_encoder_decoder else {}
    with torch.no_grad():
        return tokens, model(torch.tensor([tokens]), **more).logits[0]


def transformers_texts(model, directory, lines, most):
    tokenizer = AutoTokenizer.from_pretrained(directory)
    texts = []
    for line in lines:
        ids = tokenizer(line, return_tensors="pt").input_ids
        with torch.no_grad():
            out = model.generate(ids, max_new_tokens=most, do_sample=False, num_beams=1)[0]
        start = 0 if model.config.is_encoder_decoder else ids.shape[1]
        texts.append(tokenizer.decode(out[start:], skip_special_tokens=True).strip())
    return texts


def loam_texts(options, directory, lines):
    texts = []
    for line in lines:
        command = [options.loam, "generate", directory, line, "--temperature", "0", "--max-tokens", str(options.generate)]
        done = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL)
        if done.returncode != 0:
            sys.exit(f"error: {' '.join(command)} ended with {done.returncode}\n{done.stderr.strip()}")
        texts.append(done.stdout.strip().removeprefix(line).strip())
    return texts


def transformers_ids(directory, lines):
    if not (Path(directory) / "tokenizer.json").is_file():
        return None
    tokenizer = AutoTokenizer.from_pretrained(directory)
    return [tokenizer(line).input_ids for line in lines]


def ask(loam, *arguments):
    command = [loam, *map(str, arguments), "--json"]
    done = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    if done.returncode != 0:
        sys.exit(f"error: {' '.join(command)} ended with {done.returncode}\n{done.stderr.strip()}")
    return [json.loads(line) for line in done.stdout.splitlines() if line.strip()]


def compare(options, directory, model, tokens, logits, ids, lines):
    listed = ",".join(map(str, tokens))
    more = ["--decoder-tokens", ",".join(map(str, tokens[::-1]))] if model.config.is_encoder_decoder else []
    answer = ask(options.loam, "model", "logits", directory, "--tokens", listed, *more)[0]
    ours = torch.tensor(answer["logits"])
    if list(ours.shape) != list(logits.shape) or answer["shape"] != list(ours.shape):
        sys.exit(f"error: {directory}: loam's logits are {list(ours.shape)} (it says {answer['shape']}), "
                 f"transformers' are {list(logits.shape)}")
    difference = (ours - logits).abs().max().item()
    result = {
        "logits_max_abs_difference": difference, "logits_max_abs": logits.abs().max().item(),
        "logits_equal": difference <= options.tolerance,  # false for NaN
        "tokens": len(tokens), "lines": len(lines), "ids_equal": None,
    }
    if ids is not None:
        with tempfile.NamedTemporaryFile("w", suffix=".txt", encoding="utf-8") as file:
            file.write("\n".join(lines) + "\n")
            file.flush()
            our_ids = ask(options.loam, "tokenizer", "encode", directory, "--file", file.name)
        result["ids_equal"] = our_ids == ids
        result["lines_that_differ"] = [
            {"line": line, "loam": mine, "transformers": theirs}
            for line, mine, theirs in zip(lines, our_ids, ids) if mine != theirs
        ]
        if len(our_ids) != len(ids):
            sys.exit(f"error: {directory}: loam encoded {len(our_ids)} lines of {len(ids)}")
    if options.generate:
        pairs = zip(loam_texts(options, directory, lines), transformers_texts(model, directory, lines, options.generate))
        differ = [{"line": line, "loam": mine, "transformers": theirs}
                  for line, (mine, theirs) in zip(lines, pairs) if mine != theirs]
        result |= {"texts_equal": not differ, "texts_that_differ": differ}
    return result


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("directories", nargs="+", metavar="DIR")
    parser.add_argument("--loam", help="the loam binary to compare with")
    parser.add_argument("--tokens", type=lambda text: [int(part) for part in text.split(",")],
                        help="token ids of the logits, default 12 that lie in the vocabulary")
    parser.add_argument("--text", type=Path, help="a file whose lines are encoded, default a few built-in lines")
    parser.add_argument("--tolerance", type=float, default=1e-4, help="largest absolute difference of a logit")
    parser.add_argument("--generate", type=int, metavar="N", help="also compare texts of at most N tokens")
    parser.add_argument("--print", action="store_true", help="also print logits and ids")
    options = parser.parse_args()
    disable_progress_bar()
    lines = options.text.read_text(encoding="utf-8").removesuffix("\n").split("\n") if options.text else LINES
    all_equal = True
    for directory in options.directories:
        model = transformers_model(directory)
        tokens, logits = transformers_logits(model, options.tokens)
        ids = transformers_ids(directory, lines)
        result = {"dir": directory}
        if options.loam:
            result |= compare(options, directory, model, tokens, logits, ids, lines)
            all_equal &= result["logits_equal"] and result["ids_equal"] is not False and result.get("texts_equal", True)
        if options.print or not options.loam:
            result |= {"token_list": tokens, "logits": logits.tolist(), "ids": ids}
        print(json.dumps(result, ensure_ascii=False))
    sys.exit(0 if all_equal else 1)


if __name__ == "__main__":
    main()
