"""Golden values of losses, activations and the running mean of weights, in the layout of goldens_ops.py; called by goldens.py, or on its own.

Each reference is PyTorch in f32; where PyTorch has no such loss its definition stands here. It is recomputed in f64, and a
case is refused whose own rounding would eat a noticeable part of the tolerance.
"""
import sys
import zlib
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch.optim import swa_utils

import goldens_ops

# A half of the 1e-6 that the tests allow, of the largest value: our own rounding needs the rest.
NOISE = 5e-7


def info_nce(a, b, temperature, symmetric=False):
    """sentence_transformers.losses.MultipleNegativesRankingLoss (scale = 1 / temperature), or CLIP's loss."""
    logits = F.normalize(a, dim=-1) @ F.normalize(b, dim=-1).T / temperature
    labels = torch.arange(len(a))
    forth = F.cross_entropy(logits, labels)
    return (forth + F.cross_entropy(logits.T, labels)) / 2 if symmetric else forth


def contrastive(a, b, similar, margin):
    """Hadsell, Chopra and LeCun 2006, equation 4."""
    d = (a - b).norm(dim=-1)
    return (similar * d**2 / 2 + (1 - similar) * (margin - d).clamp(min=0) ** 2 / 2).mean()


def cross_entropy(logits, targets, smoothing, z_loss):
    z = torch.logsumexp(logits, -1)[targets != -100].square().mean()
    return F.cross_entropy(logits, targets, ignore_index=-100, label_smoothing=smoothing) + z_loss * z


def loss_cases(normal):
    """(case, operation, parameters, inputs that get gradients, index inputs, function)"""
    pair = dict(x=2 * normal(4, 9), target=normal(4, 9))
    labels = torch.arange(36).reshape(4, 9) % 2
    scores = dict(logits=4 * normal(4, 9), target=normal(4, 9).sigmoid())
    logs = dict(x=normal(5, 7).log_softmax(-1), target=normal(5, 7).softmax(-1))
    log_logs = dict(x=logs["x"], target=logs["target"].log())
    rows = dict(a=normal(6, 8), b=normal(6, 8))
    more = dict(a=rows["a"], b=normal(10, 8))
    near = dict(a=normal(6, 8), b=normal(6, 8), similar=torch.tensor([1.0, 0, 1, 0, 0, 1]))
    classes = dict(logits=4 * normal(7, 31))
    targets = dict(targets=torch.tensor([4, -100, 0, 30, 12, -100, 30]))
    head = dict(hidden=normal(7, 6), matrix=normal(31, 6), bias=normal(31))
    cases = [
        ("mse", "mse", {}, pair, {}, lambda x, target: F.mse_loss(x, target)),
        ("mae", "mae", {}, pair, {}, lambda x, target: F.l1_loss(x, target)),
        ("bce", "bce_with_logits", {}, scores, {},
         lambda logits, target: F.binary_cross_entropy_with_logits(logits, target)),
        ("kl-batchmean", "kl_div", {"mean": True, "log": False}, logs, {},
         lambda x, target: F.kl_div(x, target, reduction="batchmean")),
        ("kl-sum", "kl_div", {"mean": False, "log": False}, logs, {},
         lambda x, target: F.kl_div(x, target, reduction="sum")),
        ("kl-log-target", "kl_div", {"mean": True, "log": True}, log_logs, {},
         lambda x, target: F.kl_div(x, target, reduction="batchmean", log_target=True)),
        ("hinge", "hinge", {}, dict(x=2 * normal(4, 9), target=2.0 * labels - 1), {},
         lambda x, target: (1 - target * x).clamp(min=0).mean()),
        ("info-nce", "info_nce", {"temperature": 0.05, "symmetric": False}, rows, {},
         lambda a, b: info_nce(a, b, 0.05)),
        ("info-nce-negatives", "info_nce", {"temperature": 0.1, "symmetric": False}, more, {},
         lambda a, b: info_nce(a, b, 0.1)),
        ("info-nce-symmetric", "info_nce", {"temperature": 0.07, "symmetric": True}, rows, {},
         lambda a, b: info_nce(a, b, 0.07, symmetric=True)),
        ("contrastive", "contrastive", {"margin": 4.0}, near, {},
         lambda a, b, similar: contrastive(a, b, similar, 4.0)),
    ]
    cases += [(f"huber-{delta}", "huber", {"delta": delta}, pair, {},
               lambda x, target, delta=delta: F.huber_loss(x, target, delta=delta)) for delta in (1.0, 0.3)]
    for smoothing, z_loss in ((0.0, 0.0), (0.1, 0.0), (0.0, 1e-2), (0.3, 1e-3)):
        parameters = {"label_smoothing": smoothing, "z_loss": z_loss}
        cases += [
            (f"cross-entropy-{smoothing}-{z_loss}", "cross_entropy", parameters, classes, targets,
             lambda logits, targets, s=smoothing, z=z_loss: cross_entropy(logits, targets, s, z)),
            (f"head-{smoothing}-{z_loss}", "linear_cross_entropy", parameters, head, targets,
             lambda hidden, matrix, bias, targets, s=smoothing, z=z_loss:
             cross_entropy(F.linear(hidden, matrix, bias), targets, s, z)),
        ]
    return [(*case[:5], lambda function=case[5], **inputs: function(**inputs).reshape(1)) for case in cases]


def activation_cases(normal):
    x = dict(x=2 * normal(3, 37))
    named = [
        ("relu", {}, F.relu), ("relu2", {}, lambda x: F.relu(x) ** 2),
        ("leaky_relu", {"slope": 0.01}, F.leaky_relu), ("leaky_relu", {"slope": 0.2}, lambda x: F.leaky_relu(x, 0.2)),
        ("elu", {"alpha": 1.0}, F.elu), ("elu", {"alpha": 0.5}, lambda x: F.elu(x, 0.5)),
        ("softplus", {}, F.softplus), ("log_sigmoid", {}, F.logsigmoid), ("sigmoid", {}, F.sigmoid), ("tanh", {}, F.tanh),
        ("silu", {}, F.silu), ("gelu", {}, F.gelu), ("gelu_tanh", {}, lambda x: F.gelu(x, approximate="tanh")),
        ("quick_gelu", {}, lambda x: x * torch.sigmoid(1.702 * x)),
    ]
    cases = [("-".join([name, *map(str, settings.values())]), name, settings, x, {}, function)
             for name, settings, function in named]
    cases += [("prelu-shared", "prelu", {}, x | dict(slope=torch.tensor([0.25])), {}, F.prelu),
              ("prelu", "prelu", {}, x | dict(slope=normal(37)), {}, F.prelu)]
    return [(*case[:5], lambda function=case[5], **inputs: function(*inputs.values())) for case in cases]


def check(cases):
    for case, _, _, inputs, indices, function in cases:
        runs = []
        for dtype in (torch.float32, torch.float64):
            leaves = {key: value.clone().to(dtype).requires_grad_() for key, value in inputs.items()}
            output = function(**leaves, **indices)
            output.sum().backward()
            runs.append([output.detach().double(), *(leaf.grad.double() for leaf in leaves.values())])
        noise = max(((a - b).abs().max() / b.abs().max()).item() for a, b in zip(*runs))
        assert noise < NOISE, f"{case}: f32 is {noise:.1e} from f64"


def write_ema(root):
    """A tensor's values after twelve steps, and its running mean after each as torch.optim.swa_utils keeps it."""
    generator = torch.Generator().manual_seed(zlib.crc32(b"ema"))
    model = torch.nn.Linear(5, 3, bias=False)
    values = torch.randn(12, 3, 5, generator=generator)
    arrays = {"values": values}
    for decay in (0.5, 0.99):
        averaged = swa_utils.AveragedModel(model, multi_avg_fn=swa_utils.get_ema_multi_avg_fn(decay))
        means = []
        for value in values:
            with torch.no_grad():
                model.weight.copy_(value)
            averaged.update_parameters(model)
            means.append(averaged.module.weight.detach().clone())
        arrays[f"mean.{decay}"] = torch.stack(means)
    save_file(arrays, root / "ema.safetensors")


def write(root):
    write_ema(root)
    for name, make in (("losses", loss_cases), ("activations", activation_cases)):
        generator = torch.Generator().manual_seed(zlib.crc32(name.encode()))

        def normal(*shape):
            return torch.randn(shape, generator=generator)

        cases = make(normal)
        check(cases)
        goldens_ops.write_cases(root, name, cases, normal)


if __name__ == "__main__":
    write(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).resolve().parent.parent / "crates/testkit/goldens")
