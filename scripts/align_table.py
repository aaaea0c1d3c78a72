"""Mean and deviation over seeds of what `garden_score` printed: `garden_score MODEL... | python3 scripts/align_table.py`.

Runs are called STAGE-sSEED; the tuned model they start from has no seed. The gain in quality over it is given in standard errors
of the mean over seeds.
"""
import statistics
import sys
from collections import defaultdict

COLUMNS = ("quality", "right %", "arithmetic %", "pairs %", "letters")


def main():
    runs = defaultdict(list)
    for line in sys.stdin.read().splitlines()[1:]:
        name, *numbers = line.split()
        stage = name.rsplit("-s", 1)[0] if "-s" in name else name
        runs[stage].append([float(number) for number in numbers])
    print("| stage | seeds | " + " | ".join(COLUMNS) + " | gain in quality, standard errors |")
    print("|---|---|" + "---|" * (len(COLUMNS) + 1))
    start = next(rows for stage, rows in runs.items() if len(rows) == 1)[0]
    for stage, rows in runs.items():
        cells = []
        for place in range(len(COLUMNS)):
            values = [row[place] for row in rows]
            spread = f" ± {statistics.stdev(values):.3g}" if len(values) > 1 else ""
            cells.append(f"{statistics.mean(values):.4g}{spread}")
        gain = "-"
        if len(rows) > 1:
            values = [row[0] for row in rows]
            error = statistics.stdev(values) / len(values) ** 0.5
            difference = statistics.mean(values) - start[0]
            gain = f"{difference:+.3f}" + (f" = {difference / error:.1f} SE" if error > 0 else "")
        print(f"| {stage} | {len(rows)} | " + " | ".join(cells) + f" | {gain} |")


if __name__ == "__main__":
    main()
