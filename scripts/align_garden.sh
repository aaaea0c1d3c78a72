#!/usr/bin/env bash
# Alignment on the garden: one pretrained model, and from it with every seed an SFT model, a reward model, every way to align,
# and GRPO on sums alone; then a table of held-out scores, mean ± deviation over seeds. All of it by the recipes in recipes/.
#
#     [SEEDS="1 2 3"] [REWARD_SEED=1] [LOAM=target/release/loam] [SCORE=target/release/examples/garden_score] scripts/align_garden.sh DIR [STAGE...]
#
# needs `cargo build --release -p loam-cli` and `cargo build --release -p loam-train --example garden_score`. What is there already
# is not run again, so a long table can be made in slices: name one stage per call. With REWARD_SEED one reward model serves all seeds.
set -euo pipefail
here=$(cd "$(dirname "$0")/.." && pwd)
dir=$(mkdir -p "$1" && cd "$1" && pwd); shift
stages=${*:-sft-garden sft-long reward dpo kto orpo simpo grpo rloo ppo grpo-arithmetic}
loam=${LOAM:-$here/target/release/loam}
score=${SCORE:-$here/target/release/examples/garden_score}
export LOAM_HOME=$dir/home

# run NAME RECIPE SEED: trains and scores, each once; what a recipe names is taken from DIR.
run() {
    [ -d "$dir/$1/model" ] || train "$@"
    [ -s "$dir/$1/score.jsonl" ] || "$score" "$dir/$1/model" | tee "$dir/$1/score.jsonl"
}

# own_pairs SEED SAMPLES DRAWS FILE: pairs of the SFT model's own answers, drawn with the seed DRAWS, ranked by the garden's scorer.
own_pairs() {
    [ -s "$4" ] || "$loam" data prefer "$dir/sft-garden-s$1/model" "$dir/garden/prompts-train.jsonl" --out "$4" --reward garden \
        --samples "$2" --pairs 2 --max-tokens 32 --seed "$3" ${THREADS:+--threads $THREADS} >/dev/null
}

train() {
    sed -e "s#runs/pretrain-garden/model#$dir/pretrain-garden/model#; s#\"garden/#\"$dir/garden/#g" \
        -e "s#runs/\(sft-garden\|sft-long\)/model#$dir/\1-s$3/model#; s#runs/reward/model#$dir/reward-s${REWARD_SEED:-$3}/model#" "$here/recipes/$2.toml" >"$dir/$1.toml"
    rm -rf "${dir:?}/$1"
    local more=()
    case $1 in
        # What a reference scores first are all pairs of a file: no more than the steps take.
        dpo-* | kto-*) more=(--set "data.train=[\"$dir/garden/pairs-4000.jsonl\"]") ;;
        reward-*)
            own_pairs "$3" 4 "$3" "$dir/own-s$3.jsonl"
            own_pairs "$3" 6 "10$3" "$dir/own2-s$3.jsonl"
            more=(--set "data.train=[\"$dir/pairs-36000.jsonl\",\"$dir/own-s$3.jsonl\",\"$dir/own2-s$3.jsonl\"]")
            ;;
        sft-long-*) more=(--set train.steps=1500) ;;
    esac
    local start=$SECONDS
    "$loam" train "$dir/$1.toml" --dir "$dir/$1" --set seed="$3" --set train.sample_every=0 --set train.checkpoint_every=0 \
        --set train.eval_every=0 "${more[@]}" ${THREADS:+--threads $THREADS} >/dev/null 2>"$dir/$1.log" || { tail -5 "$dir/$1.log"; exit 1; }
    echo "$1: $((SECONDS - start)) s; $(grep 'held-out loss' "$dir/$1.log" | tail -1)"
}

[ -d "$dir/garden" ] || "$loam" data garden "$dir/garden" --train-bytes 6000000 --chats 20000 --examples 12000 >/dev/null
[ -d "$dir/garden-pairs" ] || "$loam" data garden "$dir/garden-pairs" --train-bytes 100000 --chats 100 --examples 48000 >/dev/null
grep -E '"category":"(arithmetic|problem)"' "$dir/garden/prompts-train.jsonl" >"$dir/garden/sums-train.jsonl"
grep -E '"category":"(arithmetic|problem)"' "$dir/garden/prompts-valid.jsonl" >"$dir/garden/sums-valid.jsonl"
head -n 4000 "$dir/garden/preferences-train.jsonl" >"$dir/garden/pairs-4000.jsonl"
head -n 36000 "$dir/garden-pairs/preferences-train.jsonl" >"$dir/pairs-36000.jsonl"
run pretrain-garden pretrain-garden 42
for seed in ${SEEDS:-1 2 3}; do
    for stage in $stages; do run "$stage-s$seed" "${stage/sft-long/sft-garden}" "$seed"; done
done
cat "$dir"/*-s*/score.jsonl | python3 "$here/scripts/align_table.py"
