"""Writes crates/testkit/peft: adapters of PEFT with random weights over two tiny models, and what they compute.

Needs torch, transformers, peft 0.21 and adapters 1.3 (of the last only the module of one adapter is used: the package as a
whole wants an older transformers). Run it from anywhere: `python scripts/goldens_peft.py`.

Each case is a directory as PEFT (or AdapterHub) saves it, and beside it golden.safetensors: tokens and targets, logits with
the adapter, logits once it is merged (where it can be), every trained parameter and its gradient of the mean loss. The
metadata say which model it is over and how many numbers are trained.
"""

import functools
import json
import os
import shutil
import sys
import types
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"

import peft
import torch
from peft import AdaLoraConfig, IA3Config, LoraConfig, PrefixTuningConfig, PromptEncoderConfig, PromptTuningConfig, VeraConfig
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, AutoModelForMaskedLM

ROOT = Path(__file__).resolve().parent.parent / "crates/testkit"
OUT = ROOT / "peft"
LLAMA, GPT2, BERT = "llama-gqa", "gpt2-plain", "bert"


def base_model(name):
    kind = AutoModelForMaskedLM if name == BERT else AutoModelForCausalLM
    return kind.from_pretrained(ROOT / "goldens" / name, dtype=torch.float32).eval()


def batch(model):
    generator = torch.Generator().manual_seed(11)
    tokens = torch.randint(0, model.config.vocab_size, (2, 9), generator=generator)
    targets = torch.randint(0, model.config.vocab_size, (2, 9), generator=generator)
    targets[0, :3] = -100
    return tokens, targets


def loss_of(logits, targets):
    return torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=-100)


def plain_name(name):
    """A parameter's name in PEFT's files, or what is left of it without the adapter's name."""
    name = name.replace(".modules_to_save.default", "").replace(".default", "")
    return name.removesuffix(".weight") if name.endswith("lora_magnitude_vector.weight") else name


def randomise(model, seed):
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, p in model.named_parameters():
            if p.requires_grad:
                noise = torch.randn(p.shape, generator=generator)
                if "ia3_l" in name or "magnitude" in name:
                    p.mul_(1 + 0.3 * noise)
                elif "lora_E" in name:
                    p.copy_(noise)
                else:
                    # Whatever the method started with stays a part of it (PiSSA's singular vectors).
                    p.add_(0.1 * noise)


def is_virtual(config):
    return config.is_prompt_learning


def logits_of(model, tokens, config):
    logits = model(input_ids=tokens).logits
    # Virtual tokens of a prompt have logits, too; those of a prefix have none.
    return logits[:, -tokens.shape[1]:]


def write(case, tensors, metadata):
    tensors = {name: t.detach().clone().contiguous() for name, t in tensors.items()}
    save_file(tensors, OUT / case / "golden.safetensors", {k: str(v) for k, v in metadata.items()})


def anonymous(case, base):
    """The configuration with a path that is the same on every machine."""
    path = OUT / case / "adapter_config.json"
    config = json.loads(path.read_text())
    config["base_model_name_or_path"] = base
    path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
    (OUT / case / "README.md").unlink(missing_ok=True)


def peft_case(case, base, config, seed=5, merges=True):
    torch.manual_seed(seed)
    model = peft.get_peft_model(base_model(base), config)
    model.eval()
    randomise(model, seed)
    tokens, targets = batch(model)
    model.save_pretrained(OUT / case, save_embedding_layers=False)
    anonymous(case, base)
    logits = logits_of(model, tokens, config)
    loss = loss_of(logits, targets)
    loss.backward()
    tensors = {"tokens": tokens, "targets": targets, "logits": logits}
    for name, p in model.named_parameters():
        if p.requires_grad:
            tensors["parameter." + plain_name(name)] = p
            tensors["gradient." + plain_name(name)] = p.grad if p.grad is not None else torch.zeros_like(p)
    trained, _ = model.get_nb_trainable_parameters()
    if merges and not is_virtual(config):
        tensors["merged"] = model.merge_and_unload()(input_ids=tokens).logits
    write(case, tensors, {"base": base, "trained": trained})
    print(f"{case:32} {trained:6} trained, loss {loss.item():.4f}")


def adalora_steps():
    """Ten steps of gradient descent in which ranks are taken away."""
    steps = dict(total_step=10, tinit=1, tfinal=2, deltaT=2)
    config = AdaLoraConfig(init_r=3, target_r=1, lora_alpha=3, orth_reg_weight=0.1, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM", **steps)
    torch.manual_seed(3)
    model = peft.get_peft_model(base_model(LLAMA), config)
    model.eval()
    randomise(model, 3)
    tokens, targets = batch(model)
    trained = [(n, p) for n, p in model.named_parameters() if p.requires_grad]
    tensors = {"tokens": tokens, "targets": targets}
    tensors |= {"start." + plain_name(n): p.detach().clone() for n, p in trained}
    losses = []
    for step in range(1, 11):
        # The tuner's own forward adds how far A and B are from orthonormal to the loss; its inner model's does not know.
        loss = model.base_model(input_ids=tokens, labels=torch.cat([targets[:, :1], targets[:, :-1]], 1)).loss
        loss.backward()
        losses.append(loss.item())
        with torch.no_grad():
            for _, p in trained:
                p -= 0.5 * p.grad
        model.base_model.update_and_allocate(step)
        for _, p in trained:
            p.grad = None
    tensors |= {"end." + plain_name(n): p for n, p in trained}
    tensors["losses"] = torch.tensor(losses)
    model.save_pretrained(OUT / "adalora-steps", save_embedding_layers=False)
    anonymous("adalora-steps", LLAMA)
    tensors["logits"] = model.base_model(input_ids=tokens).logits
    write("adalora-steps", tensors, {"base": LLAMA, "trained": sum(p.numel() for _, p in trained)})
    print("adalora-steps", losses[0], losses[-1])


def combinations():
    """Two adapters, and what PEFT makes of them."""
    make = lambda: LoraConfig(r=3, lora_alpha=5, target_modules=["q_proj", "down_proj"], task_type="CAUSAL_LM")
    model = peft.get_peft_model(base_model(LLAMA), make(), adapter_name="first")
    model.add_adapter("second", make())
    model.eval()
    generator = torch.Generator().manual_seed(8)
    with torch.no_grad():
        for name, p in model.named_parameters():
            if "lora_" in name:
                p.copy_(0.2 * torch.randn(p.shape, generator=generator))
    tokens, _ = batch(model)
    tensors = {"tokens": tokens}
    model.save_pretrained(OUT / "combine", save_embedding_layers=False)
    for name in ["first", "second"]:
        anonymous(f"combine/{name}", LLAMA)
        model.set_adapter(name)
        tensors[name] = model(input_ids=tokens).logits
    (OUT / "combine/README.md").unlink(missing_ok=True)
    ways = {
        "linear": {}, "cat": {}, "svd": {"svd_rank": 2}, "ties": {"density": 0.5}, "magnitude_prune": {"density": 0.4},
        "dare_linear": {"density": 1.0}, "dare_ties": {"density": 1.0},
    }
    for way, more in ways.items():
        model.base_model.add_weighted_adapter(["first", "second"], [0.7, -0.4], way, combination_type=way, **more)
        model.set_adapter(way)
        tensors["combined." + way] = model(input_ids=tokens).logits
    write("combine", tensors, {"base": LLAMA, "trained": 0})
    # A batch whose rows go through different adapters.
    print("combine", list(ways))


@functools.cache
def hub_adapter():
    """AdapterHub's own module of one adapter, without the rest of the package."""
    import huggingface_hub

    huggingface_hub.HfFolder = type("HfFolder", (), {})
    import importlib.util

    where = importlib.util.find_spec("adapters").submodule_search_locations[0]
    for name in ["adapters", "adapters.methods", "adapters.configuration"]:
        module = types.ModuleType(name)
        module.__path__ = [os.path.join(where, *name.split(".")[1:])]
        sys.modules[name] = module
    utils = types.ModuleType("adapters.utils")
    utils.resolve_adapter_config = None
    utils.fix_seed = lambda seed=None: None
    utils.multigetattr = utils.dotdict = None
    sys.modules["adapters.utils"] = utils
    context = types.ModuleType("adapters.context")
    context.ForwardContext = object
    sys.modules["adapters.context"] = context
    from adapters.configuration import adapter_config

    configuration = sys.modules["adapters.configuration"]
    for name in dir(adapter_config):
        setattr(configuration, name, getattr(adapter_config, name))
    fusion = type("AdapterFusionConfig", (), {})
    configuration.AdapterFusionConfig = getattr(adapter_config, "AdapterFusionConfig", fusion)
    from adapters.methods import modeling

    return adapter_config, modeling


def bottleneck_case(case, base, config_name, seed=6, **changes):
    adapter_config, modeling = hub_adapter()
    config = getattr(adapter_config, config_name)(**changes)
    model = base_model(base)
    hidden = model.config.hidden_size
    model.requires_grad_(False)
    torch.manual_seed(seed)
    adapters = {}

    def make(name):
        kind = modeling.ParallelAdapter if config.is_parallel else modeling.Adapter
        adapter = kind("loam", hidden, max(1, int(hidden // config.reduction_factor)), config)
        with torch.no_grad():
            for p in adapter.parameters():
                p.add_(0.1 * torch.randn(p.shape))
        adapters[name] = adapter.eval()
        return adapters[name]

    def behind(adapter, branch, x, norm):
        h, _, residual = adapter.pre_forward(branch, x, norm)
        return adapter.post_forward(adapter(h, residual_input=residual)[0], branch, x, norm)

    def hook(adapter, module, norm_module):
        # As AdapterHub's own interface to models it does not know: residual and norm are applied by the model.
        adapter.original_ln_after = False
        kept = {}
        norm_module.register_forward_pre_hook(lambda m, args: kept.__setitem__("x", args[0]))

        def change(m, args, output):
            branch = output[0] if isinstance(output, tuple) else output
            new = behind(adapter, branch, kept["x"], None)
            return (new,) + output[1:] if isinstance(output, tuple) else new

        module.register_forward_hook(change)

    if base == LLAMA:
        for i, layer in enumerate(model.model.layers):
            if config.mh_adapter:
                hook(make(f"model.layers.{i}.attention_adapters"), layer.self_attn, layer.input_layernorm)
            if config.output_adapter:
                hook(make(f"model.layers.{i}.output_adapters"), layer.mlp, layer.post_attention_layernorm)
    elif base == GPT2:
        for i, layer in enumerate(model.transformer.h):
            if config.mh_adapter:
                hook(make(f"transformer.h.{i}.attention_adapters"), layer.attn, layer.ln_1)
            if config.output_adapter:
                hook(make(f"transformer.h.{i}.output_adapters"), layer.mlp, layer.ln_2)
    else:
        def with_norm(module, adapter):
            module.forward = lambda h, x: behind(adapter, module.dense(h), x, module.LayerNorm)

        for i, layer in enumerate(model.bert.encoder.layer):
            if config.mh_adapter:
                with_norm(layer.attention.output, make(f"bert.encoder.layer.{i}.attention.output"))
            if config.output_adapter:
                with_norm(layer.output, make(f"bert.encoder.layer.{i}.output"))
    tokens, targets = batch(model)
    logits = model(input_ids=tokens).logits
    loss_of(logits, targets).backward()
    tensors, saved = {"tokens": tokens, "targets": targets, "logits": logits}, {}
    for place, adapter in adapters.items():
        for name, p in adapter.named_parameters():
            full = f"{place}.adapters.loam.{name}"
            saved[full.replace(".loam.", ".golden.")] = p.detach().clone()
            tensors["parameter." + full], tensors["gradient." + full] = p, p.grad
    (OUT / case).mkdir(parents=True, exist_ok=True)
    save_file(saved, OUT / case / "adapter.safetensors")
    whole = {
        "config": config.to_dict(), "hidden_size": hidden, "model_class": type(model).__name__, "model_name": base,
        "model_type": model.config.model_type, "name": "golden", "version": "adapters.1.3.0",
    }
    (OUT / case / "adapter_config.json").write_text(json.dumps(whole, indent=2, sort_keys=True) + "\n")
    trained = sum(p.numel() for adapter in adapters.values() for p in adapter.parameters())
    write(case, tensors, {"base": base, "trained": trained})
    print(f"{case:32} {trained:6} trained")


def main():
    shutil.rmtree(OUT, ignore_errors=True)
    OUT.mkdir(parents=True)
    lm = dict(task_type="CAUSAL_LM")
    peft_case("llama-lora", LLAMA, LoraConfig(**lm))
    peft_case("llama-lora-patterns", LLAMA, LoraConfig(
        r=2, lora_alpha=6, use_rslora=True, target_modules="all-linear", rank_pattern={"q_proj": 4, r"layers\.1\.mlp\.up_proj": 3},
        alpha_pattern={"down_proj": 12}, init_lora_weights="gaussian", **lm))
    peft_case("llama-lora-regex", LLAMA, LoraConfig(r=2, target_modules=r".*\.1\.self_attn\.(k|o)_proj", init_lora_weights=False, **lm))
    peft_case("llama-dora", LLAMA, LoraConfig(r=3, lora_alpha=6, use_dora=True, target_modules=["q_proj", "down_proj"], **lm))
    peft_case("llama-pissa", LLAMA, LoraConfig(r=3, lora_alpha=6, init_lora_weights="pissa", target_modules=["q_proj", "up_proj"], **lm))
    peft_case("llama-olora", LLAMA, LoraConfig(r=3, lora_alpha=6, init_lora_weights="olora", target_modules=["v_proj", "down_proj"], **lm))
    peft_case("llama-modules", LLAMA, LoraConfig(r=2, modules_to_save=["lm_head", "embed_tokens", "o_proj"], **lm))
    peft_case("llama-tokens", LLAMA, LoraConfig(r=2, trainable_token_indices=[3, 17, 40], **lm))
    peft_case("llama-vera", LLAMA, VeraConfig(r=5, target_modules=["q_proj", "v_proj", "down_proj"], **lm))
    ada = dict(total_step=10, **lm)
    peft_case("llama-adalora", LLAMA, AdaLoraConfig(init_r=3, target_r=2, lora_alpha=4, orth_reg_weight=0.0, **ada))
    peft_case("llama-ia3", LLAMA, IA3Config(**lm))
    peft_case("llama-prefix", LLAMA, PrefixTuningConfig(num_virtual_tokens=4, **lm))
    peft_case("llama-prefix-projection", LLAMA, PrefixTuningConfig(num_virtual_tokens=3, prefix_projection=True, encoder_hidden_size=10, **lm))
    peft_case("llama-prompt", LLAMA, PromptTuningConfig(num_virtual_tokens=4, prompt_tuning_init="SAMPLE_VOCAB", **lm))
    peft_case("llama-p-tuning-mlp", LLAMA, PromptEncoderConfig(num_virtual_tokens=4, encoder_hidden_size=12, **lm))
    peft_case("llama-p-tuning-lstm", LLAMA, PromptEncoderConfig(
        num_virtual_tokens=4, encoder_hidden_size=6, encoder_reparameterization_type="LSTM", encoder_num_layers=2, **lm))
    peft_case("gpt2-lora", GPT2, LoraConfig(r=3, fan_in_fan_out=True, **lm))
    peft_case("gpt2-lora-all", GPT2, LoraConfig(r=2, lora_alpha=5, target_modules="all-linear", fan_in_fan_out=True, **lm))
    peft_case("gpt2-dora", GPT2, LoraConfig(r=2, use_dora=True, target_modules=["c_attn", "c_fc"], fan_in_fan_out=True, **lm))
    peft_case("gpt2-pissa", GPT2, LoraConfig(r=2, init_lora_weights="pissa", fan_in_fan_out=True, **lm))
    peft_case("gpt2-tokens", GPT2, LoraConfig(r=2, trainable_token_indices=[1, 5], fan_in_fan_out=True, **lm))
    peft_case("gpt2-vera", GPT2, VeraConfig(r=4, fan_in_fan_out=True, **lm))
    peft_case("gpt2-adalora", GPT2, AdaLoraConfig(init_r=2, target_r=1, orth_reg_weight=0.0, fan_in_fan_out=True, **ada))
    peft_case("gpt2-ia3", GPT2, IA3Config(fan_in_fan_out=True, **lm))
    peft_case("gpt2-prefix", GPT2, PrefixTuningConfig(num_virtual_tokens=3, **lm))
    peft_case("gpt2-prompt", GPT2, PromptTuningConfig(num_virtual_tokens=3, **lm))
    adalora_steps()
    combinations()
    bottleneck_case("llama-houlsby", LLAMA, "DoubleSeqBnConfig", reduction_factor=4)
    bottleneck_case("llama-pfeiffer", LLAMA, "SeqBnConfig", reduction_factor=4)
    bottleneck_case("llama-parallel", LLAMA, "ParBnConfig", reduction_factor=4)
    bottleneck_case("gpt2-pfeiffer", GPT2, "SeqBnConfig", reduction_factor=4)
    bottleneck_case("bert-houlsby", BERT, "DoubleSeqBnConfig", reduction_factor=4)
    bottleneck_case("bert-pfeiffer", BERT, "SeqBnConfig", reduction_factor=4)


if __name__ == "__main__":
    main()
