"""Every distribution of the repository carries the text of its licence."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PROJECTS = [ROOT, *sorted(path.parent for path in ROOT.glob("plugins/*/pyproject.toml"))]
METADATA = "from setuptools.build_meta import prepare_metadata_for_build_wheel as make; print(make('metadata'))"


@pytest.mark.parametrize("project", PROJECTS, ids=lambda project: project.name if project != ROOT else "vu-core")
def test_the_wheel_of_a_distribution_carries_its_licence(project: Path, tmp_path: Path) -> None:
    """What the build backend puts into the wheel's folder of metadata, without building the rest."""
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(project / name, tmp_path / name)
    (tmp_path / "metadata").mkdir()
    done = subprocess.run([sys.executable, "-c", METADATA], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (metadata,) = (tmp_path / "metadata").glob("*.dist-info")
    assert "License-Expression: Apache-2.0" in (metadata / "METADATA").read_text(encoding="utf-8").splitlines()
    shipped = (metadata / "licenses" / "LICENSE").read_bytes()
    assert shipped == (ROOT / "LICENSE").read_bytes()
