#!/usr/bin/env python3
"""Judges texts that were written under JSON schemas by the jsonschema package.

    LOAM_CONSTRAINED=/tmp/constrained.jsonl cargo test --release -p loam-infer --test constrain -- --nocapture
    pip install jsonschema
    python scripts/check_constrained.py /tmp/constrained.jsonl
"""

import json
import sys

import jsonschema

lines = [json.loads(line) for line in open(sys.argv[1], encoding="utf-8")]
wrong = 0
for line in lines:
    try:
        jsonschema.Draft202012Validator(line["schema"]).validate(json.loads(line["text"]))
    except (ValueError, jsonschema.ValidationError) as error:
        wrong += 1
        print(f"{error}\n{line}")
print(f"{len(lines) - wrong} of {len(lines)} texts are valid")
sys.exit(bool(wrong or not lines))
