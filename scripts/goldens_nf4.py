"""Writes crates/models/tests/data/llama-nf4: a tiny Llama whose layers bitsandbytes has quantised, and its logits.

    .venv/bin/pip install torch transformers bitsandbytes safetensors
    .venv/bin/python scripts/goldens_nf4.py

`golden.safetensors`: `tokens` `[2,9]`, `logits` `[2,9,40]` in f32 arithmetic, `down` = `model.layers.0.mlp.down_proj.weight`
as bitsandbytes decodes it. One layer keeps its sizes as they are (no double quantisation). Widths are multiples of 64:
matrices of 32 columns bitsandbytes 0.50 decodes to other numbers on a CPU than its own blocks say.
"""
import json
from pathlib import Path

import bitsandbytes as bnb
import torch
from safetensors.torch import save_file
from transformers import LlamaConfig, LlamaForCausalLM

OUT = Path(__file__).resolve().parent.parent / "crates" / "models" / "tests" / "data" / "llama-nf4"

torch.manual_seed(3)
config = LlamaConfig(vocab_size=40, hidden_size=64, intermediate_size=128, num_hidden_layers=1, num_attention_heads=4,
                     num_key_value_heads=2, max_position_embeddings=64, tie_word_embeddings=False)
config.architectures = ["LlamaForCausalLM"]
model = LlamaForCausalLM(config).eval()
for parameter in model.parameters():
    parameter.data.normal_(0, 0.3) if parameter.dim() == 2 else parameter.data.uniform_(0.5, 1.5)
for name, layer in list(model.named_modules()):
    if isinstance(layer, torch.nn.Linear) and name != "lm_head":
        packed = bnb.nn.Linear4bit(layer.in_features, layer.out_features, bias=False, compute_dtype=torch.float32,
                                   compress_statistics="up_proj" not in name, quant_type="nf4")
        packed.weight = bnb.nn.Params4bit(layer.weight.data, requires_grad=False, quant_type="nf4",
                                          compress_statistics="up_proj" not in name, module=packed)
        parent, _, last = name.rpartition(".")
        setattr(model.get_submodule(parent), last, packed.to("cpu"))
tokens = torch.randint(0, 40, (2, 9))
down = model.model.layers[0].mlp.down_proj.weight
OUT.mkdir(parents=True, exist_ok=True)
state = {name: tensor.contiguous().clone() for name, tensor in model.state_dict().items()}
# bitsandbytes' own products on a CPU are in bf16, and put the weights into another order first.
plain = LlamaForCausalLM(config).eval()
for name, parameter in model.named_parameters():
    packed = isinstance(parameter, bnb.nn.Params4bit)
    values = bnb.functional.dequantize_4bit(parameter.data, parameter.quant_state) if packed else parameter.data
    plain.get_parameter(name).data.copy_(values)
with torch.no_grad():
    logits = plain(tokens).logits
save_file(state, OUT / "model.safetensors", {"format": "pt"})
save_file({"tokens": tokens, "logits": logits, "down": bnb.functional.dequantize_4bit(down.data, down.quant_state)},
          OUT / "golden.safetensors")
whole = config.to_dict() | {
    "dtype": "float32",
    "quantization_config": {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": "nf4",
                            "bnb_4bit_use_double_quant": True, "bnb_4bit_compute_dtype": "float32"},
}
(OUT / "config.json").write_text(json.dumps(whole, indent=2, default=str) + "\n")
for name, tensor in state.items():
    print(name, tuple(tensor.shape), tensor.dtype)
