"""GGUF files of Loam read by gguf-py, and files of gguf-py read by Loam: the same numbers bit for bit.

    python scripts/check_gguf.py DIR --loam target/release/loam [--types q8_0,q4_k_m,..]

DIR is a model directory of a family without permuted rows (qwen2, qwen3) whose sizes are multiples of 256. For every
type, `loam model convert DIR x.gguf --quant TYPE` is read with gguf-py and decoded by its numpy code, and compared with
what `loam model convert x.gguf OUT --dtype float32` decodes. Then gguf-py writes a file with every type of metadata value
and every element type that it encodes or decodes (random blocks where it only decodes), which Loam must decode to the
same numbers. One line per type; ends with 1 where anything differs.
"""
import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import gguf
import numpy as np
from gguf import GGMLQuantizationType as Type
from safetensors.numpy import load_file

MIXES = [
    "f32", "f16", "bf16", "q8_0", "q6_k", "q5_k_m", "q5_k_s", "q5_1", "q5_0", "q4_k_m", "q4_k_s", "q4_1", "q4_0",
    "iq4_nl", "iq4_xs", "q3_k_l", "q3_k_m", "q3_k_s", "q2_k", "q2_k_s",
]
# What Loam decodes of what a file may hold.
DECODED = ["Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "TQ1_0", "TQ2_0", "MXFP4",
           "NVFP4", "IQ4_NL", "IQ4_XS", "F16", "BF16"]
NAMES = {
    "token_embd.weight": "model.embed_tokens.weight", "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}
PARTS = {
    "attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm", "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj", "attn_v": "self_attn.v_proj", "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm", "attn_k_norm": "self_attn.k_norm", "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj",
}


def hugging_face(name):
    if name in NAMES:
        return NAMES[name]
    _, layer, part, kind = name.split(".")
    return f"model.layers.{layer}.{PARTS[part]}.{kind}"


def decoded_by_gguf_py(path):
    """Tensors by their names in a directory, and the names of their element types."""
    tensors, types = {}, set()
    for tensor in gguf.GGUFReader(path).tensors:
        shape = [int(n) for n in reversed(tensor.shape)]
        values = gguf.quants.dequantize(tensor.data, tensor.tensor_type).astype(np.float32).reshape(shape)
        tensors[hugging_face(tensor.name)] = values
        types.add(tensor.tensor_type.name)
    return tensors, types


def decoded_by_loam(loam, path, out):
    run(loam, "model", "convert", path, out, "--dtype", "float32", "--force")
    return load_file(Path(out) / "model.safetensors")


def run(*command):
    result = subprocess.run([str(part) for part in command], capture_output=True, text=True)
    if result.returncode:
        sys.exit(f"error: {' '.join(map(str, command))}: {result.stderr}")
    return result.stdout


def differences(ours, theirs):
    """Numbers whose bits differ; a NaN is a NaN."""
    if ours.keys() != theirs.keys():
        sys.exit(f"error: tensors differ: {sorted(ours.keys() ^ theirs.keys())}")
    count = 0
    for name, own in ours.items():
        other = theirs[name]
        same = (own.view(np.uint32) == other.view(np.uint32)) | (np.isnan(own) & np.isnan(other))
        count += int((~same).sum())
    return count


def random_blocks(rng, kind, rows, width):
    """Valid bytes of a type that gguf-py only decodes: random ones, scales kept finite."""
    block, size = gguf.GGML_QUANT_SIZES[kind]
    data = rng.integers(0, 256, (rows, width // block * size), dtype=np.uint8)
    with np.errstate(all="ignore"):
        while True:
            bad = ~np.isfinite(gguf.quants.dequantize(data, kind)).all(axis=-1)
            if not bad.any():
                return data
            data[bad] = rng.integers(0, 256, (int(bad.sum()), data.shape[1]), dtype=np.uint8)


def written_by_gguf_py(path, source, kind, rng):
    """The weights of a file of Loam, written by gguf-py with one element type for all matrices."""
    reader = gguf.GGUFReader(source)
    writer = gguf.GGUFWriter(path, "qwen2")
    for key, field in reader.fields.items():
        if key.startswith("qwen2."):
            writer.add_key_value(key, field.contents(), field.types[0])
    for name, value in [("u8", 200), ("i8", -3), ("u16", 60000), ("i16", -5), ("u32", 1 << 31), ("i32", -7), ("u64", 1 << 60),
                        ("i64", -(1 << 60)), ("f32", 0.5), ("f64", 0.25), ("bool", True)]:
        kinds = {"u": "UINT", "i": "INT", "f": "FLOAT", "b": "BOOL"}
        kind_name = "BOOL" if name == "bool" else kinds[name[0]] + name[1:]
        writer.add_key_value(f"odd.{name}", value, gguf.GGUFValueType[kind_name])
    writer.add_string("odd.text", "Grüße, 世界")
    writer.add_array("odd.texts", ["a", "", "é"])
    writer.add_array("odd.numbers", [1, -2, 3])
    writer.add_array("odd.flags", [True, False])
    for tensor in reader.tensors:
        shape = [int(n) for n in reversed(tensor.shape)]
        values = np.array(tensor.data).reshape(shape)
        if len(shape) == 1:
            writer.add_tensor(tensor.name, values)
            continue
        try:
            writer.add_tensor(tensor.name, gguf.quants.quantize(values, kind), raw_dtype=kind)
        except NotImplementedError:
            writer.add_tensor(tensor.name, random_blocks(rng, kind, *shape), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("directory")
    parser.add_argument("--loam", required=True)
    parser.add_argument("--types", default=",".join(MIXES))
    args = parser.parse_args()
    failed = False
    with tempfile.TemporaryDirectory() as scratch:
        scratch = Path(scratch)
        for mix in args.types.split(","):
            path = scratch / "own.gguf"
            run(args.loam, "model", "convert", args.directory, path, "--quant", mix, "--force")
            theirs, types = decoded_by_gguf_py(path)
            ours = decoded_by_loam(args.loam, path, scratch / "own")
            count, total = differences(ours, theirs), sum(values.size for values in ours.values())
            print(json.dumps({"written_by": "loam", "mix": mix, "types": sorted(types), "numbers": total, "differ": count}))
            failed |= count > 0
        plain, rng = scratch / "plain.gguf", np.random.default_rng(7)
        run(args.loam, "model", "convert", args.directory, plain, "--dtype", "float32")
        for name in DECODED:
            path = scratch / "theirs.gguf"
            written_by_gguf_py(path, plain, Type[name], rng)
            theirs, types = decoded_by_gguf_py(path)
            ours = decoded_by_loam(args.loam, path, scratch / "theirs")
            count, total = differences(ours, theirs), sum(values.size for values in ours.values())
            print(json.dumps({"written_by": "gguf-py", "types": sorted(types), "numbers": total, "differ": count}))
            failed |= count > 0
    sys.exit(int(failed))


if __name__ == "__main__":
    main()
