"""Writes the golden files that Loam's tests compare themselves with.

    python3 -m venv .venv && .venv/bin/pip install torch transformers safetensors
    .venv/bin/python scripts/goldens.py            # or: cargo run -p loam-xtask -- goldens

Everything goes to crates/testkit/goldens/ (see the README there) and is committed, so that no test needs Python.
Seeds are fixed: a second run with the same versions writes the same bytes. Each reference is PyTorch in f32 with eager
attention; the script recomputes it in f64 and refuses to write a case whose own rounding noise would eat a noticeable
part of the tolerance that the tests allow.
"""
import argparse
import json
import shutil
import sys
import zlib
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModel, AutoModelForCausalLM, AutoModelForMaskedLM, AutoModelForQuestionAnswering, AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification, AutoModelForTokenClassification, BartConfig, BertConfig, DistilBertConfig,
    GenerationConfig, MarianConfig, ModernBertConfig, RobertaConfig, T5Config, Gemma2Config, Gemma3TextConfig, GPT2Config, GPTNeoXConfig, LlamaConfig, MistralConfig, MixtralConfig,
    OPTConfig, Phi3Config, Qwen2Config, Qwen3Config, Qwen3MoeConfig,
)
from transformers.utils.logging import disable_progress_bar

import goldens_functions
import goldens_ops
import goldens_optim

ROOT = Path(__file__).resolve().parent.parent / "crates" / "testkit" / "goldens"
BATCH, TIME, IGNORED = 2, 17, -100
# A quarter of what testkit allows (LOGITS_TOLERANCE, GRADIENT_TOLERANCE): our own rounding needs the rest.
LOGITS_NOISE, GRADIENT_NOISE = 5e-6, 2.5e-5

GPT2 = dict(vocab_size=64, n_positions=32, n_embd=16, n_layer=2, n_head=2, bos_token_id=0, eos_token_id=0,
            resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0)
LLAMA = dict(vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
             num_key_value_heads=4, max_position_embeddings=64, rms_norm_eps=1e-5, bos_token_id=1, eos_token_id=2)
# Narrower, to keep the files small: 2 heads of 8 still give four rotation frequencies.
NARROW = LLAMA | dict(hidden_size=16, intermediate_size=24, num_attention_heads=2, num_key_value_heads=1)
LINEAR = dict(rope_type="linear", rope_theta=10000.0, factor=4.0)
# With theta 50 the four wavelengths (6, 17, 44, 118) fall into all three zones of the llama3 rule: kept, blended, divided.
LLAMA3 = dict(rope_type="llama3", rope_theta=50.0, factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0,
              original_max_position_embeddings=32)
YARN = dict(rope_type="yarn", rope_theta=10000.0, factor=4.0, original_max_position_embeddings=16)
YARN_EXPLICIT = dict(rope_type="yarn", rope_theta=100.0, factor=2.0, original_max_position_embeddings=32,
                     beta_fast=4.0, beta_slow=0.5, attention_factor=1.25)

# Smaller again, for every family after the first two.
TINY = NARROW | dict(vocab_size=40)
# The width of a window: rows of 17 tokens reach beyond it.
WINDOW = 5
GEMMA = TINY | dict(head_dim=12, num_hidden_layers=3, query_pre_attn_scalar=10, sliding_window=WINDOW, rms_norm_eps=1e-6,
                      pad_token_id=None)  # torch keeps the gradient of a padding row at zero
NEOX = dict(vocab_size=40, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2,
            max_position_embeddings=64, attention_dropout=0.0, hidden_dropout=0.0, bos_token_id=0, eos_token_id=0)
OPT = dict(vocab_size=40, hidden_size=16, ffn_dim=24, num_hidden_layers=2, num_attention_heads=2, word_embed_proj_dim=16,
           max_position_embeddings=32, dropout=0.0, attention_dropout=0.0, pad_token_id=None)

CASES = {
    "gpt2-plain": GPT2Config(**GPT2),
    "gpt2-untied": GPT2Config(**GPT2 | dict(n_head=4, tie_word_embeddings=False)),
    "gpt2-odd": GPT2Config(**GPT2 | dict(vocab_size=61, n_embd=15, n_head=3, n_inner=37, n_positions=19,
                                         layer_norm_epsilon=1e-3)),
    "gpt2-unprefixed": GPT2Config(**GPT2 | dict(n_embd=12, n_head=3, n_positions=20)),
    "llama-plain": LlamaConfig(**NARROW | dict(num_attention_heads=4, num_key_value_heads=4, intermediate_size=48)),
    "llama-gqa": LlamaConfig(**LLAMA | dict(num_key_value_heads=2, rope_parameters=dict(
        rope_type="default", rope_theta=500.0))),
    "llama-tied": LlamaConfig(**NARROW | dict(tie_word_embeddings=True, num_key_value_heads=2)),
    "llama-biases": LlamaConfig(**NARROW | dict(attention_bias=True, mlp_bias=True)),
    "llama-head-dim": LlamaConfig(**NARROW | dict(head_dim=12)),
    "llama-odd": LlamaConfig(**NARROW | dict(vocab_size=61, hidden_size=15, intermediate_size=37, num_attention_heads=3,
                                           num_key_value_heads=1, head_dim=6)),
    "llama-rope-linear": LlamaConfig(**NARROW | dict(rope_parameters=LINEAR)),
    "llama-rope-llama3": LlamaConfig(**NARROW | dict(rope_parameters=LLAMA3)),
    "llama-rope-yarn": LlamaConfig(**NARROW | dict(rope_parameters=YARN)),
    "llama-rope-yarn-explicit": LlamaConfig(**NARROW | dict(rope_parameters=YARN_EXPLICIT)),
    "llama-bf16": LlamaConfig(**NARROW),
    "llama-sharded": LlamaConfig(**NARROW),
    "mistral": MistralConfig(**TINY | dict(sliding_window=WINDOW)),
    "qwen2": Qwen2Config(**TINY | dict(tie_word_embeddings=True)),
    "qwen2-window": Qwen2Config(**TINY | dict(use_sliding_window=True, sliding_window=WINDOW, max_window_layers=1)),
    "qwen3": Qwen3Config(**TINY | dict(head_dim=12)),
    "gemma2": Gemma2Config(**GEMMA | dict(attn_logit_softcapping=1.5, final_logit_softcapping=2.0)),
    "gemma3": Gemma3TextConfig(**GEMMA | dict(layer_types=["sliding_attention", "full_attention", "sliding_attention"])),
    "phi3": Phi3Config(**TINY | dict(sliding_window=WINDOW, pad_token_id=None, rope_parameters=dict(
        rope_type="default", rope_theta=500.0, partial_rotary_factor=0.5))),
    "gpt-neox": GPTNeoXConfig(**NEOX | dict(rope_parameters=dict(
        rope_type="default", rope_theta=500.0, partial_rotary_factor=0.5))),
    "gpt-neox-serial": GPTNeoXConfig(**NEOX | dict(use_parallel_residual=False)),
    "opt": OPTConfig(**OPT),
    "mixtral": MixtralConfig(**TINY | dict(num_local_experts=3, num_experts_per_tok=2)),
    # One layer: the load-balancing loss of transformers mixes the layers.
    "mixtral-balanced": MixtralConfig(**TINY | dict(
        num_local_experts=3, num_experts_per_tok=2, num_hidden_layers=1, output_router_logits=True,
        router_aux_loss_coef=0.5)),
    "qwen3-moe": Qwen3MoeConfig(**TINY | dict(
        head_dim=12, moe_intermediate_size=12, num_experts=4, num_experts_per_tok=2,
        mlp_only_layers=[0], norm_topk_prob=False)),
}
BERT = dict(vocab_size=40, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=24,
            max_position_embeddings=20, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0, pad_token_id=None)
DISTILBERT = dict(vocab_size=40, dim=16, hidden_dim=24, n_layers=2, n_heads=2, max_position_embeddings=20, dropout=0.0,
                  attention_dropout=0.0, seq_classif_dropout=0.0, qa_dropout=0.0, pad_token_id=None)
# 4 // 2 = 2 positions on either side.
MODERNBERT = dict(vocab_size=40, hidden_size=16, num_hidden_layers=3, num_attention_heads=2, intermediate_size=24,
                  max_position_embeddings=64, local_attention=4, pad_token_id=None, bos_token_id=None, eos_token_id=None,
                  cls_token_id=None, sep_token_id=None)
T5 = dict(vocab_size=40, d_model=16, d_kv=6, d_ff=24, num_layers=2, num_heads=2, relative_attention_num_buckets=8,
          relative_attention_max_distance=12, dropout_rate=0.0)
BART = dict(vocab_size=40, d_model=16, encoder_layers=2, decoder_layers=2, encoder_attention_heads=2,
            decoder_attention_heads=2, encoder_ffn_dim=24, decoder_ffn_dim=24, max_position_embeddings=20, dropout=0.0,
            pad_token_id=1, decoder_start_token_id=2, eos_token_id=2, forced_eos_token_id=None)
# Masked language models.
ENCODERS = {
    "bert": BertConfig(**BERT),
    "roberta": RobertaConfig(**BERT | dict(pad_token_id=1, max_position_embeddings=22, type_vocab_size=1)),
    "distilbert": DistilBertConfig(**DISTILBERT),
    "modernbert": ModernBertConfig(**MODERNBERT),
}
# Two stacks; the source of the second row is padded.
SEQ2SEQ = {
    "t5": T5Config(**T5),
    "t5-gated": T5Config(**T5 | dict(feed_forward_proj="gated-gelu", num_decoder_layers=1)),
    "bart": BartConfig(**BART | dict(encoder_layers=1)),
    "marian": MarianConfig(**BART | dict(decoder_layers=1, scale_embedding=True, activation_function="swish")),
}
# Other heads.
HEADS = {
    "bert-model": (AutoModel, BertConfig(**BERT | dict(num_hidden_layers=1))),
    "bert-classify": (AutoModelForSequenceClassification, BertConfig(**BERT | dict(num_hidden_layers=1), num_labels=3)),
    "bert-tokens": (AutoModelForTokenClassification, BertConfig(**BERT | dict(num_hidden_layers=1), num_labels=5)),
    "bert-answers": (AutoModelForQuestionAnswering, BertConfig(**BERT | dict(num_hidden_layers=1))),
    "roberta-classify": (AutoModelForSequenceClassification, RobertaConfig(**BERT | dict(
        num_hidden_layers=1, pad_token_id=1, max_position_embeddings=22, type_vocab_size=1))),
    "distilbert-classify": (AutoModelForSequenceClassification, DistilBertConfig(**DISTILBERT | dict(n_layers=1))),
    "modernbert-classify": (AutoModelForSequenceClassification, ModernBertConfig(
        **MODERNBERT | dict(num_hidden_layers=2), classifier_pooling="mean", num_labels=4)),
    "modernbert-tokens": (AutoModelForTokenClassification, ModernBertConfig(
        **MODERNBERT | dict(num_hidden_layers=1), num_labels=4)),
    "llama-classify": (AutoModelForSequenceClassification, LlamaConfig(
        **TINY | dict(num_hidden_layers=1, pad_token_id=0), num_labels=3)),
}
SOURCE_TIME, SOURCE_LENGTHS = 11, [11, 7]
# The same model a second time, described as transformers 4 wrote it.
OLD_LAYOUT = {
    "llama-rope-llama3-v4": "llama-rope-llama3",
    "llama-rope-linear-v4": "llama-rope-linear",
}
PACKED = ("gpt2-plain", "llama-gqa")
TRAJECTORIES = ("gpt2-plain", "llama-gqa")
BEAMS = ("qwen2", "t5", "bart")
ADAMW = dict(lr=3e-3, beta1=0.9, beta2=0.95, eps=1e-8, weight_decay=0.1, max_grad_norm=1.0)
STEPS, STEP_BATCH, STEP_TIME = 20, 4, 16


def seeded(name):
    """A generator whose stream depends on the name alone, so that adding a case changes no other."""
    return torch.Generator().manual_seed(zlib.crc32(name.encode()))


def auto_class(name):
    if name in ENCODERS:
        return AutoModelForMaskedLM
    if name in SEQ2SEQ:
        return AutoModelForSeq2SeqLM
    return HEADS[name][0] if name in HEADS else AutoModelForCausalLM


def build(name, config):
    """A model whose every parameter is random and matters: norm weights and biases included."""
    config._attn_implementation = "eager"
    config._experts_implementation = "eager"  # the others do not know f64
    model = auto_class(name).from_config(config, dtype=torch.float32, attn_implementation="eager").eval()
    generator = seeded(name)
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            if not parameter.requires_grad:
                continue  # Marian's sines
            noise = torch.randn(parameter.shape, generator=generator)
            if parameter.dim() == 1:
                # Gemma adds the one itself.
                centre = 1.0 if key.endswith("weight") and not name.startswith("gemma") else 0.0
                parameter.copy_(centre + 0.3 * noise)
            else:
                embedding = key.endswith(("wte.weight", "wpe.weight", "embed_tokens.weight", "embed_in.weight"))
                parameter.copy_((0.4 if embedding else 0.2) * noise)
        for key, buffer in model.named_buffers():
            if key == "final_logits_bias":
                buffer.copy_(0.3 * torch.randn(buffer.shape, generator=generator))
    if name == "llama-bf16":
        # The checkpoint holds bf16; the reference computes in f32 with exactly those rounded values. (Rounding the
        # whole module would also round its rope frequencies, which no checkpoint holds.)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.copy_(parameter.bfloat16().float())
    return model


def forward_backward(model, tokens, targets, **inputs):
    model.zero_grad(set_to_none=True)
    if "source" in inputs:
        source = inputs.pop("source")
        inputs |= dict(decoder_input_ids=tokens, attention_mask=source_mask())
        output = model(input_ids=source, use_cache=False, **inputs)
    else:
        caching = dict(use_cache=False) if type(model).__name__.endswith(("CausalLM", "LMHeadModel")) else {}
        output = model(input_ids=tokens, **caching, **inputs)
    logits = output.logits
    loss = F.cross_entropy(logits.reshape(-1, logits.shape[-1]), targets.reshape(-1), ignore_index=IGNORED)
    auxiliary = getattr(output, "aux_loss", None)
    (loss if auxiliary is None else loss + model.config.router_aux_loss_coef * auxiliary).backward()
    # Marian's sines are parameters without a gradient.
    trained = [(key, parameter) for key, parameter in model.named_parameters() if parameter.requires_grad]
    gradients = {key: parameter.grad.detach().clone() for key, parameter in trained}
    for key in [key for key in gradients if ".mlp.experts." in key or ".mlp.gate." in key]:
        gradients |= expert_gradients(key, gradients.pop(key), model.config.model_type)
    if model.config.model_type == "gpt_neox":  # files keep the name that transformers 4 had in memory, too
        gradients["embed_out.weight"] = gradients.pop("lm_head.weight")
    return logits.detach(), loss.detach(), gradients


def source_mask():
    return (torch.arange(SOURCE_TIME)[None] < torch.tensor(SOURCE_LENGTHS)[:, None]).long()


def expert_gradients(key, value, family):
    """Under the names that files use: transformers 5 keeps all experts in one tensor in memory only."""
    if family == "mixtral":
        key = key.replace(".mlp.", ".block_sparse_moe.")
    names = ("w1", "w3", "w2") if family == "mixtral" else ("gate_proj", "up_proj", "down_proj")
    if key.endswith("experts.gate_up_proj"):
        parts = [(name, half) for name, half in zip(names, value.chunk(2, dim=1))]
    elif key.endswith("experts.down_proj"):
        parts = [(names[2], value)]
    else:
        return {key: value}
    stem = key.rsplit(".", 1)[0]
    return {f"{stem}.{e}.{name}.weight": part[e].clone() for name, part in parts for e in range(value.shape[0])}


def double_norm(self, x):
    """The RMS norm as it is, except that transformers forces f32 inside and this keeps the input's type."""
    eps = self.eps if hasattr(self, "eps") else self.variance_epsilon
    weight = 1.0 + self.weight if type(self).__name__.startswith("Gemma") else self.weight
    return weight * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + eps))


def check_noise(name, model, tokens, targets, golden, **inputs):
    """Compares the f32 reference with the same computation in f64."""
    logits, _, gradients = golden
    norms = {type(module) for module in model.modules() if type(module).__name__.endswith(("RMSNorm", "T5LayerNorm"))}
    single = {norm: norm.forward for norm in norms}
    for norm in norms:
        norm.forward = double_norm
    # The eager path also forces an f32 softmax.
    single_softmax = F.softmax
    F.softmax = lambda x, dim=-1, dtype=None: single_softmax(x, dim=dim)
    model.double()
    wide = {key: value.double() if value.is_floating_point() else value for key, value in inputs.items()}
    exact_logits, _, exact = forward_backward(model, tokens, targets, **wide)
    for norm, forward in single.items():
        norm.forward = forward
    F.softmax = single_softmax
    model.float()
    model.zero_grad(set_to_none=True)
    noise = (logits - exact_logits).abs().max().item()
    for key in exact:
        # Keys' biases have no effect where nothing rotates: their gradient is rounding noise around zero.
        if exact[key].abs().max() < 1e-12:
            gradients[key].zero_()
            exact[key].zero_()
    worst = max(((gradients[key] - exact[key]).abs().max() / exact[key].abs().max().clamp(min=1e-12)).item()
                for key in exact)
    print(f"{name:26} logits |max| {logits.abs().max():6.2f}  noise {noise:.1e}  gradient noise {worst:.1e}")
    if noise > LOGITS_NOISE or worst > GRADIENT_NOISE:
        sys.exit(f"{name}: f32 noise is too near to the tolerances; choose smaller weights")


def pack_golden(golden, **arrays):
    logits, loss, gradients = golden
    return {**arrays, "logits": logits.contiguous(), "loss": loss.reshape(1)} | {
        f"gradient.{key}": value.contiguous() for key, value in gradients.items()}


def sample_tokens(name, vocab):
    generator = seeded(name + " tokens")
    tokens = torch.randint(0, vocab, (BATCH, TIME), generator=generator)
    targets = torch.cat([tokens[:, 1:], torch.randint(0, vocab, (BATCH, 1), generator=generator)], dim=1)
    targets[0, 3] = targets[1, 0] = targets[1, 9] = IGNORED
    return tokens, targets


def write_case(name, model):
    directory = ROOT / name
    if name == "llama-bf16":
        stored = AutoModelForCausalLM.from_config(model.config, dtype=torch.bfloat16)
        stored.load_state_dict(model.state_dict())
        stored.save_pretrained(directory)
    else:
        model.save_pretrained(directory, max_shard_size="10KB" if name == "llama-sharded" else "1GB")
    tokens, targets = sample_tokens(name, model.config.vocab_size)
    inputs, arrays = {}, {}
    if name in ENCODERS or name in SEQ2SEQ:
        tokens = tokens.clamp(min=3)  # the small ones mean padding and the like
    if name == "bert":
        inputs = dict(token_type_ids=(torch.arange(TIME) >= 6).long().expand(BATCH, TIME).contiguous())
        arrays = dict(token_types=inputs["token_type_ids"])
    if name in SEQ2SEQ:
        source = torch.randint(3, model.config.vocab_size, (BATCH, SOURCE_TIME), generator=seeded(name + " source"))
        inputs = dict(source=source)
        arrays = dict(source=source, source_lengths=torch.tensor(SOURCE_LENGTHS))
    golden = forward_backward(model, tokens, targets, **inputs)
    check_noise(name, model, tokens, targets, golden, **inputs)
    save_file(pack_golden(golden, tokens=tokens, targets=targets, **arrays), directory / "golden.safetensors")


def write_head(name, model):
    """Scores of another head, and gradients of half the sum of their squares."""
    model.save_pretrained(ROOT / name)
    tokens = sample_tokens(name, model.config.vocab_size)[0].clamp(min=3)
    output = model(input_ids=tokens)
    if name.endswith("answers"):
        scores = torch.stack([output.start_logits, output.end_logits], dim=-1)
    else:
        scores = output.pooler_output if name.endswith("model") else output.logits
    model.zero_grad(set_to_none=True)
    (scores.square().sum() / 2).backward()
    gradients = {key: parameter.grad.detach().clone() for key, parameter in model.named_parameters()}
    # Without tanh and the like a bias of k may have no effect; its gradient is rounding noise.
    for value in gradients.values():
        if value.abs().max() < 1e-5:
            value.zero_()
    arrays = dict(tokens=tokens, scores=scores.detach().contiguous()) | {f"gradient.{k}": v for k, v in gradients.items()}
    if name == "bert-model":
        arrays["hidden"] = output.last_hidden_state.detach().contiguous()
    save_file(arrays, ROOT / name / "scores.safetensors")
    print(f"{name:26} scores |max| {scores.abs().max():6.2f}")


def write_packed(name, model):
    """Two documents in one row: positions start again, and nobody looks across the border."""
    first = 10
    generator = seeded(name + " packed")
    tokens = torch.randint(0, model.config.vocab_size, (1, TIME), generator=generator)
    documents = torch.tensor([[0] * first + [1] * (TIME - first)])
    positions = torch.tensor([list(range(first)) + list(range(TIME - first))])
    targets = torch.cat([tokens[:, 1:], torch.full((1, 1), IGNORED)], dim=1)
    targets[0, first - 1] = IGNORED
    visible = torch.ones(TIME, TIME).tril().bool() & (documents[0][:, None] == documents[0][None, :])
    mask = torch.zeros(1, 1, TIME, TIME).masked_fill(~visible, torch.finfo(torch.float32).min)
    inputs = dict(attention_mask=mask, position_ids=positions)
    golden = forward_backward(model, tokens, targets, **inputs)
    with torch.no_grad():
        apart = torch.cat([model(part).logits for part in (tokens[:, :first], tokens[:, first:])], dim=1)
    if (apart - golden[0]).abs().max() > LOGITS_NOISE:
        sys.exit(f"{name}: packed documents see each other")
    check_noise(name + " packed", model, tokens, targets, golden, **inputs)
    arrays = dict(tokens=tokens, targets=targets, positions=positions, documents=documents)
    save_file(pack_golden(golden, **arrays), ROOT / name / "packed.safetensors")


def trajectory_losses(name, tokens, targets, bf16):
    model = AutoModelForCausalLM.from_pretrained(ROOT / name, dtype=torch.float32, attn_implementation="eager")
    groups = [
        {"params": [p for p in model.parameters() if p.dim() >= 2], "weight_decay": ADAMW["weight_decay"]},
        {"params": [p for p in model.parameters() if p.dim() < 2], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=ADAMW["lr"], betas=(ADAMW["beta1"], ADAMW["beta2"]), eps=ADAMW["eps"])
    losses, norms = [], []
    for x, y in zip(tokens, targets):
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=bf16):
            logits = model(x, use_cache=False).logits
        loss = F.cross_entropy(logits.float().reshape(-1, logits.shape[-1]), y.reshape(-1))
        optimizer.zero_grad()
        loss.backward()
        norms.append(torch.nn.utils.clip_grad_norm_(model.parameters(), ADAMW["max_grad_norm"]).item())
        optimizer.step()
        losses.append(loss.item())
    return torch.tensor(losses), torch.tensor(norms)


def write_trajectory(name, vocab):
    """Twenty steps on sequences that can be learnt (each token is a fixed function of the one before)."""
    generator = seeded(name + " trajectory")
    rows = [torch.randint(0, vocab, (STEPS, STEP_BATCH), generator=generator)]
    for _ in range(STEP_TIME):
        rows.append((rows[-1] * 5 + 3) % vocab)
    sequence = torch.stack(rows, dim=-1)
    tokens, targets = sequence[..., :-1].contiguous(), sequence[..., 1:].contiguous()
    losses, norms = trajectory_losses(name, tokens, targets, bf16=False)
    bf16_losses, _ = trajectory_losses(name, tokens, targets, bf16=True)
    print(f"{name:26} 20 steps: f32 {losses[0]:.4f} -> {losses[-1]:.4f}, bf16 differs by at most "
          f"{(losses - bf16_losses).abs().max():.4f}, gradient norms {norms.min():.2f} to {norms.max():.2f}")
    arrays = dict(tokens=tokens, targets=targets, losses=losses, losses_bf16=bf16_losses, grad_norms=norms)
    save_file(arrays, ROOT / name / "trajectory.safetensors", {"adamw": json.dumps(ADAMW)})


def write_beams(name, model):
    """What beam search finds, best first; token 7 ends a text and is made likely."""
    source = load_file(ROOT / name / "golden.safetensors")["source" if name in SEQ2SEQ else "tokens"][:1, :6]
    arrays = dict(source=source)
    for key, length_penalty in (("short", 0.0), ("long", 2.0)):
        # Without a config of its own the model's would add what it says, such as forced tokens.
        settings = GenerationConfig(num_beams=3, num_return_sequences=3, max_new_tokens=6, length_penalty=length_penalty,
                                    eos_token_id=7, pad_token_id=0, decoder_start_token_id=2, do_sample=False,
                                    early_stopping=False, use_cache=True, return_dict_in_generate=True,
                                    output_scores=True)
        bias = torch.zeros(model.config.vocab_size)
        bias[7] = 1.5
        found = model.generate(source, generation_config=settings,
                               logits_processor=[lambda ids, scores: scores + bias])
        start = 1 if name in SEQ2SEQ else source.shape[1]
        arrays[f"{key}.tokens"] = found.sequences[:, start:].contiguous()
        arrays[f"{key}.scores"] = found.sequences_scores.contiguous()
        print(f"{name:26} beams {key}: {arrays[f'{key}.tokens'].tolist()} {arrays[f'{key}.scores'].tolist()}")
    save_file(arrays, ROOT / name / "beams.safetensors")


def strip_prefix(directory):
    """The layout of the original gpt2 checkpoint: no `transformer.` prefix, and the causal mask stored as a buffer."""
    path = directory / "model.safetensors"
    config = json.loads((directory / "config.json").read_text())
    size = config["n_positions"]
    tensors = {key.removeprefix("transformer."): value for key, value in load_file(path).items()}
    for layer in range(config["n_layer"]):
        tensors[f"h.{layer}.attn.bias"] = torch.ones(size, size).tril().reshape(1, 1, size, size)
    save_file(tensors, path, {"format": "pt"})
    config["torch_dtype"] = config.pop("dtype")
    config["n_ctx"] = size
    config["transformers_version"] = "4.40.0"
    (directory / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")


def write_old_layout(name, source):
    """Copies a case and rewrites its config.json as transformers 4 would have written it."""
    directory = ROOT / name
    shutil.copytree(ROOT / source, directory)
    config = json.loads((directory / "config.json").read_text())
    rope = config.pop("rope_parameters")
    config["rope_theta"] = rope.pop("rope_theta")
    if rope["rope_type"] == "linear":
        rope["type"] = rope.pop("rope_type")  # the oldest spelling of the key
    config["rope_scaling"] = rope
    config["torch_dtype"] = config.pop("dtype")
    config["transformers_version"] = "4.45.0"
    del config["head_dim"]  # absent in most old files: hidden_size / num_attention_heads
    (directory / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")


def check_directory(name):
    """What lies on disk, opened by transformers, gives the golden logits."""
    model = auto_class(name).from_pretrained(ROOT / name, dtype=torch.float32, attn_implementation="eager").eval()
    golden = load_file(ROOT / name / "golden.safetensors")
    with torch.no_grad():
        if "source" in golden:
            inputs = dict(input_ids=golden["source"], attention_mask=source_mask(), decoder_input_ids=golden["tokens"])
        else:
            inputs = dict(input_ids=golden["tokens"])
        if "token_types" in golden:
            inputs["token_type_ids"] = golden["token_types"]
        logits = model(**inputs).logits
    # T5's loaded tensors lie otherwise in memory, which changes the last bit of sums.
    difference = (logits - golden["logits"]).abs().max().item()
    if difference > (1e-6 if name in SEQ2SEQ else 0.0):
        sys.exit(f"{name}: the directory gives other logits, by {difference:.1e}")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.parse_args()
    disable_progress_bar()
    torch.set_num_threads(1)
    for old in ROOT.glob("*/"):
        shutil.rmtree(old)
    ROOT.mkdir(parents=True, exist_ok=True)
    for name, config in (CASES | ENCODERS | SEQ2SEQ).items():
        model = build(name, config)
        write_case(name, model)
        if name in BEAMS:
            write_beams(name, model)
        if name in PACKED:
            write_packed(name, model)
        if name in TRAJECTORIES:
            write_trajectory(name, config.vocab_size)
    for name, (_, config) in HEADS.items():
        write_head(name, build(name, config))
    strip_prefix(ROOT / "gpt2-unprefixed")
    for name, source in OLD_LAYOUT.items():
        write_old_layout(name, source)
    for name in [*CASES, *ENCODERS, *SEQ2SEQ, *OLD_LAYOUT]:
        check_directory(name)
    goldens_ops.write(ROOT)
    goldens_functions.write(ROOT)
    goldens_optim.write(ROOT)
    total = sum(path.stat().st_size for path in ROOT.rglob("*") if path.is_file())
    print(f"{len(list(ROOT.glob('*/')))} cases, {total / 1e6:.2f} MB in {ROOT}")


if __name__ == "__main__":
    main()
