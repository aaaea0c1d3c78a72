"""Golden steps of every optimizer; called by goldens.py, or on its own for these and the schedules.

Three parameters, a tall and a wide matrix and a vector, get the same twenty random gradients from every optimizer; what is
kept are the parameters after some of the steps. Each reference is torch.optim in f32 (Lion has none, so its two lines
stand here), recomputed in f64.
"""
import json
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch.optim import _muon

STEPS, KEPT = 20, (1, 7, 20)
SHAPES = {"tall": (6, 5), "wide": (4, 7), "vector": (5,)}
# A half of what the test allows: our own rounding needs the rest.
NOISE = 5e-7
ADAM = dict(beta1=0.9, beta2=0.95, eps=1e-8)
# Settings under the names of a recipe. Weight decay is of matrices only.
CASES = {
    "adamw": dict(optimizer="adamw", lr=0.01, weight_decay=0.1, **ADAM),
    "adam": dict(optimizer="adam", lr=0.01, weight_decay=0.1, **ADAM),
    "sgd": dict(optimizer="sgd", lr=0.02, weight_decay=0.1),
    "momentum": dict(optimizer="momentum", lr=0.01, weight_decay=0.1, momentum=0.9),
    "nesterov": dict(optimizer="nesterov", lr=0.01, weight_decay=0.1, momentum=0.9),
    "adagrad": dict(optimizer="adagrad", lr=0.05, weight_decay=0.1, eps=1e-8),
    "rmsprop": dict(optimizer="rmsprop", lr=0.01, weight_decay=0.1, beta2=0.95, eps=1e-8),
    "adafactor": dict(optimizer="adafactor", lr=0.1, weight_decay=0.1),
    "lion": dict(optimizer="lion", lr=0.01, weight_decay=0.1, beta1=0.9, beta2=0.99),
    "muon": dict(optimizer="muon", lr=0.02, weight_decay=0.1, momentum=0.95, **ADAM),
    # As torch.optim.Muon is, with Newton-Schulz in bf16; above it is in f32, as ours.
    "muon_bf16": dict(optimizer="muon", lr=0.02, weight_decay=0.1, momentum=0.95, **ADAM),
}


class Lion(torch.optim.Optimizer):
    """Algorithm 2 of Chen et al. 2023."""

    def __init__(self, groups, lr, betas):
        super().__init__(groups, dict(lr=lr, betas=betas, weight_decay=0.0))

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            (beta1, beta2), lr, decay = group["betas"], group["lr"], group["weight_decay"]
            for p in group["params"]:
                m = self.state[p].setdefault("m", torch.zeros_like(p))
                p -= lr * ((beta1 * m + (1 - beta1) * p.grad).sign() + decay * p)
                m.mul_(beta2).add_(p.grad, alpha=1 - beta2)


class TorchWithout16Bits:
    """torch, but what torch.optim.Muon takes for bf16 is another type."""

    def __init__(self, dtype):
        self.bfloat16 = dtype

    def __getattr__(self, name):
        return getattr(torch, name)


def optimizers(parameters, optimizer, lr, weight_decay, beta1=None, beta2=None, eps=None, momentum=0.0):
    """The references that together do what one optimizer of ours does."""
    matrices = [p for p in parameters.values() if p.dim() >= 2]
    vectors = [p for p in parameters.values() if p.dim() < 2]
    groups = [dict(params=matrices, weight_decay=weight_decay), dict(params=vectors, weight_decay=0.0)]
    optim = torch.optim
    if optimizer == "muon":
        return [optim.Muon(matrices, lr=lr, weight_decay=weight_decay, momentum=momentum, adjust_lr_fn="match_rms_adamw"),
                optim.AdamW(vectors, lr=lr, betas=(beta1, beta2), eps=eps, weight_decay=0.0)]
    make = {
        "adamw": lambda: optim.AdamW(groups, lr=lr, betas=(beta1, beta2), eps=eps),
        "adam": lambda: optim.Adam(groups, lr=lr, betas=(beta1, beta2), eps=eps),
        "sgd": lambda: optim.SGD(groups, lr=lr),
        "momentum": lambda: optim.SGD(groups, lr=lr, momentum=momentum),
        "nesterov": lambda: optim.SGD(groups, lr=lr, momentum=momentum, nesterov=True),
        "adagrad": lambda: optim.Adagrad(groups, lr=lr, eps=eps),
        "rmsprop": lambda: optim.RMSprop(groups, lr=lr, alpha=beta2, eps=eps),
        # eps1 is that of f32 in f64, too, or it would be another algorithm.
        "adafactor": lambda: optim.Adafactor(groups, lr=lr, eps=(torch.finfo(torch.float32).eps, 1e-3)),
        "lion": lambda: Lion(groups, lr, (beta1, beta2)),
    }
    return [make[optimizer]()]


def trajectory(settings, initial, gradients, dtype, newton_schulz):
    parameters = {key: value.to(dtype).clone().requires_grad_() for key, value in initial.items()}
    references = optimizers(parameters, **settings)
    _muon.torch = TorchWithout16Bits(newton_schulz)
    kept = {key: [] for key in parameters}
    for step in range(STEPS):
        for key, parameter in parameters.items():
            parameter.grad = gradients[key][step].to(dtype)
        for reference in references:
            reference.step()
        if step + 1 in KEPT:
            for key, parameter in parameters.items():
                kept[key].append(parameter.detach().clone())
    _muon.torch = torch
    return {key: torch.stack(values) for key, values in kept.items()}


def write(root):
    generator = torch.Generator().manual_seed(20)
    initial = {key: 0.5 * torch.randn(shape, generator=generator) for key, shape in SHAPES.items()}
    gradients = {key: torch.randn((STEPS, *shape), generator=generator) for key, shape in SHAPES.items()}
    arrays = {f"initial.{key}": value for key, value in initial.items()}
    arrays |= {f"gradient.{key}": value for key, value in gradients.items()}
    for name, settings in CASES.items():
        bf16 = name == "muon_bf16"
        single = trajectory(settings, initial, gradients, torch.float32, torch.bfloat16 if bf16 else torch.float32)
        double = trajectory(settings, initial, gradients, torch.float64, torch.float64)
        noise = max((single[key] - double[key]).abs().max().item() for key in single)
        moved = min((single[key][-1] - initial[key]).abs().max().item() for key in single)
        largest = max(value.abs().max().item() for value in single.values())
        print(f"{name:26} moved by {moved:.2f}, |max| {largest:.2f}, noise {noise:.1e}")
        if noise > NOISE and not bf16:
            sys.exit(f"{name}: f32 noise is too near to the tolerance; choose a smaller learning rate")
        arrays |= {f"{name}.{key}": value for key, value in single.items()}
    # One entry: safetensors writes several in an order of its own, another one in each run.
    metadata = {"table": json.dumps(dict(kept=KEPT, cases=CASES))}
    path = root / "optimizers.safetensors"
    save_file(arrays, path, metadata)
    path.chmod(0o644)


if __name__ == "__main__":
    import goldens_ops

    target = Path(__file__).resolve().parent.parent / "crates" / "testkit" / "goldens"
    torch.set_num_threads(1)
    write(target)
    goldens_ops.write_schedules(target)
