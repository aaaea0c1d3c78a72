#!/usr/bin/env bash
# Alignment on the garden, from the model of `quickstart` (or of `quickstart --fast`, with FAST=1): a reward model, then every stage from the same tuned model,
# and a table of held-out scores. Usage: scripts/align_garden.sh DIR [STAGE...]; needs `cargo build -p loam-cli` and
# `cargo build -p loam-train --example garden_score`.
set -euo pipefail
dir=$1; shift
stages=${*:-reward dpo kto orpo simpo cpo grpo rloo ppo}
bin=${CARGO_TARGET_DIR:-target}/debug
here=$(cd "$(dirname "$0")/.." && pwd)
export LOAM_HOME=$dir/home
if ! ls -d "$dir"/*quickstart*/sft/model >/dev/null 2>&1; then
    "$bin/loam" quickstart ${FAST:+--fast} --dir "$dir" </dev/null >"$dir-quickstart.txt" 2>&1
fi
sft=$(ls -d "$dir"/*quickstart*/sft/model | tail -1)
[ -d "$dir/garden" ] || "$bin/loam" data garden "$dir/garden" --train-bytes 1000 --chats 10 --examples 8000 >/dev/null
for stage in $stages; do
    [ -d "$dir/$stage/model" ] && continue
    sed -e "s#runs/sft-chat/model#$sft#; s#runs/reward/model#$dir/reward/model#; s#\"garden/#\"$dir/garden/#" \
        "$here/recipes/$stage.toml" >"$dir/$stage.toml"
    start=$SECONDS
    "$bin/loam" train "$dir/$stage.toml" --dir "$dir/$stage" --set train.sample_every=0 --set train.checkpoint_every=0 \
        --set train.eval_every=0 >/dev/null 2>"$dir/$stage.log" || { tail -5 "$dir/$stage.log"; exit 1; }
    echo "$stage: $((SECONDS - start)) s; $(grep 'held-out loss' "$dir/$stage.log" | tail -1)"
done
models=("$sft")
for stage in $stages; do [ "$stage" = reward ] || models+=("$dir/$stage/model"); done
"$bin/examples/garden_score" "${models[@]}"
