"""Golden values of single operations, samplers and schedules; called by goldens.py.

ops.safetensors holds the arrays, ops.json says for each case which operation it is, its parameters, and the names of its
inputs, its output and the gradients. The gradients are those of sum(output * weight), where `weight` is a stored array:
an upstream gradient that is different everywhere.
"""
import json
import zlib

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from transformers import optimization

import goldens_samplers


def attention(q, k, v, causal):
    """[batch, time, heads, head_dim] in and out; fewer key heads than query heads are shared in groups."""
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    groups = q.shape[1] // k.shape[1]
    k, v = (x.repeat_interleave(groups, dim=1) for x in (k, v))
    return F.scaled_dot_product_attention(q, k, v, is_causal=causal).transpose(1, 2)


def rope(x, positions, theta):
    """Rotates the pairs (i, i + head_dim/2) of x [batch, time, heads, head_dim]."""
    half = x.shape[-1] // 2
    frequencies = theta ** (-torch.arange(half, dtype=torch.float32) / half)
    angles = positions[:, None].float() * frequencies
    cos, sin = angles.cos()[None, :, None, :], angles.sin()[None, :, None, :]
    low, high = x[..., :half], x[..., half:]
    return torch.cat([low * cos - high * sin, high * cos + low * sin], dim=-1)


def op_cases(normal):
    """(case, operation, parameters, inputs that get gradients, index inputs, function)"""
    wide = normal(3, 37) * 3
    targets = torch.tensor([4, -100, 0, 30, 12, -100, 30])
    ids = torch.tensor([[0, 5, 5], [9, 2, 0]])
    positions = torch.tensor([0, 1, 2, 7, 31])
    qkv = dict(q=normal(2, 7, 4, 5), k=normal(2, 7, 2, 5), v=normal(2, 7, 2, 5))
    longer = dict(q=normal(1, 4, 2, 8), k=normal(1, 9, 2, 8), v=normal(1, 9, 2, 8))
    norm = dict(x=normal(5, 19) * 2 + 0.5, scale=1 + 0.3 * normal(19))
    return [
        ("gelu", "gelu", {}, dict(x=wide), {}, lambda x: F.gelu(x)),
        ("gelu-tanh", "gelu_tanh", {}, dict(x=wide), {}, lambda x: F.gelu(x, approximate="tanh")),
        ("silu", "silu", {}, dict(x=wide), {}, lambda x: F.silu(x)),
        ("silu-gated", "silu_gated", {}, dict(gate=wide, up=normal(3, 37)), {}, lambda gate, up: F.silu(gate) * up),
        ("softmax", "softmax", {}, dict(x=wide), {}, lambda x: F.softmax(x, dim=-1)),
        ("layer-norm", "layer_norm", {"eps": 1e-5}, norm | dict(bias=normal(19)), {},
         lambda x, scale, bias: F.layer_norm(x, (19,), scale, bias, 1e-5)),
        ("rms-norm", "rms_norm", {"eps": 1e-6}, norm, {},
         lambda x, scale: F.rms_norm(x, (19,), scale, 1e-6)),
        ("linear", "linear", {}, dict(x=normal(5, 13), matrix=normal(7, 13), bias=normal(7)), {},
         lambda x, matrix, bias: F.linear(x, matrix, bias)),
        ("embedding", "embedding", {}, dict(table=normal(11, 6)), dict(ids=ids), lambda table, ids: F.embedding(ids, table)),
        ("rope", "rope", {"theta": 100.0}, dict(x=normal(2, 5, 3, 8)), dict(positions=positions),
         lambda x, positions: rope(x, positions, 100.0)),
        ("cross-entropy", "cross_entropy", {"ignore_index": -100}, dict(logits=normal(7, 31) * 4), dict(targets=targets),
         lambda logits, targets: F.cross_entropy(logits, targets, ignore_index=-100).reshape(1)),
        ("attention-causal-gqa", "attention", {"causal": True}, qkv, {}, lambda q, k, v: attention(q, k, v, True)),
        ("attention-bidirectional", "attention", {"causal": False}, longer, {},
         lambda q, k, v: attention(q, k, v, False)),
    ]


def write_ops(root):
    generator = torch.Generator().manual_seed(zlib.crc32(b"ops"))

    def normal(*shape):
        return torch.randn(shape, generator=generator)

    write_cases(root, "ops", op_cases(normal), normal)


def write_cases(root, name, cases, normal):
    """Runs each case forth and back; writes the arrays to `name`.safetensors and the list of cases to `name`.json."""
    arrays, index = {}, []
    for case, operation, parameters, inputs, indices, function in cases:
        leaves = {key: value.clone().requires_grad_() for key, value in inputs.items()}
        output = function(**leaves, **indices)
        weight = normal(*output.shape) if output.numel() > 1 else torch.ones(1)
        (output * weight).sum().backward()
        stored = {**inputs, **indices, "output": output.detach(), "weight": weight} | {
            f"gradient.{key}": leaf.grad for key, leaf in leaves.items()}
        arrays |= {f"{case}.{key}": value.clone().contiguous() for key, value in stored.items()}
        index.append(dict(case=case, operation=operation, parameters=parameters,
                          inputs=[*inputs, *indices], gradients=[*inputs]))
    save_file(arrays, root / f"{name}.safetensors")
    write_json(root / f"{name}.json", {"cases": index})


SCHEDULES = [  # name, steps, warmup, smallest multiplier, what only this one has
    ("constant", 10, 0, None, {}),
    ("constant", 10, 4, None, {}),
    ("linear", 20, 5, None, {}),
    ("linear", 10, 0, None, {}),
    ("cosine", 20, 5, None, {}),
    ("cosine", 12, 0, None, {}),
    ("cosine", 20, 4, 0.1, {}),
    ("wsd", 20, 4, 0.0, dict(decay_steps=6, decay="linear")),
    ("wsd", 20, 4, 0.1, dict(decay_steps=6, decay="linear")),
    ("wsd", 20, 4, 0.0, dict(decay_steps=6, decay="cosine")),
    ("wsd", 20, 0, 0.0, dict(decay_steps=8, decay="1-sqrt")),
    ("cosine_restarts", 20, 4, None, dict(cycles=3)),
    ("cosine_restarts", 20, 0, None, dict(cycles=4)),
    ("polynomial", 20, 4, 0.1, dict(power=2.0)),
    ("polynomial", 20, 0, 0.0, dict(power=0.5)),
    ("inverse_sqrt", 30, 5, None, {}),
    ("inverse_sqrt", 10, 0, None, {}),
    ("one_cycle", 20, 6, 4e-6, {}),
    ("one_cycle", 20, 2, 0.1, {}),
    ("one_cycle", 20, 0, 0.1, {}),
]


def scheduler(optimizer, name, steps, warmup, minimum, decay_steps=None, decay=None, cycles=None, power=None):
    if name == "constant":
        return optimization.get_constant_schedule_with_warmup(optimizer, warmup)
    if name == "linear":
        return optimization.get_linear_schedule_with_warmup(optimizer, warmup, steps)
    if name == "cosine" and minimum is None:
        return optimization.get_cosine_schedule_with_warmup(optimizer, warmup, steps)
    if name == "cosine":
        return optimization.get_cosine_with_min_lr_schedule_with_warmup(optimizer, warmup, steps, min_lr_rate=minimum)
    if name == "cosine_restarts":
        return optimization.get_cosine_with_hard_restarts_schedule_with_warmup(optimizer, warmup, steps, cycles)
    if name == "polynomial":
        return optimization.get_polynomial_decay_schedule_with_warmup(optimizer, warmup, steps, minimum, power)
    if name == "inverse_sqrt":
        return optimization.get_inverse_sqrt_schedule(optimizer, warmup)
    if name == "one_cycle":
        # A rise of a single step divides by zero in PyTorch.
        return torch.optim.lr_scheduler.OneCycleLR(optimizer, 1.0, total_steps=steps, pct_start=warmup / steps,
                                                   cycle_momentum=False, final_div_factor=1 / (25 * minimum))
    return optimization.get_wsd_schedule(optimizer, warmup, decay_steps, steps, decay_type=decay, min_lr_ratio=minimum)


def write_schedules(root):
    """multipliers[i] is the factor on the learning rate in step i (counted from 0), one more than there are steps."""
    cases = []
    for name, steps, warmup, minimum, own in SCHEDULES:
        optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
        schedule = scheduler(optimizer, name, steps, warmup, minimum, **own)
        multipliers = []
        for _ in range(steps + 1):
            multipliers.append(schedule.get_last_lr()[0])
            optimizer.step()
            if len(multipliers) < steps or name != "one_cycle":  # which is at its end in the last step, and stays there
                schedule.step()
        keys = dict.fromkeys(("decay_steps", "decay", "cycles", "power")) | own
        cases.append(dict(schedule=name, steps=steps, warmup_steps=warmup, minimum=minimum or 0.0, **keys,
                          multipliers=multipliers))
    write_json(root / "schedules.json", {"cases": cases})


def write_json(path, value):
    """One case per line: small, and a change shows as one line of the diff."""
    text = json.dumps({key: item for key, item in value.items() if key != "cases"})[:-1]
    lines = ",\n".join("  " + json.dumps(case) for case in value["cases"])
    path.write_text(f'{text}{", " if len(value) > 1 else ""}"cases": [\n{lines}\n]}}\n')


def write(root):
    write_ops(root)
    goldens_samplers.write(root, write_json)
    write_schedules(root)
