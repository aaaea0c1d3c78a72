"""Writes crates/testkit/goldens/quant.bin: random blocks of every type and what gguf-py reads from them.

    .venv/bin/pip install gguf numpy
    .venv/bin/python scripts/goldens_quant.py

Little-endian records: u32 type, u32 count of numbers, the blocks, the numbers as f32; last a record of type 2^32 - 1,
whose numbers come first, then for each of Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, MXFP4, TQ2_0 the blocks that gguf-py makes of
them.
"""
from pathlib import Path

import numpy as np
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType as T
from gguf.quants import dequantize, quantize

OUT = Path(__file__).resolve().parent.parent / "crates" / "testkit" / "goldens" / "quant.bin"
READ = ["F16", "BF16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "IQ4_NL", "IQ4_XS",
        "MXFP4", "NVFP4", "TQ1_0", "TQ2_0", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ3_XXS", "IQ3_S", "IQ1_S", "IQ1_M"]
WRITTEN = ["Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "MXFP4", "TQ2_0"]


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
