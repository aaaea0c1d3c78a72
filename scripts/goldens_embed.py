"""Writes crates/testkit/encoders/: tiny sentence encoders with the token ids and embeddings of sentence-transformers.

    .venv/bin/pip install torch transformers sentence-transformers tokenizers safetensors
    .venv/bin/python scripts/goldens_embed.py

Each directory is what SentenceTransformer.save writes, less what Loam does not read, and `golden.json`: texts, ids and
embeddings. As published checkpoints do, the tokenizer files carry a truncation and a padding that nobody asks for.
"""
import json
import shutil
from pathlib import Path

import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.models import Dense, Normalize, Pooling, Transformer
from tokenizers import Tokenizer
from transformers import BertConfig, BertModel, BertTokenizerFast

ROOT = Path(__file__).resolve().parent.parent / "crates" / "testkit" / "encoders"
WINDOW = 16
TEXTS = [
    "the cat sat on the mat", "The CAT sat, on a mat!", "", " ", "猫坐在垫子上", "naïve café", "😀 the 🐈", "cats don't sit",
    "the cat " * 20, "a\tb\u200bc\x01", "[SEP] the [MASK]", "http://cat.org/mat?a=1", "the\u3000ｃａｔ", "xyz" * 40,
]
LETTERS = "abcdefghijklmnopqrstuvwxyz"
VOCABULARY = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *LETTERS, *("##" + c for c in LETTERS), *",.!?'/:=1",
              "the", "cat", "sat", "mat", "on", "##s", "##at", "##ing", "do", "don", "猫", "坐", "在", "上"]
VOCABULARY = list(dict.fromkeys(VOCABULARY))


def age(out):
    """The same settings as sentence-transformers 2 wrote them."""
    flags = {f"pooling_mode_{mode}": mode == "mean_tokens" for mode in
             ["cls_token", "mean_tokens", "max_tokens", "mean_sqrt_len_tokens"]}
    (out / "1_Pooling" / "config.json").write_text(json.dumps({"word_embedding_dimension": 8, **flags}) + "\n")
    (out / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": WINDOW, "do_lower_case": False}) + "\n")
    shutil.rmtree(out / "2_Normalize")
    types = ["Transformer", "Pooling", "Normalize"]
    modules = [{"idx": i, "name": str(i), "path": f"{i}_{t}" if i else "", "type": f"sentence_transformers.models.{t}"}
               for i, t in enumerate(types)]
    (out / "modules.json").write_text(json.dumps(modules, indent=2) + "\n")


def case(name, pooling, window, dense, normalize, old=False):
    out = ROOT / name
    shutil.rmtree(out, ignore_errors=True)
    source = ROOT / f"{name}.source"
    source.mkdir(parents=True)
    try:
        torch.manual_seed(len(name))
        config = BertConfig(vocab_size=len(VOCABULARY), hidden_size=8, num_hidden_layers=2, num_attention_heads=2,
                            intermediate_size=12, max_position_embeddings=24, initializer_range=0.3)
        BertModel(config).eval().save_pretrained(source)
        (source / "vocab.txt").write_text("\n".join(VOCABULARY) + "\n")
        BertTokenizerFast(str(source / "vocab.txt"), model_max_length=20).save_pretrained(source)
        body = Transformer(str(source), **({"max_seq_length": window} if window and not old else {}))
        modules = [body, Pooling(config.hidden_size, pooling_mode=pooling)]
        width = config.hidden_size * (1 if isinstance(pooling, str) else len(pooling))
        if dense:
            modules.append(Dense(width, 6, bias=True, activation_function=torch.nn.Tanh()))
        if normalize:
            modules.append(Normalize())
        model = SentenceTransformer(modules=modules, device="cpu")
        model.save(str(out), create_model_card=False)
        if old:
            age(out)
        model = SentenceTransformer(str(out), device="cpu")
        ids = [model.tokenizer(t, truncation=True, max_length=model.max_seq_length)["input_ids"] for t in TEXTS]
        vectors = model.encode(TEXTS, batch_size=4, convert_to_numpy=True, show_progress_bar=False)
        # What a model computes must not hang on its neighbours' padding, or the tolerance of the tests would be eaten.
        alone = model.encode(TEXTS, batch_size=1, convert_to_numpy=True, show_progress_bar=False)
        assert abs(vectors - alone).max() < 1e-6
        assert max(map(len, ids)) == model.max_seq_length, model.max_seq_length
    finally:
        shutil.rmtree(source)
    saved = Tokenizer.from_file(str(out / "tokenizer.json"))
    saved.enable_truncation(9)
    saved.enable_padding(length=12)
    saved.save(str(out / "tokenizer.json"))
    for file in ["README.md", "config_sentence_transformers.json", "vocab.txt"]:
        (out / file).unlink(missing_ok=True)
    golden = {"texts": TEXTS, "ids": ids, "embeddings": [[float(f"{x:.9g}") for x in row] for row in vectors.tolist()]}
    (out / "golden.json").write_text(json.dumps(golden, ensure_ascii=False) + "\n")


case("mean", "mean", WINDOW, dense=False, normalize=True)
case("mean-old", "mean", WINDOW, dense=False, normalize=True, old=True)
case("cls-max-dense", ["cls", "max"], None, dense=True, normalize=False)
