"""Keep diffusers and transformers from writing to the terminal while a model is loaded."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def quiet() -> Iterator[None]:
    """Silence progress bars and chatter of diffusers and transformers; their former settings come back."""
    import transformers

    log = transformers.utils.logging
    hint = logging.getLogger("transformers.utils.import_utils")
    level, bars = log.get_verbosity(), log.is_progress_bar_enabled()
    hint.addFilter(_no_install_hint)
    log.set_verbosity_error()  # before the import of diffusers: it makes transformers talk about torchvision
    log.disable_progress_bar()
    import diffusers

    own = diffusers.utils.logging
    own_level, own_bars = own.get_verbosity(), own.is_progress_bar_enabled()
    own.set_verbosity_error()
    own.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", category=FutureWarning, module="diffusers|transformers")
            yield
    finally:
        log.set_verbosity(level)
        own.set_verbosity(own_level)
        if bars:
            log.enable_progress_bar()
        if own_bars:
            own.enable_progress_bar()
        hint.removeFilter(_no_install_hint)


def _no_install_hint(record: logging.LogRecord) -> bool:
    return "requires torchvision" not in record.getMessage()
