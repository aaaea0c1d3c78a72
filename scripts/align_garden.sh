#!/usr/bin/env bash
# Alignment on the garden, from the model of `quickstart` (or of `quickstart --fast`, with FAST=1): a reward model, then every stage from the same tuned model
# with every seed, and a table of held-out scores, mean ± deviation. Usage: [SEEDS="1 2 3"] scripts/align_garden.sh DIR [STAGE...];
# needs `cargo build -p loam-cli` and `cargo build -p loam-train --example garden_score`. What is there already is not run again,
# so a long table can be made in slices: name one stage per call.
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
    for seed in ${SEEDS:-42}; do
        # One judge for all of them.
        run=$stage-s$seed
        [ "$stage" = reward ] && run=reward
        [ -d "$dir/$run/model" ] && continue
        sed -e "s#runs/sft-chat/model#$sft#; s#runs/reward/model#$dir/reward/model#; s#\"garden/#\"$dir/garden/#" \
            "$here/recipes/$stage.toml" >"$dir/$run.toml"
        start=$SECONDS
        "$bin/loam" train "$dir/$run.toml" --dir "$dir/$run" --set seed="$seed" --set train.sample_every=0 \
            --set train.checkpoint_every=0 --set train.eval_every=0 >/dev/null 2>"$dir/$run.log" \
            || { tail -5 "$dir/$run.log"; exit 1; }
        echo "$run: $((SECONDS - start)) s; $(grep 'held-out loss' "$dir/$run.log" | tail -1)"
    done
done
models=("$sft")
for stage in $stages; do
    [ "$stage" = reward ] && continue
    for seed in ${SEEDS:-42}; do models+=("$dir/$stage-s$seed/model"); done
done
"$bin/examples/garden_score" "${models[@]}" | tee "$dir/scores.txt"
python3 "$here/scripts/align_table.py" <"$dir/scores.txt"
