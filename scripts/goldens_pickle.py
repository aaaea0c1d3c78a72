"""Writes the PyTorch checkpoints that Loam's reader of pickles is tested with.

    .venv/bin/python scripts/goldens_pickle.py         # needs torch and safetensors, as scripts/goldens.py

Everything goes to crates/testkit/pickles/ and is committed, so that no test needs Python. `<name>.pt` is a checkpoint;
`expected.safetensors` holds what its tensors are, as `<name>/<tensor>`. Three of the models in crates/testkit/goldens lie
here a second time as `pytorch_model.bin`. A second run writes the same bytes, except for legacy.pt, which holds addresses
of that process. One file would run a command if Python loaded it, which this script never does.
"""
import collections
import io
import json
import os
import pickle
import shutil
import zipfile
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import nn

HERE = Path(__file__).resolve().parent.parent / "crates" / "testkit"
GOLDENS, ROOT = HERE / "goldens", HERE / "pickles"


def grid(*shape):
    """Values that every float type holds exactly and that tell each place apart."""
    count = torch.Size(shape).numel()
    return (torch.arange(count, dtype=torch.float32) - 5).reshape(shape) / 2


def plain():
    x = grid(3, 4)
    types = dict(f32=torch.float32, f16=torch.float16, bf16=torch.bfloat16, f64=torch.float64, i64=torch.int64,
                 i32=torch.int32, i16=torch.int16, i8=torch.int8, bool=torch.bool)
    return {name: x.to(kind) for name, kind in types.items()} | {
        "u8": x.abs().to(torch.uint8), "scalar": torch.tensor(2.5), "empty": torch.zeros(0, 7)}


def views():
    base, tied = grid(4, 6), grid(5, 2)
    return collections.OrderedDict(
        whole=base, transposed=base.t(), rows=base[1:3], columns=base[:, 2:5], every_second=base[:, ::2], one=base[2, 3],
        repeated=grid(3)[:, None].expand(3, 4), permuted=grid(2, 3, 4).permute(2, 0, 1), flipped_back=base.t().t(),
        thin=grid(4, 1).t(), halves=base.bfloat16().t(), embed=tied, head=tied)


def parameters():
    noted = nn.Parameter(grid(2, 2))
    noted.note = "kept beside the tensor"
    return {"parameter": nn.Parameter(grid(2, 3)), "noted": noted, "buffer": nn.Buffer(grid(4))}


def nested():
    layer = nn.Linear(3, 2)
    with torch.no_grad():
        layer.weight.copy_(grid(2, 3))
        layer.bias.copy_(grid(2))
    optimizer = torch.optim.AdamW(layer.parameters(), lr=0.5)
    layer(torch.ones(1, 3)).sum().backward()
    state = collections.OrderedDict((key, value.clone()) for key, value in layer.state_dict().items())
    state._metadata = layer.state_dict()._metadata
    optimizer.step()
    return {"epoch": 3, "loss": 2.5, "seen": {1, 2}, "steps": 1 << 80, "when": b"bytes", "where": torch.device("cpu"),
            "size": torch.Size([2, 3]), "kind": torch.float32, "optimizer": optimizer.state_dict(),
            "model": {"state_dict": state}}


class Malicious:
    def __reduce__(self):
        return os.system, ("echo this must never run",)


FILES = {
    "plain": (plain, 2), "views": (views, 2), "parameters": (parameters, 2), "nested": (nested, 2),
    "protocol5": (lambda: views() | parameters(), 5),
    "untyped": (lambda: {"u16": torch.tensor([1, 65535], dtype=torch.uint16),
                         "f8": grid(2, 3).to(torch.float8_e4m3fn)}, 2),
}
REFUSED = {
    "malicious": {"weight": grid(2, 2), "extra": Malicious()},
    "sparse": {"weight": grid(2, 2).to_sparse()},
    "complex": {"weight": grid(2, 2).to(torch.complex64)},
    "no_tensors": {"epoch": 3, "encoder": {"weight": grid(2, 2)}},
    "list": [grid(2, 2)],
}


def tensors_of(checkpoint):
    for key in ("model", "state_dict"):
        checkpoint = checkpoint.get(key, checkpoint)
    return {key: value.detach().contiguous().clone() for key, value in checkpoint.items()}


def write_big_endian(path):
    """The same tensors as a machine writes them that stores the highest byte first."""
    with zipfile.ZipFile(ROOT / "plain.pt") as source, zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as target:
        sizes = {}

        class Reader(pickle.Unpickler):
            def persistent_load(self, saved):
                _, kind, key, _, _ = saved
                sizes[key] = torch._utils._element_size(kind.dtype)
                return torch.storage.TypedStorage(wrap_storage=torch.UntypedStorage(1 << 10), dtype=kind.dtype)

        Reader(io.BytesIO(source.read("plain/data.pkl"))).load()
        for name in source.namelist():
            content, key = source.read(name), name.rsplit("/", 1)[1]
            if name.endswith("/byteorder"):
                content = b"big"
            elif "/data/" in name:
                width = sizes[key]
                content = b"".join(content[at:at + width][::-1] for at in range(0, len(content), width))
            target.writestr(zipfile.ZipInfo(name), content)


def write_model(name):
    directory = ROOT / name
    directory.mkdir()
    index = GOLDENS / name / "model.safetensors.index.json"
    if not index.exists():
        torch.save(load_file(GOLDENS / name / "model.safetensors"), directory / "pytorch_model.bin")
        return
    content = json.loads(index.read_text())
    for file in sorted(set(content["weight_map"].values())):
        renamed = "pytorch_" + file.replace(".safetensors", ".bin")
        torch.save(load_file(GOLDENS / name / file), directory / renamed)
        for key, value in content["weight_map"].items():
            content["weight_map"][key] = renamed if value == file else value
    (directory / "pytorch_model.bin.index.json").write_text(json.dumps(content, indent=2, sort_keys=True) + "\n")


def main():
    torch.manual_seed(0)
    shutil.rmtree(ROOT, ignore_errors=True)
    ROOT.mkdir()
    expected = {}
    for name, (make, protocol) in FILES.items():
        checkpoint = make()
        torch.save(checkpoint, ROOT / f"{name}.pt", pickle_protocol=protocol)
        expected |= {f"{name}/{key}": value for key, value in tensors_of(checkpoint).items()}
    for name, checkpoint in REFUSED.items():
        torch.save(checkpoint, ROOT / f"{name}.pt")
    torch.save(plain(), ROOT / "legacy.pt", _use_new_zipfile_serialization=False)
    write_big_endian(ROOT / "big_endian.pt")
    save_file(expected, ROOT / "expected.safetensors")
    for name in ("llama-bf16", "gpt2-unprefixed", "llama-sharded"):
        write_model(name)
    total = sum(path.stat().st_size for path in ROOT.rglob("*") if path.is_file())
    print(f"{total / 1e3:.0f} kB in {ROOT}")


if __name__ == "__main__":
    main()
