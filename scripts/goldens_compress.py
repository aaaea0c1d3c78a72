"""Golden results of GPTQ, SparseGPT and Wanda, from their algorithms as the papers state them, in PyTorch and f64.

    python scripts/goldens_compress.py

GPTQ rounds to 4-bit blocks of 32 with one scale (Q4_0 of GGUF: the number farthest from zero over -8, in half precision),
found when the block's turn comes. One matrix [24, 96], inputs [160, 96] that depend on each other. The explicit inverse
of the Hessian and its factor are torch's, so that nothing is shared with what is tested.
"""
from pathlib import Path

import torch
from safetensors.torch import save_file

ROWS, WIDTH, SAMPLES, DAMPING = 24, 96, 160, 0.01


def upper_of_inverse(x):
    h = x.T @ x
    h += DAMPING * h.diag().mean() * torch.eye(WIDTH, dtype=torch.float64)
    return torch.linalg.cholesky(torch.linalg.inv(h), upper=True)


def gptq(w, x):
    w, u, q = w.clone(), upper_of_inverse(x), torch.zeros_like(w)
    for i in range(WIDTH):
        if i % 32 == 0:
            block = w[:, i:i + 32].float()
            largest = block.gather(1, block.abs().argmax(1, keepdim=True))[:, 0]
            scale = (largest / -8).half().double()
            values = scale[:, None] * (torch.arange(16, dtype=torch.float64) - 8)
        q[:, i] = values.gather(1, (values - w[:, i:i + 1]).abs().argmin(1, keepdim=True))[:, 0]
        error = (w[:, i] - q[:, i]) / u[i, i]
        w[:, i:] -= error[:, None] * u[i, i:]
    return q


def sparsegpt(w, x, choose, group):
    """`choose(scores)` marks what goes, of the columns whose zeros are chosen together."""
    w, u = w.clone(), upper_of_inverse(x)
    for i in range(WIDTH):
        if i % group == 0:
            end = min(i + group, WIDTH)
            gone = choose((w[:, i:end] / u.diag()[i:end]) ** 2)
        mask = gone[:, i % group]
        error = torch.where(mask, w[:, i] / u[i, i], 0.0)
        w[:, i:] -= error[:, None] * u[i, i:]
        w[mask, i] = 0.0
    return w


def lowest(scores, count, dim):
    mask = torch.zeros(scores.shape, dtype=torch.bool)
    return mask.scatter(dim, scores.argsort(dim=dim, stable=True).narrow(dim, 0, count), True)


def half_of_all(scores):
    return lowest(scores.flatten(), scores.numel() // 2, 0).view_as(scores)


def write(path):
    torch.manual_seed(5)
    mixing = torch.randn(WIDTH, WIDTH, dtype=torch.float64) / 8 + torch.eye(WIDTH, dtype=torch.float64)
    sizes = torch.exp(torch.randn(WIDTH, dtype=torch.float64))
    x = ((torch.randn(SAMPLES, WIDTH, dtype=torch.float64) @ mixing) * sizes).float()
    w = torch.randn(ROWS, WIDTH, dtype=torch.float64).mul(0.1).float()
    wide_x, wide_w = x.double(), w.double()
    scores = wide_w.abs() * wide_x.pow(2).mean(0).sqrt()
    pairs = lambda s: lowest(s.view(ROWS, -1, 4), 2, 2).view(ROWS, -1)
    masks = {
        "wanda_half": lowest(scores, WIDTH // 2, 1),
        "wanda_2_4": pairs(scores),
        "magnitude_half": half_of_all(wide_w.abs()),
    }
    arrays = {
        "x": x,
        "w": w,
        "gptq_q4_0": gptq(wide_w, wide_x).float(),
        "sparsegpt_half": sparsegpt(wide_w, wide_x, half_of_all, 128).float(),
        "sparsegpt_2_4": sparsegpt(wide_w, wide_x, lambda s: lowest(s, 2, 1), 4).float(),
        **{name: mask.float() for name, mask in masks.items()},
    }
    save_file({name: array.contiguous() for name, array in arrays.items()}, path)
    path.chmod(0o644)


if __name__ == "__main__":
    torch.set_num_threads(1)
    write(Path(__file__).resolve().parent.parent / "crates" / "compress" / "tests" / "goldens" / "compress.safetensors")
