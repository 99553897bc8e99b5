"""Text: numbers and lists as text, the same in every sentence and table of a page."""

from collections.abc import Sequence

from experiments.rounds.metrics import METRICS


def metric_text(name: str, value: float, sign: bool = False) -> str:
    """A metric, or a difference of it: `97.21` for an accuracy of 0.9721, `1,200` for a count."""
    scale, digits = (100, 2) if in_percent(name) else (1, 0 if METRICS[name].whole else 3)
    rounded = round(scale * value, digits) + 0.0  # no negative zero
    plus = "+" if sign and rounded else ""
    return f"{rounded:{plus},.{digits}f}".replace("-", "\N{MINUS SIGN}")


def in_percent(name: str) -> bool:
    """Whether `metric_text` shows a metric in percent."""
    return METRICS[name].unit in ("accuracy", "error", "share")


def percent(accuracy: float) -> str:
    """An accuracy in [0, 1], such as `97.21%`."""
    return f"{100 * accuracy:.2f}%"


def points(difference: float) -> str:
    """A difference of accuracies in [-1, 1] without its sign, such as `0.90 points`."""
    return f"{100 * abs(difference):.2f} points"


def weights(share: float) -> str:
    """A share of weights in [0, 1] to three digits, such as `10.7%`."""
    return f"{100 * share:.3g}%"


def ratio(value: float) -> str:
    """How many times smaller, to three digits, such as `9.35x` with a real multiplication sign."""
    return f"{value:.3g}\N{MULTIPLICATION SIGN}"


def p_value(value: float) -> str:
    """A p-value to three decimals."""
    return "<0.001" if value < 0.001 else f"{value:.3f}"


def count(number: int, noun: str) -> str:
    """`1 seed`, `3 seeds`."""
    return f"{number:,} {noun}" + ("" if number == 1 else "s")


def listed(words: Sequence[object], last: str = "and") -> str:
    """`a, b and c`."""
    *first, final = map(str, words)
    return f"{', '.join(first)} {last} {final}" if first else final
