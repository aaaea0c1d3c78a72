"""Golden steps of AdamW with moments of 8 bits; on its own, since only this needs bitsandbytes (pip install --no-deps).

The reference is bitsandbytes' step in plain PyTorch, which it keeps beside its GPU kernels. One matrix of 17 blocks, twenty
steps; initial values and gradients follow from whole numbers, as in the test that reads the file. Gradients of a block
lie within a factor of 20, so no second moment is rounded to zero: there ours differs, and says why.
"""
import sys
from pathlib import Path
from unittest.mock import MagicMock

import torch

# The file defines GPU kernels, too, which are not called; and what it would compile runs as it stands.
sys.modules["triton"] = sys.modules["triton.language"] = MagicMock()
torch.compile = lambda function: function

from bitsandbytes.backends.triton.kernels_optim import optimizer_update_8bit_blockwise_pytorch
from bitsandbytes.functional import create_dynamic_map
from safetensors.torch import save_file

SHAPE, BLOCK, STEPS, KEPT = (64, 68), 256, 20, (1, 7, 20)
# Every so many values are kept.
STRIDE = 8


def unit(i, step):
    """Numbers in [0, 1) that look random."""
    return ((i * 7919 + step * 104729 + (i * step % 97) * 12345) % 2003).double() / 2003


def gradient(i, step):
    u = unit(i, step)
    return torch.where(unit(i, step + 1000) < 0.4, -1.0, 1.0).double() * (0.05 + 0.95 * u)


def write(root):
    n = SHAPE[0] * SHAPE[1]
    i = torch.arange(n)
    p = (2.0 * unit(i, 500) - 1.0).float()
    codes = [torch.zeros(n, dtype=torch.uint8) for _ in range(2)]
    scales = [torch.zeros(n // BLOCK) for _ in range(2)]
    maps = [create_dynamic_map(signed=True), create_dynamic_map(signed=False)]
    kept = []
    for step in range(1, STEPS + 1):
        optimizer_update_8bit_blockwise_pytorch(
            p, gradient(i, step).float(), codes[0], codes[1], 0.9, 0.95, 0.0, 0.0, 1e-8, step, 0.01, maps[0], maps[1],
            scales[0], scales[1], 0.1, 1.0, False, optimizer_name="adam")
        assert (codes[1] != 0).all(), "a second moment was rounded to zero"
        if step in KEPT:
            kept.append(p[::STRIDE].clone())
    save_file({"kept": torch.stack(kept)}, root / "adamw8bit.safetensors")
    (root / "adamw8bit.safetensors").chmod(0o644)


if __name__ == "__main__":
    torch.set_num_threads(1)
    write(Path(__file__).resolve().parent.parent / "crates" / "testkit" / "goldens")
