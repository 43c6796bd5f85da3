"""Numbers as people read them."""

from __future__ import annotations

from vu_core.score import Score
from vu_core.units import bytes_text


def value(number: float | None, unit: str) -> str:
    """Return a number in its unit; fractions become percent.

    Example:
        >>> value(0.9712, "fraction"), value(1536, "bytes"), value(21504, "parameters"), value(0.00123456, "mse")
        ('97.1', '1.5 kB', '21,504', '0.00123')
    """
    if number is None:
        return ""
    if unit == "fraction":
        return f"{100 * number:.1f}"
    if unit == "bytes":
        return bytes_text(number)
    if float(number).is_integer() and abs(number) < 1e15:
        return f"{int(number):,}"
    return f"{number:.3g}"


def change(score: Score) -> str:
    """Return ``after - before`` with its sign, or nothing when there is no before."""
    return difference(score.change, score.unit)


def difference(number: float | None, unit: str) -> str:
    """Return a difference of two numbers with its sign, or nothing for ``None``.

    Example:
        >>> difference(-0.0123, "fraction"), difference(0.00001, "fraction"), difference(3, "mse")
        ('-1.2', '0.0', '+3')
    """
    if number is None:
        return ""
    text = value(abs(number), unit)
    if not any(digit in text for digit in "123456789"):
        return text
    return ("-" if number < 0 else "+") + text


def interval(score: Score) -> str:
    """Return the 95 % interval of ``after``, or nothing where none is defined."""
    if score.ci_low is None or score.ci_high is None:
        return ""
    return f"[{value(score.ci_low, score.unit)}, {value(score.ci_high, score.unit)}]"


def unit(name: str) -> str:
    """Return the unit of the numbers that `value` writes, for a unit as in `Score`."""
    return {"fraction": "%", "bytes": "", "parameters": "count"}.get(name, name)


def duration(seconds: float) -> str:
    """Return a time span.

    Example:
        >>> duration(0.42), duration(75), duration(7384)
        ('0.4 s', '1 min 15 s', '2 h 3 min')
    """
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    return f"{minutes // 60} h {minutes % 60} min"


def clock(seconds: float) -> str:
    """Return a time span for a progress line.

    Example:
        >>> clock(9), clock(75), clock(7384)
        ('0:09', '1:15', '2:03:04')
    """
    minutes, rest = divmod(max(0, round(seconds)), 60)
    if minutes < 60:
        return f"{minutes}:{rest:02d}"
    return f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}"


def count(number: float) -> str:
    """Return a large count with a multiple.

    Example:
        >>> count(4_190_000), count(860e6), count(950)
        ('4.2 M', '860 M', '950')
    """
    amount, name = float(number), ""
    for larger in ("k", "M", "G"):
        if amount < 1000:
            break
        amount, name = amount / 1000, larger
    return f"{amount:.1f} {name}".replace(".0 ", " ").strip() if name else f"{amount:.0f}"
