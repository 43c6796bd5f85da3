"""The documentation: links lead somewhere, every error code has its page, every page is reachable."""

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted(
    [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *ROOT.glob("docs/**/*.md"), *ROOT.glob("plugins/*/README.md")]
)
SOURCES = sorted([*ROOT.glob("vu_core/**/*.py"), *ROOT.glob("vu_cli/**/*.py"), *ROOT.glob("plugins/*/src/**/*.py")])
CODE = re.compile(r"VU-[A-Z]\d{3}")
LINK = re.compile(r"(?<!\!)\[[^\]]*\]\(([^)#\s]+)(#[^)]*)?\)|!\[[^\]]*\]\(([^)\s]+)\)")


def text(page: Path) -> str:
    return page.read_text(encoding="utf-8")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_of_a_page_lead_to_files(page: Path) -> None:
    without_code = re.sub(r"```.*?```", "", text(page), flags=re.S)
    targets = [match.group(1) or match.group(3) for match in LINK.finditer(without_code)]
    local = [target for target in targets if not target.startswith(("http://", "https://", "mailto:"))]
    missing = [target for target in local if not (page.parent / target).exists()]
    assert not missing


def test_every_code_in_the_sources_has_a_page_and_every_page_a_code() -> None:
    used = {code for source in SOURCES for code in CODE.findall(text(source))}
    pages = {page.stem: page for page in (ROOT / "docs/errors").glob("VU-*.md")}
    assert sorted(used - set(pages)) == []
    assert sorted(set(pages) - used) == []
    for code, page in pages.items():
        lines = text(page).splitlines()
        assert lines[0].startswith(f"# {code}: "), page
        assert len([line for line in lines if line.strip()]) >= 5, f"{page} says too little"


def test_the_index_reaches_every_page_of_the_documentation() -> None:
    seen: set[Path] = set()
    todo = [ROOT / "README.md", ROOT / "docs/index.md"]
    while todo:
        page = todo.pop().resolve()
        if page in seen or not page.exists() or page.suffix != ".md":
            continue
        seen.add(page)
        todo += [page.parent / match.group(1) for match in LINK.finditer(text(page)) if match.group(1)]
    pages = {page.resolve() for page in ROOT.glob("docs/**/*.md")}
    assert sorted(str(page.relative_to(ROOT)) for page in pages - seen) == []


def needed(distribution: str) -> set[str]:
    """Return the distributions of this repository that one needs, itself and the core included."""
    folder = ROOT if distribution == "vu-core" else ROOT / "plugins" / distribution
    names = tomllib.loads(text(folder / "pyproject.toml"))["project"]["dependencies"]
    ours = {re.split(r"[^\w-]", name)[0] for name in names if name.startswith("vu-")}
    return {distribution}.union(*map(needed, ours))


@pytest.mark.parametrize("page", [ROOT / "README.md", *ROOT.glob("plugins/*/README.md")], ids=lambda p: p.parent.name)
def test_the_install_line_names_what_is_needed_and_no_more(page: Path) -> None:
    (line,) = re.findall(r"`pip install -c constraints.txt (\. .*?)`", text(page), flags=re.S)
    named = {"vu-core" if path == "." else path.removeprefix("./plugins/") for path in line.split()}
    distribution = page.parent.name if page.parent != ROOT else "vu-fade"
    assert named == needed(distribution)


def test_the_project_speaks_of_the_project_alone() -> None:
    forbidden = re.compile(rf"/home/\w+/|{re.escape(str(Path.home()))}/|{re.escape(str(ROOT))}/")
    hits = [
        str(p.relative_to(ROOT))
        for p in [*PAGES, *SOURCES, ROOT / "Makefile", ROOT / "pyproject.toml"]
        if forbidden.search(text(p))
    ]
    assert hits == []


def test_results_are_what_the_score_files_say() -> None:
    done = subprocess.run(
        [sys.executable, ROOT / "benchmarks/results.py", "--check"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
