"""A GGUF file with random weights in the shape of a known model, for benchmarks: nothing to download.

    python bench/peers/random_gguf.py qwen2-0.5b|llama-1b OUT.gguf [--type f16|bf16] [--tokenizer]

With --tokenizer the file has a byte-level BPE vocabulary of made-up merges, so that servers can read text; otherwise none.

Other element types are made from it with `loam model convert OUT.gguf OTHER.gguf --quant TYPE`. Needs numpy and gguf.
"""
import argparse

import gguf
import numpy as np

SHAPES = {
    "qwen2-0.5b": dict(arch="qwen2", layers=24, width=896, heads=14, kv_heads=2, inner=4864, vocab=151936, base=1e6,
                       eps=1e-6, bias=True),
    "llama-1b": dict(arch="llama", layers=16, width=2048, heads=32, kv_heads=8, inner=8192, vocab=128256, base=5e5,
                     eps=1e-5, bias=False),
}
TYPES = {"f16": gguf.GGMLQuantizationType.F16, "bf16": gguf.GGMLQuantizationType.BF16}
CONTEXT = 32768


def vocabulary(size):
    """Tokens and merges: bytes, pairs of bytes, pairs with a third, and an end token."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [b for b in range(256) if b not in printable]
    names = [chr(b) for b in printable] + [chr(256 + i) for i in range(len(others))]
    pairs = [(a, b) for a in names for b in names]
    triples = ((a + b, c) for c in names for a, b in pairs)
    merges = pairs + [next(triples) for _ in range(size - 1 - len(names) - len(pairs))]
    return names + [a + b for a, b in merges] + ["<|end|>"], [f"{a} {b}" for a, b in merges]


def write_tokenizer(writer, size):
    tokens, merges = vocabulary(size)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("qwen2")
    writer.add_token_list(tokens)
    writer.add_token_types([gguf.TokenType.NORMAL] * (size - 1) + [gguf.TokenType.CONTROL])
    writer.add_token_merges(merges)
    writer.add_eos_token_id(size - 1)
    writer.add_add_bos_token(False)


def write(shape, path, kind, tokenizer):
    draw = np.random.default_rng(0)
    writer = gguf.GGUFWriter(path, shape["arch"])
    writer.add_context_length(CONTEXT)
    writer.add_embedding_length(shape["width"])
    writer.add_block_count(shape["layers"])
    writer.add_feed_forward_length(shape["inner"])
    writer.add_head_count(shape["heads"])
    writer.add_head_count_kv(shape["kv_heads"])
    writer.add_rope_freq_base(shape["base"])
    writer.add_rope_dimension_count(shape["width"] // shape["heads"])
    writer.add_layer_norm_rms_eps(shape["eps"])
    writer.add_vocab_size(shape["vocab"])
    if tokenizer:
        write_tokenizer(writer, shape["vocab"])
    else:
        writer.add_tokenizer_model("no_vocab")
    writer.add_file_type({"f16": gguf.LlamaFileType.MOSTLY_F16, "bf16": gguf.LlamaFileType.MOSTLY_BF16}[kind])

    def matrix(name, rows, cols):
        values = draw.standard_normal((rows, cols), dtype=np.float32) * np.float32(0.02)
        if kind == "f16":
            writer.add_tensor(name, values.astype(np.float16))
        else:
            writer.add_tensor(name, gguf.quants.quantize(values, TYPES[kind]), raw_dtype=TYPES[kind])

    def vector(name, length, value):
        writer.add_tensor(name, np.full(length, value, dtype=np.float32))

    width, inner, kv = shape["width"], shape["inner"], shape["width"] // shape["heads"] * shape["kv_heads"]
    matrix("token_embd.weight", shape["vocab"], width)
    for i in range(shape["layers"]):
        name = f"blk.{i}."
        vector(name + "attn_norm.weight", width, 1)
        for part, rows in (("q", width), ("k", kv), ("v", kv)):
            matrix(f"{name}attn_{part}.weight", rows, width)
            if shape["bias"]:
                vector(f"{name}attn_{part}.bias", rows, 0)
        matrix(name + "attn_output.weight", width, width)
        vector(name + "ffn_norm.weight", width, 1)
        matrix(name + "ffn_gate.weight", inner, width)
        matrix(name + "ffn_up.weight", inner, width)
        matrix(name + "ffn_down.weight", width, inner)
    vector("output_norm.weight", width, 1)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shape", choices=SHAPES)
    parser.add_argument("out")
    parser.add_argument("--type", choices=TYPES, default="f16")
    parser.add_argument("--tokenizer", action="store_true", help="with a made-up vocabulary")
    options = parser.parse_args()
    write(SHAPES[options.shape], options.out, options.type, options.tokenizer)


if __name__ == "__main__":
    main()
