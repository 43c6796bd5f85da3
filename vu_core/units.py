"""Sizes as people read them."""

from __future__ import annotations


def bytes_text(count: float) -> str:
    """Return a number of bytes in decimal multiples: 1 kB is 1,000 bytes.

    Example:
        >>> bytes_text(0), bytes_text(999), bytes_text(1536), bytes_text(1_300_000_000)
        ('0 B', '999 B', '1.5 kB', '1.3 GB')
    """
    amount, name = abs(count), "B"
    for larger in ("kB", "MB", "GB", "TB"):
        if amount < 999.5:  # what would be shown as 1000
            break
        amount, name = amount / 1000, larger
    sign = "-" if count < 0 else ""
    digits = 0 if name == "B" or amount >= 99.95 else 1
    return f"{sign}{amount:.{digits}f} {name}"
