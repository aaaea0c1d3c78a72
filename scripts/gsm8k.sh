#!/usr/bin/env bash
# GSM8K's training file, all the way: layout found, base model, one epoch of SFT that is interrupted once and resumed, and the last
# 200 problems, which neither has read, by the number after `####`.
#
#     [LOAM=target/release/loam] scripts/gsm8k.sh gsm8k_train.jsonl DIR
set -euo pipefail
here=$(cd "$(dirname "$0")/.." && pwd)
data=$1
dir=$(mkdir -p "$2" && cd "$2" && pwd)
loam=${LOAM:-$here/target/release/loam}
mkdir -p "$dir/gsm8k"
head -n -200 "$data" >"$dir/gsm8k/train.jsonl"
tail -n 200 "$data" >"$dir/gsm8k/held-out.jsonl"
python3 - "$dir/gsm8k" <<'P'
import json, sys
rows = map(json.loads, open(f"{sys.argv[1]}/train.jsonl"))
with open(f"{sys.argv[1]}/text.jsonl", "w") as out:
    out.writelines(json.dumps({"text": f"Question: {row['question']}\nAnswer: {row['answer']}"}) + "\n" for row in rows)
P
for recipe in pretrain-gsm8k sft-gsm8k; do
    sed -e "s#\"gsm8k/#\"$dir/gsm8k/#g; s#runs/pretrain-gsm8k/model#$dir/pretrain-gsm8k/model#" "$here/recipes/$recipe.toml" \
        >"$dir/$recipe.toml"
done
[ -d "$dir/pretrain-gsm8k/model" ] || "$loam" train "$dir/pretrain-gsm8k.toml" --dir "$dir/pretrain-gsm8k" --set train.sample_every=0
evaluate() { "$loam" eval "$1" --answers "$dir/gsm8k/held-out.jsonl" --pattern '#### (-?[0-9.,]+)' --max-tokens 200 --json; }
[ -f "$dir/base.json" ] || evaluate "$dir/pretrain-gsm8k/model" | tee "$dir/base.json"
"$loam" data inspect "$dir/sft-gsm8k.toml" 2>/dev/null | head -20 || true
rm -rf "$dir/sft"
"$loam" train "$dir/sft-gsm8k.toml" --dir "$dir/sft" --set train.sample_every=0 &
until [ "$(cat "$dir/sft/metrics.jsonl" 2>/dev/null | wc -l)" -ge 40 ]; do kill -0 $! && sleep 1; done
kill -INT $!
wait $! || true
echo "interrupted: $(tail -n 1 "$dir/sft/metrics.jsonl")"
"$loam" train "$dir/sft-gsm8k.toml" --dir "$dir/sft" --resume --set train.sample_every=0
tail -n 1 "$dir/sft/metrics.jsonl"
evaluate "$dir/sft/model" | tee "$dir/sft.json"
