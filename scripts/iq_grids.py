"""Writes crates/kernels/src/quant/iq_grids.rs: the tables of numbers that codes of IQ types stand for.

    .venv/bin/pip install gguf numpy
    .venv/bin/python scripts/iq_grids.py && cargo fmt -p loam-kernels

The tables are part of the format. They are read from gguf-py and packed: places in the list of levels, two bits each
where eight numbers share a code, four bits each where four do.
"""
from pathlib import Path

import numpy as np
from gguf import quants

OUT = Path(__file__).resolve().parent.parent / "crates" / "kernels" / "src" / "quant" / "iq_grids.rs"
GRIDS = [("IQ2_XXS", "eight"), ("IQ2_XS", "eight"), ("IQ2_S", "eight"), ("IQ1_S", "eight"), ("IQ3_XXS", "four"),
         ("IQ3_S", "four")]

lines = ["//! Numbers that codes of IQ types stand for, as places in a list of levels. Written by `scripts/iq_grids.py`."]
for name, share in GRIDS:
    kind = getattr(quants, name)
    kind.init_grid()
    grid = kind.grid.reshape(kind.grid_shape)
    places = np.searchsorted(np.array(kind.grid_map, dtype=np.float32), grid)
    bits = 2 if share == "eight" else 4
    codes = (places << (bits * np.arange(grid.shape[1]))).sum(axis=1)
    what = f"{len(codes)} codes of {name}, {share} numbers each"
    lines += ["", f"/// {what}.", f"pub(super) static {name}: [u16; {len(codes)}] = ["]
    lines += [", ".join(f"{code}" for code in codes), "];"]
OUT.write_text("\n".join(lines) + "\n")
print(OUT)
