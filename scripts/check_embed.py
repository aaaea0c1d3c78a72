"""Compares `loam embed` and its token ids with sentence-transformers on 200 varied texts.

    .venv/bin/python scripts/check_embed.py MODEL [--loam target/release/loam]

MODEL is the directory of a sentence encoder, such as all-MiniLM-L6-v2. The texts are made here: English, Chinese, other
scripts, emoji, accents, control characters, nothing, far too much, characters that no vocabulary has, addresses, code.
Line ends are the one thing that a line of a file cannot hold. Needs torch, transformers and sentence-transformers.
"""
import argparse
import json
import random
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from sentence_transformers import SentenceTransformer

TOLERANCE = 1e-5
PIECES = [
    "The cat sat on the mat.", "A quick brown fox jumps over the lazy dog!", "机器学习改变了世界。", "今天天气很好，我们去公园吧",
    "naïve café façade Ångström", "ÀÉÎÕÜ ß œuvre", "e\u0301 combining a\u0308", "😀🚀👩‍👩‍👧‍👦🇨🇳", "🏳️‍🌈 ok", "tab\there", "a\x00b\x01c\x7f",
    "zero\u200bwidth\u200d\ufeff", "\u2028line\u2029", "soft\u00adhyphen", "https://example.org/a?b=c&d=%20#frag",
    "mail@example.com, +1 (555) 010-9999", "fn main() { println!(\"{}\", x[0]); }", "if (a != b && c <= d) { return **p; }",
    "\U00013000\U00013001 \ue000", "Привет, мир", "مرحبا بالعالم", "नमस्ते दुनिया", "สวัสดีชาวโลก", "こんにちは世界 カタカナ", "안녕하세요 세계", "İstanbul ŞIĞ",
    "x" * 150, "3.14159e-10 1,000,000 50%", "[SEP] [CLS] [MASK] [PAD] [UNK]", "##ing ##s", "don't can't 'quoted' “curly”—dash…",
    "ﬁ ligature ½ ² ™", "\t  \x0b \x0c spaces \u3000 ", "ＦＵＬＬ ｗｉｄｔｈ", "pneumonoultramicroscopicsilicovolcanoconiosis",
]


def texts():
    draw = random.Random(7)
    found = ["", " ", "\t", "\u200b", "a", "好", "😀", "\U0010ffff"] + PIECES
    found += [" ".join(piece for _ in range(n)) for piece in PIECES[:12] for n in (30, 200)]
    while len(found) < 200:
        found.append(" ".join(draw.choice(PIECES) for _ in range(draw.randint(2, 40))))
    return found[:200]


def lines(command):
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        sys.exit(done.stderr)
    return [json.loads(line) for line in done.stdout.split("\n") if line]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--loam", default="target/release/loam")
    options = parser.parse_args()
    model = SentenceTransformer(options.model, device="cpu")
    rows = texts()
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "texts.txt"
        file.write_bytes("".join(row + "\n" for row in rows).encode())
        whole = lines([options.loam, "tokenizer", "encode", options.model, "--file", file, "--json"])
        ours = lines([options.loam, "embed", options.model, "--file", file, "--json"])
        alone = [lines([options.loam, "embed", options.model, "--json", "--", rows[i]])[0]["embedding"] for i in (0, 9, 60, 199)]
    same, cut = 0, 0
    for row, ids in zip(rows, whole, strict=True):
        theirs = model.tokenizer(row, truncation=True, max_length=model.max_seq_length)["input_ids"]
        full = model.tokenizer(row, truncation=False)["input_ids"]
        if full == ids and theirs == (ids if len(ids) <= len(theirs) else ids[:len(theirs) - 1] + ids[-1:]):
            same += 1
        else:
            print("ids differ:", repr(row[:60]), ids[:12], full[:12])
        cut += len(full) > len(theirs)
    theirs = torch.from_numpy(model.encode(rows, batch_size=16, convert_to_numpy=True, show_progress_bar=False))
    vectors = torch.tensor([line["embedding"] for line in ours])
    assert [line["index"] for line in ours] == list(range(len(rows)))
    off = (vectors - theirs).abs().max().item()
    bits = all(vectors[i].tolist() == torch.tensor(a).tolist() for i, a in zip((0, 9, 60, 199), alone))
    print(f"token ids equal: {same} of {len(rows)} texts ({cut} longer than the window of {model.max_seq_length})")
    print(f"embeddings: max abs difference {off:.2e} over {tuple(theirs.shape)}, allowed {TOLERANCE:.0e}")
    print(f"alone and among the others the same bits: {bits}")
    sys.exit(0 if same == len(rows) and off <= TOLERANCE and bits else 1)


if __name__ == "__main__":
    main()
