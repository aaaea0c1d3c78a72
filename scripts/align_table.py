"""Mean and deviation over seeds of what `garden_score` wrote: `cat RUNS/*/score.jsonl | python3 scripts/align_table.py`.

Runs are called STAGE-sSEED. A stage's gains are those over the SFT model of the same seed, so that each seed is a pair; they are
given as mean ± standard error of the mean.

- preference: mean quality of answers drawn at temperature 1 to held-out questions (1 right and nothing else, 0.5 right and
  then more, 0 wrong, evasive or rude), by the garden's exact scorer
- pairs: share of held-out pairs of answers whose better one is likelier per token
- right: share of held-out questions whose likeliest answer is right; sums: the same of 240 further questions with sums and
  problems
"""
import json
import statistics
import sys
from collections import defaultdict

COLUMNS = {"preference": 3, "pairs": 1, "right": 1, "sums": 1, "letters": 1}
GAINS = {"preference": 3, "pairs": 1, "right": 1, "sums": 1}
START = "sft-garden"


def spread(values, digits, error=False):
    text = f"{statistics.mean(values):{'+' if error else ''}.{digits}f}"
    if len(values) < 2:
        return text
    deviation = statistics.stdev(values) / (len(values) ** 0.5 if error else 1)
    return f"{text} ± {deviation:.{digits}f}"


def main():
    runs = defaultdict(dict)
    for line in sys.stdin.read().splitlines():
        row = json.loads(line)
        stage, _, seed = row["model"].rpartition("-s")
        runs[stage][seed] = row
    for seed, row in sorted(runs.pop("reward", {}).items()):
        kinds = ", ".join(f"{name} {share:.1f}" for name, share in row.items() if name not in ("model", "judged"))
        print(f"reward model, seed {seed}: {row['judged']:.1f} % of held-out pairs ranked right ({kinds})")
    print("\n| stage | seeds | " + " | ".join(COLUMNS) + " | " + " | ".join(f"gain in {name}" for name in GAINS) + " |")
    print("|---|---" + "|---" * (len(COLUMNS) + len(GAINS)) + "|")
    for stage in sorted(runs, key=lambda stage: (stage != START, stage)):
        rows = runs[stage]
        cells = [spread([row[name] for row in rows.values()], digits) for name, digits in COLUMNS.items()]
        pairs = [(row, runs[START][seed]) for seed, row in rows.items() if seed in runs[START] and stage != START]
        for name, digits in GAINS.items():
            cells.append(spread([row[name] - start[name] for row, start in pairs], digits, True) if pairs else "")
        print(f"| {stage} | {len(rows)} | " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()
