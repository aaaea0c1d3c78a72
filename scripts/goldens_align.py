"""Golden values of the losses of alignment: crates/testkit/goldens/alignment.{safetensors,json}, in the layout of goldens_ops.py.

    /tmp/venv/bin/pip install trl && /tmp/venv/bin/python scripts/goldens_align.py

The references are TRL's own methods, called on a stand-in for their trainer whose model returns the log-probabilities at
hand. Only what TRL has no function for (GAE, whitening, KL estimators, the value loss, RLOO's advantages, which stand in the
middle of long methods) is written out here. Everything is computed in f64, but for the one loss that TRL cannot.
"""
import math
import os
import sys
import zlib
from collections import Counter, defaultdict
from pathlib import Path
from types import SimpleNamespace

os.environ["TRL_EXPERIMENTAL_SILENCE"] = "1"

import torch
from safetensors.torch import save_file
from trl import DPOTrainer, GRPOTrainer, KTOTrainer, RewardTrainer, RLOOTrainer
from trl.experimental.cpo import CPOTrainer
from trl.experimental.gkd import GKDTrainer
from trl.experimental.orpo import ORPOTrainer

import goldens_ops

LENGTHS = torch.tensor([5, 3, 6, 2])
REJECTED = torch.tensor([4, 6, 2, 3])


def stand_in(**fields):
    """What TRL's methods ask of `self`, beside the settings of the loss."""
    same = lambda x: x
    accelerator = SimpleNamespace(device="cpu", gather=same, gather_for_metrics=same, num_processes=1, sync_gradients=True,
                                  reduce=lambda x, reduction: x)
    common = dict(accelerator=accelerator, aux_loss_enabled=False, precompute_ref_logps=True, ld_alpha=None, _tp_size=1,
                  use_weighting=False, _metrics=defaultdict(lambda: defaultdict(list)), _total_train_tokens=0,
                  model=SimpleNamespace(training=True))
    return SimpleNamespace(**(common | fields))


def as_model(log_probs):
    """A model whose fused head says these log-probabilities."""
    zeros = torch.zeros_like(log_probs)
    outputs = SimpleNamespace(log_probs=log_probs, entropy=zeros, mean_logits=zeros, is_top1=zeros.bool())
    return lambda **_: outputs


def rows(sums, lengths):
    """Tokens' log-probabilities with these sums: all of it in the first token. And the mask of the completion, a prompt of one
    token before it."""
    width = int(lengths.max())
    first = torch.zeros(len(sums), width, dtype=sums.dtype)
    first[:, 0] = 1
    mask = (torch.arange(width + 1) <= lengths[:, None]).long()
    mask[:, 0] = 0
    return first * sums[:, None], mask


def dpo(kind, beta, smoothing, divergence, alpha):
    self = stand_in(beta=beta, label_smoothing=smoothing, loss_types=[kind], loss_weights=[1.0], f_divergence_type=divergence,
                    f_alpha_divergence_coef=alpha, args=SimpleNamespace(discopop_tau=0.05))

    def loss(chosen, rejected, ref_chosen, ref_rejected):
        log_probs, mask = rows(torch.cat([chosen, rejected]), torch.cat([LENGTHS, REJECTED]))
        inputs = dict(input_ids=torch.ones_like(mask), attention_mask=torch.ones_like(mask), completion_mask=mask,
                      ref_chosen_logps=ref_chosen, ref_rejected_logps=ref_rejected)
        return DPOTrainer._compute_loss(self, as_model(log_probs), inputs, False)

    return loss


def kto(beta, desirable, undesirable):
    labels = torch.tensor([True, False, True, True])

    def loss(policy, reference, kl_policy, kl_reference):
        log_probs, mask = rows(policy, LENGTHS)
        self = stand_in(beta=beta, desirable_weight=desirable, undesirable_weight=undesirable, loss_type="kto",
                        calculate_KL=True, _compute_kl_logps=lambda model, batch: kl_policy.detach())
        batch = dict(input_ids=torch.ones_like(mask), attention_mask=torch.ones_like(mask), completion_mask=mask, label=labels,
                     ref_logps=reference, ref_KL_logps=kl_reference.detach())
        return KTOTrainer._compute_loss(self, as_model(log_probs), batch, False) + 0 * (kl_policy.sum() + kl_reference.sum())

    return loss


def reward(centering):
    self = stand_in(args=SimpleNamespace(center_rewards_coefficient=centering or None))

    def loss(chosen, rejected, margin):
        model = lambda **_: SimpleNamespace(logits=torch.cat([chosen, rejected])[:, None])
        return RewardTrainer.compute_loss(self, model, dict(attention_mask=torch.ones(8, 3), margin=margin))

    return loss


def padded(flat):
    """Flat tokens of the answers as rows, and their mask."""
    mask = torch.arange(int(LENGTHS.max())) < LENGTHS[:, None]
    return torch.zeros(mask.shape, dtype=flat.dtype).masked_scatter(mask, flat), mask.long()


def grpo(kind, level, beta, low, high, longest):
    def loss(log_probs, old, reference, advantages):
        log_probs, mask = padded(log_probs)
        self = stand_in(loss_type=kind, importance_sampling_level=level, beta=beta, epsilon_low=low, epsilon_high=high,
                        max_completion_length=longest, top_entropy_quantile=1.0, off_policy_mask_threshold=None, use_vllm=False,
                        current_gradient_accumulation_steps=1, _entropy_bonus_enabled=False,
                        args=SimpleNamespace(delta=None, use_bias_correction_kl=False, steps_per_generation=1),
                        _get_per_token_logps_and_entropies=lambda *_, **__: (log_probs, torch.zeros_like(log_probs), None))
        inputs = dict(prompt_ids=mask[:, :1], prompt_mask=mask[:, :1], completion_ids=mask, completion_mask=mask,
                      advantages=advantages, old_per_token_logps=padded(old)[0], ref_per_token_logps=padded(reference)[0],
                      num_items_in_batch=mask.sum())
        return GRPOTrainer._compute_loss(self, None, inputs) + 0 * reference.sum()

    return loss


def rloo(low, high):
    def loss(log_probs, old, advantages):
        log_probs, mask = padded(log_probs)
        self = stand_in(epsilon_low=low, epsilon_high=high,
                        _get_per_token_logps_and_entropies=lambda *_, **__: (log_probs, torch.zeros_like(log_probs), None))
        inputs = dict(prompt_ids=mask[:, :1], prompt_mask=mask[:, :1], completion_ids=mask, completion_mask=mask,
                      advantages=advantages, old_logps=old)
        return RLOOTrainer._compute_loss(self, None, inputs)

    return loss


def estimate(kind):
    return lambda log_probs, reference: {
        "k1": log_probs - reference, "k2": (log_probs - reference) ** 2 / 2,
        "k3": torch.exp(reference - log_probs) - (reference - log_probs) - 1}[kind].mean()


def value_loss(clip):
    """As in TRL's PPOTrainer, until it was removed."""
    def loss(values, old, returns):
        clipped = torch.clamp(values, old - clip, old + clip)
        return 0.5 * torch.max((values - returns) ** 2, (clipped - returns) ** 2).mean()
    return loss


def cases(normal):
    """(case, operation, parameters, inputs that get gradients, index inputs, function)"""
    pairs = dict(chosen=-6 + 2 * normal(4), rejected=-7 + 2 * normal(4))
    reference = {f"ref_{side}": value + 2 * normal(4) for side, value in pairs.items()}
    both = pairs | reference
    found = []
    kinds = dict(sigmoid=0, hinge=0, ipo=0, exo_pair=0.1, nca_pair=0, robust=0.1, bco_pair=0, sppo_hard=0, aot=0.1,
                 aot_unpaired=0.1, apo_zero=0, apo_down=0, discopop=0, sigmoid_norm=0)
    diverging = ("sigmoid", "hinge", "ipo", "exo_pair", "robust", "discopop", "sigmoid_norm")
    lengths = dict(chosen_len=LENGTHS, rejected_len=REJECTED)
    for kind, smoothing in kinds.items():
        divergences = ["reverse_kl", "forward_kl", "js_divergence", "alpha_divergence"]
        for divergence in divergences if kind in diverging else divergences[:1]:
            for beta in (0.1, 0.5):
                parameters = dict(beta=beta, label_smoothing=smoothing, alpha=0.5)
                found.append((f"{kind}-{divergence}-{beta}", f"dpo/{kind}/{divergence}", parameters, both, lengths,
                              dpo(kind, beta, smoothing, divergence, 0.5)))
    single = dict(policy=pairs["chosen"], reference=reference["ref_chosen"])
    for shift in (-1.0, 3.0):  # a mean of the log-ratios below zero, which is taken for zero, and one above
        terms = dict(kl_policy=-6 + normal(4) + shift, kl_reference=-6 + normal(4))
        found.append((f"kto-{shift}", "kto", dict(beta=0.1, desirable=1.0, undesirable=1.5), single | terms, {}, kto(0.1, 1.0, 1.5)))
    means = dict(chosen=-0.1 - normal(4).abs(), rejected=-0.1 - normal(4).abs())
    found.append(("orpo", "orpo", dict(beta=0.1), means, {}, lambda chosen, rejected: -ORPOTrainer.odds_ratio_loss(
        stand_in(beta=0.1), chosen, rejected)[0].mean()))
    for smoothing in (0.0, 0.1):
        for kind, inputs, beta in (("simpo", means, 2.0), ("sigmoid", pairs, 0.1)):
            self = stand_in(beta=beta, alpha=0.0, loss_type=kind, simpo_gamma=0.5, label_smoothing=smoothing)
            name = "simpo" if kind == "simpo" else "cpo"
            found.append((f"{name}-{smoothing}", name, dict(beta=beta, gamma=0.5, label_smoothing=smoothing), inputs, {},
                          lambda chosen, rejected, self=self: CPOTrainer.cpo_loss(self, chosen, rejected)[0].mean()))
    scores = dict(chosen=normal(4), rejected=normal(4), margin=normal(4).abs())
    found += [(f"reward-{c}", "bradley_terry", dict(centering=c), scores, {}, reward(c)) for c in (0.0, 0.01)]
    logits = dict(student=2 * normal(5, 17), teacher=2 * normal(5, 17))
    for beta in (0.0, 0.1, 0.5, 1.0):
        for temperature in (1.0, 0.9):
            found.append((f"jsd-{beta}-{temperature}", "generalised_jsd", dict(beta=beta, temperature=temperature), logits, {},
                          lambda student, teacher, b=beta, t=temperature: GKDTrainer.generalized_jsd_loss(
                              student, teacher, beta=b, temperature=t)))
    tokens = int(LENGTHS.sum())
    old = -1 - normal(tokens).abs()
    near = dict(log_probs=old + 0.3 * normal(tokens), reference=old + 0.5 * normal(tokens))
    found += [(kind, f"kl/{kind}", {}, near, {}, estimate(kind)) for kind in ("k1", "k2", "k3")]
    fixed = dict(old=old, advantages=torch.tensor([1.2, -0.7, 0.4, -1.5]))
    for kind, level in (("grpo", "token"), ("dapo", "token"), ("dr_grpo", "token"), ("bnpo", "token"), ("grpo", "sequence")):
        name = "gspo" if level == "sequence" else kind
        for beta in (0.0, 0.04):
            parameters = dict(beta=beta, low=0.2, high=0.28, longest=8)
            function = grpo(kind, level, beta, 0.2, 0.28, 8)
            found.append((f"{name}-{beta}", f"grpo/{name}", parameters, near | fixed, dict(lengths=LENGTHS),
                          lambda lengths, f=function, **inputs: f(**inputs)))
    sums = torch.stack([part.sum() for part in old.split(LENGTHS.tolist())]) + 0.1 * normal(4)
    found.append(("rloo", "rloo", dict(low=0.2, high=0.2), fixed | dict(log_probs=old + 0.1 * normal(tokens), old=sums),
                  dict(lengths=LENGTHS), lambda lengths, **inputs: rloo(0.2, 0.2)(**inputs)))
    values = dict(values=normal(9), returns=normal(9))
    values["old"] = values["values"] + 0.3 * normal(9)
    found.append(("value", "value", dict(clip=0.2), values, {}, value_loss(0.2)))
    rewards = dict(rewards=torch.cat([normal(8), torch.ones(4)]))
    grouped = lambda r: r.view(-1, 4)
    spread = lambda r: grouped(r).std(1).repeat_interleave(4) + 1e-4
    centered = lambda r: r - grouped(r).mean(1).repeat_interleave(4)
    for kind, function in (  # from the middle of GRPOTrainer._generate_and_score_completions and RLOOTrainer's
        ("group", lambda r: centered(r) / spread(r)), ("batch", lambda r: centered(r) / (r.std() + 1e-4)), ("none", centered),
        ("leave_one_out", lambda r: r - ((grouped(r).sum(1, keepdim=True) - grouped(r)) / 3).view(-1)),
        # TRL's masked_whiten, until it was removed
        ("whiten", lambda r: (r - r.mean()) * torch.rsqrt(r.var() + 1e-8)),
        ("whiten_keep", lambda r: (r - r.mean()) * torch.rsqrt(r.var() + 1e-8) + r.mean()),
    ):
        found.append((f"advantages-{kind}", f"advantages/{kind}", {}, rewards, {}, lambda rewards, f=function: f(rewards)))
    steps = dict(rewards=normal(7), values=normal(7))

    def gae(rewards, values, gamma=0.97, lam=0.93):
        """Schulman et al. 2016, as the sum that defines it."""
        following = torch.cat([values[1:], values.new_zeros(1)])
        surprises = rewards + gamma * following - values
        power = torch.arange(7)[None, :] - torch.arange(7)[:, None]
        return torch.where(power >= 0, (gamma * lam) ** power.clamp(min=0).to(values), 0.0) @ surprises

    found.append(("gae", "gae", dict(gamma=0.97, lam=0.93), steps, {}, gae))
    return found


def share(arrays, index):
    """The arrays, those that several cases have stored once: the cases then say under which name."""
    content = {name: (str(value.dtype), tuple(value.shape), value.numpy().tobytes()) for name, value in arrays.items()}
    counts = Counter(content.values())
    names, left = {}, {}
    for entry in index:
        prefix = entry["case"] + "."
        for name in [name for name in arrays if name.startswith(prefix)]:
            if counts[content[name]] == 1:
                left[name] = arrays[name]
                continue
            shared = names.setdefault(content[name], f"s{len(names)}")
            left[shared] = arrays[name]
            entry.setdefault("shared", {})[name.removeprefix(prefix)] = shared
    return left


def write(root):
    generator = torch.Generator().manual_seed(zlib.crc32(b"alignment"))
    normal = lambda *shape: torch.randn(shape, generator=generator)
    arrays, index = {}, []
    for case, operation, parameters, inputs, indices, function in cases(normal):
        # TRL's α-divergence knows no f64.
        dtype = torch.float32 if "alpha" in case else torch.float64
        leaves = {key: value.clone().to(dtype).requires_grad_() for key, value in inputs.items()}
        given = {} if operation.startswith("dpo/") else indices
        output = function(**leaves, **given).reshape(-1)
        weight = normal(*output.shape) if output.numel() > 1 else torch.ones(1)
        (output * weight).sum().backward()
        gradients = {f"gradient.{key}": (torch.zeros_like(leaf) if leaf.grad is None else leaf.grad).float()
                     for key, leaf in leaves.items()}
        assert all(math.isfinite(value.abs().sum().item()) for value in gradients.values()), case
        stored = {**inputs, **indices, "output": output.detach().float(), "weight": weight} | gradients
        arrays |= {f"{case}.{key}": value.clone().contiguous() for key, value in stored.items()}
        index.append(dict(case=case, operation=operation, parameters=parameters,
                          inputs=[*inputs, *indices], gradients=[*inputs]))
    save_file(share(arrays, index), root / "alignment.safetensors")
    goldens_ops.write_json(root / "alignment.json", {"cases": index})


if __name__ == "__main__":
    write(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).resolve().parent.parent / "crates/testkit/goldens")
