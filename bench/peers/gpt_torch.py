"""One training step of a small GPT in PyTorch, timed: the peer of `loam bench train`.

    python bench/peers/gpt_torch.py CONFIG PRECISION [--compile] [--threads 2] [--steps N]

CONFIG is small, baby or gpt2; PRECISION is f32 or bf16 (CPU autocast). Prints one JSON line with the fields of
`loam bench train --json`; `step_s` is the median step.

A step is forward, cross-entropy, backward and fused AdamW on one fixed random batch. The network has learned positions,
norms before each half-block (scale, no bias), tanh-GELU, no other bias, no dropout, and a head of its own.

Floating-point operations of a step, the same rule as in Loam:
    6 * matrix parameters * tokens  +  6 * layers * width * time * tokens
where the matrix parameters are 12 * width^2 per layer and the head; the second term is attention, causal, counted half.
"""
import argparse
import json
import resource
import statistics
import time
from dataclasses import dataclass

import torch
from torch.nn import functional as F

WARMUP = 3


@dataclass(frozen=True)
class Config:
    vocab: int
    width: int
    layers: int
    heads: int
    time: int
    batch: int
    steps: int  # that are timed

    @property
    def tokens(self):
        return self.batch * self.time

    @property
    def flop(self):
        matrices = 12 * self.layers * self.width**2 + self.vocab * self.width
        return 6 * self.tokens * (matrices + self.layers * self.width * self.time)


CONFIGS = {
    "small": Config(vocab=65, width=128, layers=4, heads=4, time=64, batch=12, steps=60),
    "baby": Config(vocab=65, width=384, layers=6, heads=6, time=256, batch=16, steps=10),
    "gpt2": Config(vocab=50304, width=768, layers=12, heads=12, time=256, batch=4, steps=5),
}


def parameters(c):
    """All weights by name; a layer's start with its number."""
    shapes = {"tokens": (c.vocab, c.width), "positions": (c.time, c.width)}
    for i in range(c.layers):
        shapes |= {
            f"{i}.norm_attention": (c.width,), f"{i}.qkv": (3 * c.width, c.width), f"{i}.project": (c.width, c.width),
            f"{i}.norm_mlp": (c.width,), f"{i}.up": (4 * c.width, c.width), f"{i}.down": (c.width, 4 * c.width),
        }
    shapes |= {"norm": (c.width,), "head": (c.vocab, c.width)}
    values = {name: torch.ones(shape) if len(shape) == 1 else 0.02 * torch.randn(shape) for name, shape in shapes.items()}
    return {name: value.requires_grad_() for name, value in values.items()}


def loss_of(c, w, inputs, targets):
    def norm(x, name):
        return F.layer_norm(x, (c.width,), w[name])

    x = w["tokens"][inputs] + w["positions"]
    for i in range(c.layers):
        qkv = F.linear(norm(x, f"{i}.norm_attention"), w[f"{i}.qkv"])
        # [batch, time, 3, heads, head width] to three of [batch, heads, time, head width]
        q, k, v = qkv.unflatten(-1, (3, c.heads, -1)).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2)
        x = x + F.linear(mixed, w[f"{i}.project"])
        inner = F.gelu(F.linear(norm(x, f"{i}.norm_mlp"), w[f"{i}.up"]), approximate="tanh")
        x = x + F.linear(inner, w[f"{i}.down"])
    logits = F.linear(norm(x, "norm"), w["head"])
    return F.cross_entropy(logits.flatten(0, 1), targets.flatten())


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", choices=CONFIGS)
    parser.add_argument("precision", choices=["f32", "bf16"])
    parser.add_argument("--compile", action="store_true", help="torch.compile the step (needs a C++ compiler)")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--steps", type=int, help="timed steps, default by configuration")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    c = CONFIGS[options.config]
    w = parameters(c)
    optimizer = torch.optim.AdamW(w.values(), lr=1e-3, fused=True)
    batch = torch.randint(c.vocab, (2, c.batch, c.time))
    forward = torch.compile(loss_of) if options.compile else loss_of
    seconds = []
    for _ in range(WARMUP + (options.steps or c.steps)):
        begun = time.perf_counter()
        with torch.autocast("cpu", torch.bfloat16, enabled=options.precision == "bf16"):
            loss = forward(c, w, *batch)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        seconds.append(time.perf_counter() - begun)
    step = statistics.median(seconds[WARMUP:])
    print(json.dumps({
        "peer": f"torch {torch.__version__} {options.precision}{' compile' if options.compile else ''}",
        "config": options.config,
        "step_s": round(step, 4),
        "tokens_per_s": round(c.tokens / step),
        "gflop_per_s": round(c.flop / step / 1e9, 1),
        "peak_rss_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
        "loss": round(loss.item(), 4),
    }))


if __name__ == "__main__":
    main()
