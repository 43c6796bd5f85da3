"""The directory of published names says what the distributions of this repository bring, no more and no less."""

from vu_core.plugins import discover, read_directory


def test_the_directory_is_what_the_distributions_register() -> None:
    published = {(kind, name, owner) for kind, names in read_directory().items() for name, owner in names.items()}
    ours = {owner for _, _, owner in published} | {"vu-core"}
    registered = {
        (entry.kind, name, entry.distribution)
        for entry in discover().registry.entries()
        if entry.distribution in ours and entry.kind != "recipe"
        for name in (entry.name, *entry.aliases)
    }
    assert published == registered
