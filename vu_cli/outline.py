"""Long dotted names for narrow places: what many share stands once above them."""

from __future__ import annotations

from collections.abc import Sequence

MAX_WORDS = 20
"""No name is split after more words than this."""


def split(names: Sequence[str], room: int) -> list[tuple[str, str]]:
    """Split each name into a heading and a rest, so that every rest fits; headings get no more words than needed.

    Words end at dots, or at underscores where no name has a dot. The last word always stays in the rest, and
    with a number the word before it.

    Args:
        names: such as those of modules.
        room: characters for a rest.

    Returns:
        Heading and rest per name; empty headings when the names fit as they are, not even their ends do, or there are
        blanks in them: sentences are no names.

    Example:
        >>> split(["unet.mid_block.to_q", "unet.mid_block.to_k", "unet.conv_in"], 8)
        [('unet.mid_block', 'to_q'), ('unet.mid_block', 'to_k'), ('unet', 'conv_in')]
    """
    dot = "." if any("." in name for name in names) else "_"
    for words in range(MAX_WORDS if not any(" " in name for name in names) else 0):
        pairs = [_split(name, dot, words) for name in names]
        if all(len(rest) <= room for _, rest in pairs):
            return pairs
    return [("", name) for name in names]


def _split(name: str, dot: str, words: int) -> tuple[str, str]:
    parts = name.split(dot)
    least = 2 if parts[-1].isdigit() else 1  # "0" alone says nothing
    at = min(words, max(0, len(parts) - least))
    return dot.join(parts[:at]), dot.join(parts[at:])
