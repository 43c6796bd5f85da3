"""Every distribution builds, installs from its wheel into an empty environment, and shows the same plugins there."""

import json
import os
import re
import subprocess
import sys
import sysconfig
import tomllib
import venv
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PROJECTS = [ROOT, *sorted(path.parent for path in ROOT.glob("plugins/*/pyproject.toml"))]

pytestmark = pytest.mark.install


def run(*command: str | Path, **kwargs) -> subprocess.CompletedProcess[str]:
    return subprocess.run([str(word) for word in command], capture_output=True, text=True, check=False, **kwargs)


def succeed(*command: str | Path, **kwargs) -> str:
    done = run(*command, **kwargs)
    assert done.returncode == 0, f"{command}\n{done.stdout[-4000:]}\n{done.stderr[-4000:]}"
    return done.stdout


@pytest.fixture(scope="module")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("wheels")
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation"]
    for project in PROJECTS:
        succeed(*command, "--wheel-dir", folder, project)
    return {wheel.name.split("-")[0].replace("_", "-"): wheel for wheel in sorted(folder.glob("*.whl"))}


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("fresh environment")  # a name with a space is as good as any
    venv.create(folder, with_pip=True)
    return folder / ("Scripts" if os.name == "nt" else "bin")


def install(environment: Path, *files: Path, dry: bool = False) -> None:
    command = [environment / "python", "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    succeed(*command, *(["--dry-run"] if dry else []), "-c", ROOT / "constraints.txt", *files)
    succeed(environment / "python", "-m", "pip", "check")


def needed(distribution: str) -> set[str]:
    """Return the distributions of this repository that one declares, and those that they declare, with itself."""
    names = tomllib.loads((ROOT / "plugins" / distribution / "pyproject.toml").read_text())["project"]["dependencies"]
    ours = {re.split(r"[^\w-]", name)[0] for name in names if name.startswith("vu-")} - {"vu-core"}
    return {distribution}.union(*map(needed, ours))


def clean() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if name not in {"PYTHONPATH", "VIRTUAL_ENV"}}


def test_core_alone_says_what_to_install_and_with_all_wheels_shows_the_same_plugins(
    wheels: dict[str, Path], environment: Path, tmp_path: Path
) -> None:
    assert set(wheels) == {"vu-core", *(project.name for project in PROJECTS[1:])}
    install(environment, wheels["vu-core"])
    listed = json.loads(succeed(environment / "vu", "list-plugins", "--json", cwd=tmp_path, env=clean()))
    assert {entry["distribution"] for entry in listed} == {"vu-core"}
    refused = run(environment / "vu", "unlearn", "--method", "fade-sparse", cwd=tmp_path, env=clean())
    assert refused.returncode == 2, refused.stderr
    assert "pip install vu-fade" in refused.stderr
    assert "Traceback" not in refused.stderr

    for project in PROJECTS[1:]:
        install(environment, *(wheels[name] for name in needed(project.name)), dry=True)

    install(environment, *wheels.values())
    there = json.loads(succeed(environment / "vu", "list-plugins", "--json", cwd=tmp_path, env=clean()))
    here = json.loads(succeed(Path(sysconfig.get_path("scripts")) / "vu", "list-plugins", "--json", env=clean()))
    assert there == here
    assert {entry["state"] for entry in there} == {"ready"}
    succeed(environment / "vu", "list-plugins", "--check", cwd=tmp_path, env=clean())


def test_wheels_carry_their_data_and_nothing_else(wheels: dict[str, Path]) -> None:
    import zipfile

    for name, wheel in wheels.items():
        members = zipfile.ZipFile(wheel).namelist()
        module = name.replace("-", "_")
        allowed = ("vu_core/", "vu_cli/") if name == "vu-core" else (f"{module}/",)
        strangers = [m for m in members if not m.startswith(allowed) and ".dist-info/" not in m]
        assert not strangers, f"{wheel.name} carries {strangers[:5]}"
        assert not [m for m in members if "/tests/" in m or m.endswith((".pyc", ".bin", ".pt", ".pkl"))]
