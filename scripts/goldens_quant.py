"""Writes crates/testkit/goldens/quant.bin: random blocks of every type and what gguf-py reads from them.

    .venv/bin/pip install gguf numpy bitsandbytes
    .venv/bin/python scripts/goldens_quant.py

Little-endian records: u32 type, u32 count of numbers, the blocks, the numbers as f32; last a record of type 2^32 - 1,
whose numbers come first, then for each of Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, MXFP4, TQ1_0, TQ2_0 the blocks that gguf-py makes
of them.

And crates/kernels/tests/data/nf4.bin: what bitsandbytes makes of some numbers. Records: u32 count of numbers (`numbers` below
makes them), u32 whether absmax is nested; the codes (two in a byte); absmax as f32, or nested: u8 codes, f32 absmax of each
256, f32 offset, 256 values of the codes; every 17th decoded number as f32.
"""
from pathlib import Path

import bitsandbytes.functional as bnb
import numpy as np
import torch
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType as T
from gguf.quants import dequantize, quantize

OUT = Path(__file__).resolve().parent.parent / "crates" / "testkit" / "goldens" / "quant.bin"
READ = ["F16", "BF16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "IQ4_NL", "IQ4_XS",
        "MXFP4", "NVFP4", "TQ1_0", "TQ2_0", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ3_XXS", "IQ3_S", "IQ1_S", "IQ1_M"]
WRITTEN = ["Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "MXFP4", "TQ1_0", "TQ2_0"]


def blocks(ty, count, rng):
    """Random bytes, drawn again while a scale is not finite."""
    size, length = GGML_QUANT_SIZES[ty][1], GGML_QUANT_SIZES[ty][0]
    made = []
    while len(made) < max(1, count // length):
        block = rng.integers(0, 256, size, dtype=np.uint8).reshape(1, -1)
        with np.errstate(all="ignore"):
            values = dequantize(block, ty)
        if np.isfinite(values).all():
            made.append(block)
    return np.concatenate(made, axis=1)


def record(out, ty, data, values):
    out += np.uint32(ty).tobytes() + np.uint32(values.size).tobytes() + data.tobytes()
    out += values.astype("<f4").tobytes()


rng = np.random.default_rng(5)
out = bytearray()
for name in READ:
    ty = T[name]
    data = blocks(ty, 128, rng)
    record(out, ty, data, dequantize(data, ty).ravel())
x = (rng.standard_normal(512) * np.repeat([1, 0.01, 30, 0], 128)).astype(np.float32) + 0
x[7] = -x[:32].max() * 1.5
out += np.uint32(2**32 - 1).tobytes() + np.uint32(x.size).tobytes() + x.tobytes()
for name in WRITTEN:
    out += quantize(x.reshape(1, -1), T[name]).tobytes()
OUT.write_bytes(bytes(out))
print(OUT, len(out), "bytes")


def numbers(count):
    """Multiples of 1/1024, so that the mean of the largest ones is exact in whatever order they are added up."""
    i = np.arange(count, dtype=np.uint64)
    block = i // 64
    size = np.where(block == 1, 0, 16 + block * 37 % 101)
    return (((i * 2654435761 % 2**32 >> 24).astype(np.int64) - 128) * size.astype(np.int64) / 1024).astype(np.float32)


def nf4(out, count, nested):
    x = torch.from_numpy(numbers(count))
    codes, state = bnb.quantize_4bit(x, blocksize=64, compress_statistics=nested, quant_type="nf4")
    out += np.uint32(count).tobytes() + np.uint32(nested).tobytes() + codes.numpy().tobytes()
    out += state.absmax.numpy().tobytes()
    if nested:
        out += state.state2.absmax.numpy().tobytes() + np.float32(state.offset).tobytes()
        out += state.state2.code.numpy().tobytes()
    out += bnb.dequantize_4bit(codes, state).numpy().ravel()[::17].tobytes()


OUT = OUT.parents[2] / "kernels" / "tests" / "data" / "nf4.bin"
out = bytearray()
for count, nested in [(64 * 5, False), (64 * 5 + 7, False), (64 * 300, True), (64 * 5 + 7, True)]:
    nf4(out, count, nested)
OUT.write_bytes(bytes(out))
print(OUT, len(out), "bytes")
