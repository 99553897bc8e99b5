"""The replication of Frankle & Carbin 2019: the contrasts and verdicts of docs/replication.md.

    python docs/replication.py reports/ID ...             # the contrasts, as Markdown
    python docs/replication.py pilot unit=reports/ID ...  # the pilot: several scalings of pixels
    python docs/replication.py collect --out docs/replication/main reports/ID ...

A path is the folder of a comparison's report, a folder that `collect` wrote, or one of its files
(one per seed); seeds may be spread over several. A *chain* is a seed: its dense network, and the
networks of its arms after each round. Contrasts are computed within chains; chains are the sample.
"""

import argparse
import sys
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from math import exp, log
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

METHOD = ["reinit", "criterion", "control", "pruning"]
ARMS = {  # a method: its name here
    ("lottery", "magnitude", "none", "iterative"): "ticket",
    ("random", "magnitude", "none", "iterative"): "random",
    ("lottery", "magnitude", "none", "one_shot"): "one_shot",
}
DENSE = "dense"  # round 0 of the same arm and seed
KEY = ["arm", "seed", "round"]
SPEED, ACCURACY = "early_stop_iteration", "early_stop_test_accuracy"
READINGS = {"at the end": "test_accuracy", "last 20 epochs": "late_test_accuracy"}
VALID = "early_stop_valid_accuracy"
COLUMNS = [*KEY, "sparsity", SPEED, VALID, ACCURACY, *READINGS.values()]
LATE = 20  # epochs whose ends `late_test_accuracy` averages
LAST_LOOK = 50_435  # iterations of a round: 55 epochs of 917; an early stop there is censored
SIZES = {7: 0.211, 9: 0.135, 15: 0.036, 16: 0.029}  # the paper's share of the weights, by round
MARGINS = {SPEED: log(1.25), ACCURACY: 0.2}  # what "the same level" allows
SCALINGS = ["unit", "l2", "standardised"]  # the first wins where the pilot does not decide
PILOT_ROUNDS = [3, 7, 9, 16]
LEVEL = 0.05
ROUNDING = 1e-12  # differences that vary less are equal


def span(first: int, last: int) -> tuple[int, ...]:
    """The rounds from `first` to `last`."""
    return tuple(range(first, last + 1))


@dataclass(frozen=True)
class Contrast:
    """A claim of the paper as one number per chain.

    Speed is the difference of the natural logarithms of iterations, accuracy that of percentage
    points; both are averaged over `rounds`. With `other` None, it is instead the slope of the arm
    over the rounds, per round.
    """

    name: str
    claim: str
    metric: str
    arm: str
    other: str | None
    rounds: tuple[int, ...]
    sign: int  # the claimed one; 0: the same level
    paper: float | None = None  # the value that the paper states


T, R, S, D = "ticket", "random", "one_shot", DENSE
CONTRASTS = (
    Contrast("C1", "ticket stops earlier than dense, 21.1%", SPEED, T, D, (7,), -1, log(0.62)),
    Contrast("C2", "ticket stops earlier than random, 21.1%", SPEED, T, R, (7,), -1, -log(2.51)),
    Contrast("C3", "ticket more accurate than random, 21.1%", ACCURACY, T, R, (7,), 1, 0.5),
    Contrast("C4", "ticket more accurate than dense, 13.5%", ACCURACY, T, D, (9,), 1, 0.3),
    Contrast("C5", "ticket stops when dense does, 3.6%", SPEED, T, D, (15,), 0, 0.0),
    Contrast("C6", "ticket as accurate as dense, 3.6%", ACCURACY, T, D, (15,), 0, 0.0),
    Contrast("C7", "random less accurate than dense, 21.1%", ACCURACY, R, D, (7,), -1),
    Contrast("C8", "ticket less accurate than dense, 2.9%", ACCURACY, T, D, (16,), -1),
    Contrast("C9", "random stops later, the smaller: 80% to 2.9%", SPEED, R, None, span(1, 16), 1),
    Contrast("C10", "one-shot stops earlier, 64% to 21%", SPEED, S, D, span(2, 7), -1),
    Contrast("C11", "one-shot more accurate, 80% to 5.6%", ACCURACY, S, D, span(1, 13), 1),
)


def read(paths: Sequence[Path]) -> pd.DataFrame:
    """The networks of all paths, one row per arm, seed and round, with `COLUMNS`.

    Raises:
        ValueError: If there are none, a file lacks columns, or a network appears twice.
    """
    table = pd.concat([_read(path) for path in paths], ignore_index=True)
    twice = table[table.duplicated(KEY)]
    if len(twice):
        arm, seed, number = twice[KEY].iloc[0]
        raise ValueError(f"seed {seed} appears twice: round {number} of {arm}; pass it once")
    return table.sort_values(KEY, ignore_index=True)


def _read(path: Path) -> pd.DataFrame:
    if (path / "comparison.csv").is_file():
        return _read_report(path)
    files = sorted(path.glob("seed_*.csv")) if path.is_dir() else [path]
    if not files:
        raise ValueError(f"{path}: neither comparison.csv nor seed_*.csv is in this folder")
    return pd.concat([_read_csv(file, COLUMNS) for file in files], ignore_index=True)


def _read_csv(path: Path, columns: Sequence[str]) -> pd.DataFrame:
    table = pd.read_csv(path).round(10)  # so that files read back equal
    missing = [name for name in columns if name not in table]
    if missing:
        raise ValueError(f"{path}: has no column {', '.join(missing)}")
    return table[list(columns)]


def _read_report(folder: Path) -> pd.DataFrame:
    rounds = _read_csv(folder / "comparison.csv", [*METHOD, *KEY[1:], *COLUMNS[3:-1]])
    epochs = _read_csv(folder / "epochs.csv", [*METHOD, *KEY[1:], "epoch", "test_accuracy"])
    rounds, epochs = _with_arm(rounds, folder), _with_arm(epochs, folder)
    late = epochs.sort_values("epoch").groupby(KEY)["test_accuracy"]
    if (late.size() < LATE).any():
        raise ValueError(f"{folder}: needs at least {LATE} epochs a round, got {late.size().min()}")
    means = late.apply(lambda values: values.tail(LATE).mean()).round(8)
    return rounds.join(means.rename(COLUMNS[-1]), on=KEY)[COLUMNS]


def _with_arm(table: pd.DataFrame, folder: Path) -> pd.DataFrame:
    """The table with its arms; a method that is none of them is an error."""
    methods = table[METHOD].itertuples(index=False, name=None)
    arms = [ARMS.get(method, ", ".join(method)) for method in methods]
    for arm in arms:
        if arm not in ARMS.values():
            raise ValueError(f"{folder}: {arm} is not an arm of the replication")
    return table.assign(arm=arms)


def check_complete(table: pd.DataFrame, arms: Sequence[str], last: int) -> None:
    """Every arm has the same seeds, and every seed all rounds from 0 to at least `last`.

    Raises:
        ValueError: If not, or if a size or an early stop is not one of the protocol.
    """
    seeds, top = set(table["seed"]), max(last, int(table["round"].max()))
    for arm in arms:
        own = table[table["arm"] == arm]
        for seed in sorted(seeds):
            has = set(own.loc[own["seed"] == seed, "round"])
            missing = [str(number) for number in range(top + 1) if number not in has]
            if missing:
                raise ValueError(f"{arm}, seed {seed}: rounds are missing: {', '.join(missing)}")
    for number, share in SIZES.items():
        left = 1 - table.loc[table["round"] == number, "sparsity"]
        if (left.sub(share).abs() > 0.0005).any():
            raise ValueError(f"round {number} must leave {share:.1%}, got {left.iloc[0]:.2%}")
    if table[SPEED].max() > LAST_LOOK:
        raise ValueError(f"a round must have {LAST_LOOK} iterations, got {table[SPEED].max()}")


def changes(table: pd.DataFrame, contrast: Contrast, metric: str | None = None) -> pd.Series:
    """The contrast of each chain, by seed; `metric` replaces the contrast's own."""
    values = table.pivot(index="seed", columns=["arm", "round"], values=metric or contrast.metric)
    values = np.log(values) if contrast.metric == SPEED else 100 * values
    numbers = list(contrast.rounds)
    own = values[contrast.arm][numbers]
    if contrast.other is None:
        centred = np.array(numbers) - np.mean(numbers)
        return own @ centred / float(centred @ centred)
    if contrast.other == DENSE:
        return own.mean(axis="columns") - values[contrast.arm][0]
    return (own - values[contrast.other][numbers]).mean(axis="columns")


def interval(change: pd.Series) -> tuple[float, float, float]:
    """Mean and Student's 95% interval; NaN with fewer than two values."""
    mean = float(change.mean())
    if len(change) < 2:
        return mean, float("nan"), float("nan")
    half = float(stats.t.ppf(1 - LEVEL / 2, len(change) - 1) * stats.sem(change))
    return mean, mean - half, mean + half


def p_values(change: pd.Series, contrast: Contrast) -> tuple[float, float]:
    """Two-sided p-values for the claim and against it; 1 where nothing can be tested.

    A direction is shown by a difference from 0, and refuted by an effect that is smaller than the
    paper's value (than 0 if it states none). A level is shown inside the margin, refuted outside.
    """
    if len(change) < 2 or np.ptp(change) <= ROUNDING:
        return 1.0, 1.0

    def above(value: float) -> float:
        return float(stats.ttest_1samp(change, value, alternative="greater").pvalue)

    def below(value: float) -> float:
        return float(stats.ttest_1samp(change, value, alternative="less").pvalue)

    if contrast.sign == 0:
        margin = MARGINS[contrast.metric]
        shown, refuted = max(below(margin), above(-margin)), min(above(margin), below(-margin))
    elif contrast.sign > 0:
        shown, refuted = above(0.0), below(contrast.paper or 0.0)
    else:
        shown, refuted = below(0.0), above(contrast.paper or 0.0)
    return min(1.0, 2 * shown), min(1.0, 2 * refuted)


def holm(p: Iterable[float]) -> list[float]:
    """p-values corrected for their number: Holm 1979, step down."""
    values = np.array(list(p))
    order = np.argsort(values, kind="stable")
    raised = values[order] * np.arange(len(values), 0, -1)
    values[order] = np.minimum(1.0, np.maximum.accumulate(raised))
    return [float(value) for value in values]


def evaluate(table: pd.DataFrame) -> pd.DataFrame:
    """All contrasts with their tests, one row each.

    Returns:
        The fields of `Contrast`, `n` (chains), `mean`, `low`, `high`, the p-values `p_for` and
        `p_against`, both after Holm over the contrasts as `holm_...`, `sign_p` (sign test),
        `censored` (early stops at the last look), other readings of accuracies, `verdict`, `size`.
    """
    check_complete(table, list(ARMS.values()), max(max(one.rounds) for one in CONTRASTS))
    rows = []
    for contrast in CONTRASTS:
        change = changes(table, contrast)
        mean, low, high = interval(change)
        p_for, p_against = p_values(change, contrast)
        row = asdict(contrast) | {"n": len(change), "mean": mean, "low": low, "high": high}
        row |= {"p_for": p_for, "p_against": p_against}
        row |= {"sign_p": sign_test(change), "censored": _censored(table, contrast)}
        if contrast.metric == ACCURACY:
            for name in READINGS.values():
                three = interval(changes(table, contrast, name))
                row |= dict(zip((name, f"{name}_low", f"{name}_high"), three, strict=True))
        rows.append(row)
    made = pd.DataFrame(rows)
    made["holm_for"], made["holm_against"] = holm(made["p_for"]), holm(made["p_against"])
    made["verdict"] = [
        "supported" if a < LEVEL else "contradicted" if b < LEVEL else "undecided"
        for a, b in zip(made["holm_for"], made["holm_against"], strict=True)
    ]
    made["size"] = [_size(row) for row in made.to_dict("records")]
    return made


def sign_test(change: pd.Series) -> float:
    """Two-sided p-value of the sign test; chains without a difference do not count."""
    positive, negative = int((change > 0).sum()), int((change < 0).sum())
    if not positive + negative:
        return 1.0
    return float(stats.binomtest(positive, positive + negative).pvalue)


def _censored(table: pd.DataFrame, contrast: Contrast) -> int:
    if contrast.metric != SPEED:
        return 0
    arms = [contrast.arm, contrast.other]
    networks = table["arm"].isin(arms) & table["round"].isin(contrast.rounds)
    if contrast.other == DENSE:
        networks |= table["arm"].eq(contrast.arm) & table["round"].eq(0)
    return int((table[networks][SPEED] == LAST_LOOK).sum())


def _size(row: dict[Any, Any]) -> str:
    """Does the interval hold the paper's value?"""
    if not row["sign"] or pd.isna(row["paper"]) or pd.isna(row["low"]):
        return ""
    if row["low"] <= row["paper"] <= row["high"]:
        return "as in the paper"
    return "larger" if (row["mean"] - row["paper"]) * row["sign"] > 0 else "smaller"


def as_markdown(made: pd.DataFrame) -> str:
    """The contrasts, and the other readings of accuracy, as two tables."""
    lines = [
        "| | claim | n | here (95% interval) | paper | p for / against, Holm | sign test, p "
        "| at the last look | verdict | size |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in made.to_dict("records"):
        paper = "" if pd.isna(row["paper"]) else _value(row["paper"], row["metric"])
        lines.append(
            f"| {row['name']} | {row['claim']} | {row['n']} | "
            f"{_interval((row['mean'], row['low'], row['high']), row['metric'])} | {paper} | "
            f"{row['holm_for']:.2g} / {row['holm_against']:.2g} | {row['sign_p']:.2g} | "
            f"{row['censored']} | **{row['verdict']}** | {row['size']} |"
        )
    lines += ["", f"| points | at the early stop | {' | '.join(READINGS)} |", "|---|---|---|---|"]
    for row in made[made["metric"] == ACCURACY].to_dict("records"):
        parts = [(row["mean"], row["low"], row["high"])]
        parts += [(row[x], row[f"{x}_low"], row[f"{x}_high"]) for x in READINGS.values()]
        lines.append(f"| {row['name']} | {' | '.join(_interval(p, ACCURACY) for p in parts)} |")
    return "\n".join(lines)


def _interval(values: tuple[float, float, float], metric: str) -> str:
    mean, low, high = (_value(value, metric) for value in values)
    return f"{mean} ({low} to {high})"


def _value(value: float, metric: str) -> str:
    return f"{exp(value):.3g}x" if metric == SPEED else f"{value:+.2f}"


def pilot(tables: dict[str, pd.DataFrame]) -> str:
    """Dense networks and differences of each scaling as Markdown, and the primary scaling.

    Raises:
        ValueError: If the seeds of the scalings differ, or networks are missing.
    """
    valid, lines = {}, ["| pixels | | n | here (95% interval) |", "|---|---|---|---|"]
    for name, table in tables.items():
        check_complete(table, ["ticket", "random"], max(PILOT_ROUNDS))
        dense = table[(table["arm"] == "ticket") & (table["round"] == 0)].set_index("seed")
        valid[name], n = 100 * dense[VALID], len(dense)
        for words, values in (("validation", valid[name]), ("test", 100 * dense[ACCURACY])):
            text = "{:.2f} ({:.2f} to {:.2f})".format(*interval(values))
            lines.append(f"| {name} | dense, {words} accuracy, % | {n} | {text} |")
        for number in PILOT_ROUNDS:
            for arm, other in (("ticket", DENSE), ("random", DENSE), ("ticket", "random")):
                for metric in (ACCURACY, SPEED):
                    words = f"{arm} against {other}, {_left(table, number)}"
                    one = Contrast("", words, metric, arm, other, (number,), 0)
                    text = _interval(interval(changes(table, one)), metric)
                    lines.append(f"| {name} | {words} | {n} | {text} |")
    return "\n".join([*lines, "", f"Primary scaling: {choose_scaling(valid)}"])


def _left(table: pd.DataFrame, number: int) -> str:
    return f"{1 - table.loc[table['round'] == number, 'sparsity'].iloc[0]:.1%}"


def choose_scaling(valid: dict[str, pd.Series]) -> str:
    """The scaling whose dense networks have the highest mean validation accuracy, by seed.

    Scalings whose paired 95% interval to the best includes 0 are level with it; of these, the first
    of `SCALINGS` is taken.
    """
    seeds = {tuple(sorted(values.index)) for values in valid.values()}
    if len(seeds) > 1:
        raise ValueError("all scalings must have the same seeds")
    best = max(valid, key=lambda name: valid[name].mean())
    level = [name for name in valid if not interval(valid[best] - valid[name])[1] > 0]
    return min(level, key=SCALINGS.index)


def collect(paths: Sequence[Path], out: Path) -> list[Path]:
    """Write a file per seed, `seed_007.csv`, with its networks; arms of earlier calls stay.

    Raises:
        ValueError: If a file has the same network with other values.
    """
    written = []
    for seed, rows in read(paths).groupby("seed"):
        file = out / f"seed_{seed:03}.csv"
        if file.exists():
            rows = pd.concat([_read_csv(file, COLUMNS), rows]).drop_duplicates()
        if rows.duplicated(KEY).any():
            raise ValueError(f"{file}: has other values of the same networks")
        out.mkdir(parents=True, exist_ok=True)
        rows.sort_values(KEY).to_csv(file, index=False)
        written.append(file)
    return written


def main(arguments: Sequence[str]) -> None:
    """Run one of the three commands."""
    parser = argparse.ArgumentParser(description=__doc__)
    command = "".join({"pilot", "collect"} & set(arguments[:1]))
    if command == "collect":
        parser.add_argument("--out", type=Path, required=True, help="folder of the files")
    elif not command:
        parser.add_argument("--csv", type=Path, help="also write the contrasts to this file")
    parser.add_argument("paths", nargs="+", help="NAME=PATH for pilot")
    given = parser.parse_args(arguments[1:] if command else arguments)
    if command == "collect":
        print(*collect([Path(path) for path in given.paths], given.out), sep="\n")
    elif command == "pilot":
        named: dict[str, list[Path]] = {}
        for name, _, path in (text.partition("=") for text in given.paths):
            if name not in SCALINGS or not path:
                raise ValueError(f"pilot takes NAME=PATH with NAME in {', '.join(SCALINGS)}")
            named.setdefault(name, []).append(Path(path))
        print(pilot({name: read(paths) for name, paths in named.items()}))
    else:
        made = evaluate(read([Path(path) for path in given.paths]))
        print(as_markdown(made))
        if given.csv:
            made.to_csv(given.csv, index=False)


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except (OSError, ValueError) as error:
        sys.exit(f"error: {error}")
