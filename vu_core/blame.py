"""Who is to blame when code of a plugin fails: a `PluginError` that names it, unless the core itself failed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import FrameType

from vu_core.errors import PluginError, VuError
from vu_core.registry import WORDS, Entry

_CORE = "vu_core"
_TOOLS = (
    "vu_core.ops",
    "vu_core.adapters",
    "vu_core.data",
    "vu_core.setting",
    "vu_core.edit",
    "vu_core.score",
)
"""Rooms of the core that plugins work with; handed something wrong, they fail for their caller."""


@contextmanager
def asked(entry: Entry, others: Sequence[Entry] = ()) -> Iterator[None]:
    """Turn whatever a plugin raises inside the block, besides a `VuError`, into a `PluginError` that names it.

    Three things pass through unchanged: Ctrl-C, a device out of memory, and an `Exception` of the core's own code,
    which is a bug of the core even when a plugin called it. `SystemExit` never passes: no plugin ends the program.

    Args:
        entry: whose code the block calls.
        others: who else takes part; the code of ``entry`` may call theirs, such as a method its weighting.

    Raises:
        PluginError: ``VU-P009``; the original error is its cause.

    Example:
        >>> entry = Entry("metric", "shade", "vu_shades:Shade", "How dark it is.", "vu-shades", "1.0")
        >>> with asked(entry):
        ...     {}["grey"]
        Traceback (most recent call last):
            ...
        vu_core.errors.PluginError: The metric 'shade' of vu-shades 1.0 failed: KeyError: 'grey'
          where: distribution vu-shades 1.0
          what to do: Tell the authors of vu-shades.
    """
    try:
        yield
    except (VuError, KeyboardInterrupt, GeneratorExit):
        raise
    except BaseException as error:
        if isinstance(error, Exception) and is_out_of_memory(error):
            raise
        guilty = _guilty(error, entry, others)
        if guilty is None:
            raise
        raise _failed(guilty, error) from error


def is_out_of_memory(error: BaseException) -> bool:
    """Tell it by name and text: torch has an error of its own on a GPU, and none on the CPU."""
    names = {each.__name__ for each in type(error).__mro__}
    return bool(names & {"OutOfMemoryError", "MemoryError"}) or "DefaultCPUAllocator: can't allocate" in str(error)


def _failed(entry: Entry, error: BaseException) -> PluginError:
    who = f"{entry.distribution} {entry.version}"
    text = " ".join(str(error).split())
    return PluginError(
        "VU-P009",
        f"The {WORDS.get(entry.kind, entry.kind)} '{entry.name}' of {who} failed: {type(error).__name__}: {text}",
        f"Tell the authors of {entry.distribution}.",
        where=f"distribution {who}",
    )


def _guilty(error: BaseException, asked: Entry, others: Sequence[Entry]) -> Entry | None:
    """Return whose code failed, by the innermost frame of the core or of a plugin; ``None``: the core's.

    Frames of libraries lie further in and are passed over: who called them is to blame. So are those of `_TOOLS`.
    """
    frames = _frames(error)
    for index, frame in enumerate(frames):
        package = _package(frame)
        if _is_tool(frame):
            continue
        if package == _CORE:
            return None if isinstance(error, Exception) else asked
        owners = [entry for entry in (asked, *others) if entry.target.partition(":")[0].partition(".")[0] == package]
        if owners:
            # Several plugins may share a package: the first class on the way out that somebody registered tells.
            for outer in frames[index:]:
                if _package(outer) == _CORE:
                    break
                for entry in owners:
                    if _is_code_of(outer, entry):
                        return entry
            return owners[0]
    return asked


def _frames(error: BaseException) -> list[FrameType]:
    """Return the frames between the block and the place of the error, innermost first."""
    found = []
    trace = error.__traceback__.tb_next if error.__traceback__ is not None else None  # without the frame of `asked`
    while trace is not None:
        found.append(trace.tb_frame)
        trace = trace.tb_next
    # The outermost one is that of the block itself, which belongs to the core and only asks.
    return found[:0:-1]


def _package(frame: FrameType) -> str:
    return str(frame.f_globals.get("__name__", "")).partition(".")[0]


def _is_tool(frame: FrameType) -> bool:
    name = str(frame.f_globals.get("__name__", ""))
    return any(name == tool or name.startswith(f"{tool}.") for tool in _TOOLS)


def _is_code_of(frame: FrameType, entry: Entry) -> bool:
    module, _, attribute = entry.target.partition(":")
    name = frame.f_code.co_qualname
    return frame.f_globals.get("__name__") == module and (name == attribute or name.startswith(f"{attribute}."))
