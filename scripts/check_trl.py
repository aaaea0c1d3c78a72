"""20 steps of SFT and of DPO on a tiny random llama, f32, one fixed batch: Loam's loss and gradient norm against TRL's.

    cargo build -p loam-cli && /tmp/venv/bin/python scripts/check_trl.py [LOAM]

Both read the same model directory and the same rows. The tokenizer has a token per byte, so that nothing can be cut
differently; the chat template ends a turn with its end token, as what follows it is trained in TRL and not in Loam. Fails where
a loss differs by more than 1e-4 or a gradient norm by more than 1e-3.
"""
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

os.environ["TRL_EXPERIMENTAL_SILENCE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"

import torch
from datasets import Dataset
from tokenizers import Tokenizer, models, pre_tokenizers, decoders
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from transformers.trainer_callback import PrinterCallback
from trl import DPOConfig, DPOTrainer, SFTConfig, SFTTrainer

STEPS, ROWS, SEQ_LEN, LR = 20, 8, 96, 2e-3
TEMPLATE = ("{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' }}"
            "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}")


def make_model(path):
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<|endoftext|>", "<|im_start|>", "<|im_end|>"])
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|im_end|>", pad_token="<|endoftext|>")
    fast.chat_template = TEMPLATE
    fast.save_pretrained(path)
    (path / "chat_template.jinja").write_text(TEMPLATE)
    torch.manual_seed(0)
    config = LlamaConfig(vocab_size=len(fast), hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
                         num_key_value_heads=2, max_position_embeddings=128, initializer_range=0.1, dtype="float32",
                         bos_token_id=None, eos_token_id=fast.eos_token_id, pad_token_id=fast.pad_token_id)
    LlamaForCausalLM(config).save_pretrained(path)


def turn(role, content):
    return [{"role": role, "content": content}]


def rows():
    words = "ant bee cat dog eel fox gnu hen".split()
    for i in range(ROWS):
        # More than half a row of ours, so that no two share one.
        prompt = f"Tell me what {words[i]} number {i} says."
        yield turn("user", prompt), turn("assistant", f"The {words[i]} says {i * 7}."), turn("assistant", f"No {words[-i - 1]}.")


class Recording:
    """Keeps the losses as they are: the log rounds them."""
    def training_step(self, *args, **kwargs):
        loss = super().training_step(*args, **kwargs)
        self.losses.append(float(loss))
        return loss


def with_trl(stage, path, data):
    common = dict(output_dir=tempfile.mkdtemp(), per_device_train_batch_size=ROWS, max_steps=STEPS, learning_rate=LR,
                  lr_scheduler_type="constant", warmup_steps=0, weight_decay=0.0, adam_beta2=0.95, adam_epsilon=1e-8,
                  max_grad_norm=1.0, logging_steps=1, report_to="none", use_cpu=True, bf16=False, save_strategy="no",
                  gradient_checkpointing=False, max_length=None, disable_tqdm=True)
    if stage == "sft":
        base, config = SFTTrainer, SFTConfig(**common, packing=False)
        table = [dict(prompt=p, completion=c) for p, c, _ in data]
    else:
        base, config = DPOTrainer, DPOConfig(**common, beta=0.1)
        table = [dict(prompt=p, chosen=c, rejected=r) for p, c, r in data]
    trainer_class = type("Trainer", (Recording, base), {"losses": []})
    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
    trainer = trainer_class(model=model, args=config, train_dataset=Dataset.from_list(table),
                            processing_class=AutoTokenizer.from_pretrained(path))
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    norms = [entry["grad_norm"] for entry in trainer.state.log_history if "grad_norm" in entry]
    return trainer.losses, [float(norm) for norm in norms]


def with_loam(loam, stage, path, data, work):
    file = work / f"{stage}.jsonl"
    line = (lambda p, c, r: dict(messages=p + c)) if stage == "sft" else (lambda p, c, r: dict(prompt=p, chosen=c, rejected=r))
    file.write_text("".join(json.dumps(line(*row)) + "\n" for row in data))
    recipe = work / f"{stage}.toml"
    recipe.write_text(f"""stage = "{stage}"
[model]
path = "{path}"
[data]
train = ["{file}"]
validation_fraction = 0.0
seq_len = {SEQ_LEN}
[train]
precision = "f32"
lr = {LR}
schedule = "constant"
warmup = 0.0
weight_decay = 0.0
beta2 = 0.95
clip = 1.0
batch = {ROWS}
micro_batch = {ROWS}
steps = {STEPS}
sample_every = 0
""")
    run = work / f"{stage}-run"
    env = os.environ | {"LOAM_HOME": str(work / "home")}
    subprocess.run([loam, "train", recipe, "--dir", run], check=True, env=env, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    lines = [line for line in lines if "loss" in line]
    return [line["loss"] for line in lines], [line["grad_norm"] for line in lines]


def main():
    target = os.environ.get("CARGO_TARGET_DIR", "target")
    loam = Path(sys.argv[1] if len(sys.argv) > 1 else f"{target}/debug/loam").resolve()
    work = Path(tempfile.mkdtemp())
    path = work / "tiny"
    make_model(path)
    data, failed = list(rows()), False
    for stage in ("sft", "dpo"):
        (losses, norms), (own, own_norms) = with_trl(stage, path, data), with_loam(loam, stage, path, data, work)
        assert len(losses) == len(norms) == len(own) == STEPS, (len(losses), len(norms), len(own))
        print(f"{stage:4} step   loss TRL   loss Loam   difference   norm TRL   norm Loam   difference")
        for step in range(STEPS):
            d, n = abs(losses[step] - own[step]), abs(norms[step] - own_norms[step])
            print(f"{stage:4} {step + 1:4}  {losses[step]:9.6f}   {own[step]:9.6f}   {d:10.1e}  {norms[step]:9.5f}   "
                  f"{own_norms[step]:9.5f}   {n:10.1e}")
        worst = max(abs(a - b) for a, b in zip(losses, own)), max(abs(a - b) for a, b in zip(norms, own_norms))
        print(f"{stage:4} worst: loss {worst[0]:.1e} (1e-4 allowed), gradient norm {worst[1]:.1e} (1e-3 allowed)\n")
        failed |= worst[0] > 1e-4 or worst[1] > 1e-3
    sys.exit(failed)


if __name__ == "__main__":
    main()
