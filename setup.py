"""Build step of vu-core: the pages of the error codes travel with the command line, for ``vu explain``."""

import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py


class BuildWithErrorPages(build_py):
    """Copy ``docs/errors`` into the wheel as ``vu_cli/error_pages``; a checkout reads them where they are."""

    def run(self) -> None:
        """Build the packages, then add the pages."""
        super().run()
        if not self.editable_mode:
            pages = Path(__file__).parent / "docs" / "errors"
            target = Path(self.build_lib) / "vu_cli" / "error_pages"
            shutil.copytree(pages, target, dirs_exist_ok=True, ignore=shutil.ignore_patterns("README.md"))


setup(cmdclass={"build_py": BuildWithErrorPages})
