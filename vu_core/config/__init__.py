"""The configuration of a run, from the words of a file to a frozen `RunConfig`.

In the order of the flow:

- `toml_text`: on which line each key of a file stands, and how a value is written.
- `raw`: what was written: `RawConfig`, and an `Override` for every flag and ``--set``.
- `naming`, `recipes`: who is meant by ``--model X``, and what a plugin ships for a pair of model and method.
- `layers`: defaults, recipe, file and flags laid over each other, one table at a time.
- `conversion`: values become values of a field's type (cattrs); `problems`: everything that is wrong, told at once.
- `reading`: one pass over all tables with the above; the stage ``structure`` leads it.
- `run_config`: what comes out: `RunConfig`; `tables`: the same as tables, as TOML, and as the id of the run.

The names below are the nouns that other rooms hold. The steps in between are imported from their own files by the
stages that take them: they load cattrs, which ``vu --help`` and ``vu list-plugins`` need not wait for.
"""

from vu_core.config.raw import FLAG_KEYS, Override, RawConfig, parse_set
from vu_core.config.run_config import RESERVED, Choice, MeasureSettings, RunConfig, RunSettings, SubsetSettings
from vu_core.config.tables import as_dict, flat, identity, plain, run_id, short_origin, to_toml
from vu_core.config.toml_text import dotted, lines_of_keys, toml_value

__all__ = [
    "FLAG_KEYS",
    "RESERVED",
    "Choice",
    "MeasureSettings",
    "Override",
    "RawConfig",
    "RunConfig",
    "RunSettings",
    "SubsetSettings",
    "as_dict",
    "dotted",
    "flat",
    "identity",
    "lines_of_keys",
    "parse_set",
    "plain",
    "run_id",
    "short_origin",
    "to_toml",
    "toml_value",
]
