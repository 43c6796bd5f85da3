"""vu push against a stand-in of the hub: what arrives, what is asked, and what is said when it refuses."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.parse import parse_qs, unquote

import pytest

from vu_core import Check, Event, RecordError, Table, exporting
from vu_core.plugins import Plugins, discover

TOKEN = "hf_stand_in"  # no token of anybody
REPO = "someone/without-red"
CARD = "---\nlibrary_name: vu\ntags: [machine-unlearning]\n---\n\n# toy without red\n"


class StandIn(ThreadingHTTPServer):
    """Answers as the hub does, and keeps what it is sent.

    What it holds: ``repos`` by name, with ``private``, ``branches`` and ``files``; ``requests`` in order; ``commits``;
    ``stored`` large files by hash. ``refuse`` maps a part of a path to the status that is answered there.
    """

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Answer)
        self.endpoint = f"http://127.0.0.1:{self.server_address[1]}"
        self.repos: dict[str, dict[str, Any]] = {}
        self.requests: list[SimpleNamespace] = []
        self.commits: list[SimpleNamespace] = []
        self.stored: dict[str, bytes] = {}
        self.refuse: dict[str, tuple[int, str]] = {}
        self.ignored: set[str] = set()

    def create(self, name: str, private: bool = False) -> None:
        self.repos[name] = {"private": private, "branches": {"main": {}}}

    def paths(self) -> list[str]:
        return [request.path for request in self.requests]


class Answer(BaseHTTPRequestHandler):
    server: StandIn
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        """Stay quiet."""

    def do_GET(self) -> None:
        self._take()

    def do_POST(self) -> None:
        self._take()

    def do_PUT(self) -> None:
        self._take()

    def _take(self) -> None:
        body = self._body()
        path = unquote(self.path)
        self.server.requests.append(
            SimpleNamespace(verb=self.command, path=path, body=body, auth=self.headers.get("authorization"))
        )
        for part, (status, said) in self.server.refuse.items():
            if part in path:
                self._say(status, {"error": said})
                return
        for pattern, answer in ANSWERS:
            found = re.fullmatch(pattern, f"{self.command} {path}")
            if found:
                self._say(*answer(self.server, body, *found.groups()))
                return
        self._say(404, {"error": f"the stand-in knows no {self.command} {path}"})

    def _body(self) -> bytes:
        if self.headers.get("transfer-encoding", "").lower() != "chunked":
            return self.rfile.read(int(self.headers.get("content-length") or 0))
        whole = b""
        while size := int(self.rfile.readline(), 16):
            whole += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return whole

    def _say(self, status: int, content: Any) -> None:
        text = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)


Reply = tuple[int, Any]


def whoami(hub: StandIn, body: bytes) -> Reply:
    return 200, {"type": "user", "name": "someone"}


def create(hub: StandIn, body: bytes) -> Reply:
    asked = json.loads(body)
    name = f"{asked['organization']}/{asked['name']}"
    url = {"url": f"{hub.endpoint}/{name}"}
    if name in hub.repos:
        return 409, {"error": "You already created this model repo", **url}
    hub.create(name, asked.get("visibility") == "private")
    return 200, url


def info(hub: StandIn, body: bytes, name: str) -> Reply:
    if name not in hub.repos:
        return 404, {"error": "Repository not found"}
    return 200, {"id": name, "private": hub.repos[name]["private"], "sha": "0" * 40, "tags": [], "siblings": []}


def branch(hub: StandIn, body: bytes, name: str, which: str) -> Reply:
    if which in hub.repos[name]["branches"]:
        return 409, {"error": "Reference already exists"}
    hub.repos[name]["branches"][which] = {}
    return 200, {}


def validate(hub: StandIn, body: bytes) -> Reply:
    if "tags: [machine-unlearning" in json.loads(body)["content"].replace('"', ""):
        return 200, {"errors": [], "warnings": []}
    return 400, {"error": "Bad request", "errors": [{"message": "tags are missing"}], "warnings": []}


def preupload(hub: StandIn, body: bytes, name: str, which: str) -> Reply:
    files = json.loads(body)["files"]
    return 200, {
        "files": [
            {
                "path": file["path"],
                "uploadMode": "lfs" if file["path"].endswith(".safetensors") else "regular",
                "shouldIgnore": file["path"] in hub.ignored,
            }
            for file in files
        ]
    }


def batch(hub: StandIn, body: bytes, name: str) -> Reply:
    found = []
    for wanted in json.loads(body)["objects"]:
        places = {kind: {"href": f"{hub.endpoint}/lfs-{kind}/{wanted['oid']}"} for kind in ("upload", "verify")}
        found.append({**wanted, "actions": places})
    return 200, {"transfer": "basic", "objects": found}


def store(hub: StandIn, body: bytes, oid: str) -> Reply:
    if hashlib.sha256(body).hexdigest() != oid:
        return 400, {"error": "another file"}
    hub.stored[oid] = body
    return 200, {}


def verify(hub: StandIn, body: bytes, oid: str) -> Reply:
    return 200 if len(hub.stored[oid]) == json.loads(body)["size"] else 400, {}


def commit(hub: StandIn, body: bytes, name: str, which: str) -> Reply:
    lines = [json.loads(line) for line in body.splitlines()]
    files = {}
    for line in lines:
        value = line["value"]
        if line["key"] == "file":
            files[value["path"]] = base64.b64decode(value["content"])
        elif line["key"] == "lfsFile":
            files[value["path"]] = hub.stored[value["oid"]]
    header = next(line["value"] for line in lines if line["key"] == "header")
    hub.repos[name]["branches"][which].update(files)
    hub.commits.append(SimpleNamespace(repo=name, branch=which, header=header, files=files))
    oid = f"{len(hub.commits):040x}"
    return 200, {"commitUrl": f"{hub.endpoint}/{name}/commit/{oid}", "commitOid": oid, "success": True}


def paths_info(hub: StandIn, body: bytes, name: str, oid: str) -> Reply:
    asked = parse_qs(body.decode())["paths"]
    files = hub.commits[int(oid, 16) - 1].files
    there = [path for path in asked if path in files]
    return 200, [{"type": "file", "path": path, "size": len(files[path]), "oid": "0" * 40} for path in there]


ANSWERS: tuple[tuple[str, Callable[..., Reply]], ...] = (
    (r"GET /api/whoami-v2", whoami),
    (r"POST /api/repos/create", create),
    (r"POST /api/validate-yaml", validate),
    (r"GET /api/models/(\S+/[^/]+)", info),
    (r"POST /api/models/(\S+/\S+)/branch/(.+)", branch),
    (r"POST /api/models/(\S+/\S+)/preupload/(.+)", preupload),
    (r"POST /api/models/(\S+/\S+)/commit/(.+)", commit),
    (r"POST /api/models/(\S+/\S+)/paths-info/(.+)", paths_info),
    (r"POST /(\S+/\S+)\.git/info/lfs/objects/batch", batch),
    (r"PUT /lfs-upload/(\w+)", store),
    (r"POST /lfs-verify/(\w+)", verify),
)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[StandIn]:
    """The stand-in as the hub of this process, with a token in HF_TOKEN and no saved login."""
    from huggingface_hub import close_session, constants

    served = StandIn()
    thread = threading.Thread(target=served.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setattr(constants, "ENDPOINT", served.endpoint)
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no-token"))
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_TELEMETRY", True)
    monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda _: None)  # it tries again, and waits
    close_session()
    yield served
    close_session()
    served.shutdown()
    thread.join()
    served.server_close()


@pytest.fixture
def nobody(hub: StandIn, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody is logged in."""
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HF_OIDC_RESOURCE"):
        monkeypatch.delenv(name, raising=False)


FILES = {"weights.safetensors": bytes(range(256)) * 4096, "sub/config.json": b'{"a": 1}\n', "README.md": CARD.encode()}


@pytest.fixture
def exported(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """An exporter that writes ``FILES``; what it was asked for is kept."""
    seen: dict[str, Any] = {}

    def export(run: Path, to: str, out: Path, host: Any, on_event: Any, **asked: Any) -> exporting.Export:
        seen.update(run=run, to=to, out=out, **asked)
        for _ in range(2):
            on_event(Event("warning", "load", {"text": "The data has changed."}))
        for name, content in FILES.items():
            (out / name).parent.mkdir(parents=True, exist_ok=True)
            (out / name).write_bytes(content)
        return exporting.Export(
            folder=out,
            format=to,
            title="toy without red",
            checks=(Check("denoiser", 1e-7, 1e-4),),
            usage="import toylib",
            files={name: len(content) for name, content in FILES.items()},
            facts={"scale": asked["scale"]} if asked["scale"] != 1 else {},
        )

    monkeypatch.setattr(exporting, "export", export)
    return seen


@pytest.fixture
def plugins() -> Plugins:
    import vu_diffusers.plugin as own
    from vu_core.testing import toy_plugin

    return discover(extra=[("vu-toys", "1.0", toy_plugin), ("vu-diffusers", "1.0", own)], installed=False)


@pytest.fixture
def vu(plugins: Plugins, capsys: pytest.CaptureFixture[str]) -> Callable[..., SimpleNamespace]:
    """Run a command line of vu in this process."""

    def run(*words: object) -> SimpleNamespace:
        from vu_cli import main

        status = main.run([str(word) for word in words], plugins=plugins)
        out, err = capsys.readouterr()
        return SimpleNamespace(status=status, out=out, err=err)

    return run


def test_what_arrives_is_what_was_exported_in_one_commit(
    vu: Callable[..., SimpleNamespace], hub: StandIn, exported: dict[str, Any]
) -> None:
    done = vu("push", "runs/x", REPO, "--json")
    assert done.status == 0, done.err
    assert json.loads(done.out)[0]["notes"] == ["warning: The data has changed."]
    assert [(c.repo, c.branch) for c in hub.commits] == [(REPO, "main")]
    assert hub.commits[0].files == FILES
    assert hub.repos[REPO]["private"] is False
    assert {request.auth for request in hub.requests if request.verb != "PUT"} == {f"Bearer {TOKEN}"}
    assert list(hub.stored.values()) == [FILES["weights.safetensors"]]  # the large file, and no other
    assert not exported["out"].exists()  # the temporary folder is gone
    pushed, files, checks = json.loads(done.out)
    assert pushed["rows"] == [
        {"repository": f"{hub.endpoint}/{REPO}", "commit": f"{hub.endpoint}/{REPO}/commit/{1:040x}"}
    ]
    assert files["rows"] == [{"file": name, "bytes": len(content)} for name, content in FILES.items()]
    assert checks["rows"] == [{"compared": "denoiser", "error": 1e-7, "limit": 1e-4}]


def test_options_reach_the_exporter(vu: Callable[..., SimpleNamespace], hub: StandIn, exported: dict[str, Any]) -> None:
    words = f"push runs/x {REPO} --to kohya --scale 0.5 --densify 0.1 --refit-rank 4 --set precision=fp16"
    done = vu(*words.split())
    assert done.status == 0, done.err
    exported.pop("out")
    assert exported == {
        "run": Path("runs/x"),
        "to": "kohya",
        "settings": {"precision": "fp16"},
        "scale": 0.5,
        "densify": 0.1,
        "refit_rank": 4,
        "address": REPO,
    }
    assert "its strength is 0.5 of the trained one" in done.out
    assert f"{hub.endpoint}/{REPO}" in done.out
    vu("push", "runs/x", REPO)
    assert (exported["to"], exported["scale"], exported["settings"]) == ("diffusers", 1.0, {})


def test_nothing_of_this_machine_is_told(
    vu: Callable[..., SimpleNamespace], hub: StandIn, exported: dict[str, Any], tmp_path: Path
) -> None:
    vu("push", tmp_path / "run", REPO)
    assert hub.commits[0].header == {"summary": "Add toy without red (diffusers)", "description": ""}
    sent = b"\n".join(request.body for request in hub.requests) + "\n".join(hub.paths()).encode()
    for place in (tmp_path, exported["out"], Path.home(), Path.cwd()):
        assert str(place).encode() not in sent


@pytest.mark.usefixtures("nobody")
def test_without_a_token_nothing_is_sent_and_nothing_is_loaded(
    vu: Callable[..., SimpleNamespace], hub: StandIn, exported: dict[str, Any]
) -> None:
    done = vu("push", "runs/x", REPO)
    assert done.status == RecordError.exit_status
    assert "VU-R126" in done.err
    assert "hf auth login" in done.err
    assert hub.requests == []
    assert exported == {}


@pytest.mark.usefixtures("nobody")
def test_a_saved_login_is_used(
    vu: Callable[..., SimpleNamespace], hub: StandIn, exported: dict[str, Any], tmp_path: Path
) -> None:
    (tmp_path / "no-token").write_text("hf_saved\n")
    assert vu("push", "runs/x", REPO).status == 0
    assert {request.auth for request in hub.requests if request.verb != "PUT"} == {"Bearer hf_saved"}


def test_a_login_that_cannot_be_read_is_told(
    vu: Callable[..., SimpleNamespace], hub: StandIn, exported: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails() -> str:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("huggingface_hub.get_token", fails)
    done = vu("push", "runs/x", REPO)
    assert "VU-R126" in done.err
    assert "Permission denied" in done.err
    assert (hub.requests, exported) == ([], {})


@pytest.mark.parametrize(
    "name",
    ["without-owner", "a/b/c", "/name", "owner/", "owner/na me", "owner/a--b", "owner/a..b", "hf://a/b", "a/b.git"],
)
def test_a_malformed_name_is_refused_at_once(
    vu: Callable[..., SimpleNamespace], hub: StandIn, exported: dict[str, Any], name: str
) -> None:
    done = vu("push", "runs/x", name)
    assert done.status == RecordError.exit_status
    assert "VU-R129" in done.err
    assert (hub.requests, exported) == ([], {})


@pytest.mark.parametrize(
    ("place", "status", "code", "said"),
    [
        ("repos/create", 403, "VU-R127", "forbids it: You don't have the rights"),
        ("repos/create", 404, "VU-R127", "knows no such owner"),
        ("repos/create", 500, "VU-R128", "status 500"),
        ("preupload", 403, "VU-R127", "forbids it"),
        ("preupload", 404, "VU-R127", "knows no such owner or repository"),
        ("lfs/objects/batch", 401, "VU-R127", "does not accept the token"),
        ("lfs-upload", 500, "VU-R128", "status 500"),
        ("lfs-upload", 403, "VU-R127", "forbids it"),
        ("lfs-verify", 400, "VU-R127", "refuses (400)"),
        ("/commit/", 401, "VU-R127", "does not accept the token"),
        ("/commit/", 409, "VU-R127", "another change"),
        ("/commit/", 413, "VU-R127", "refuses (413): You don't have the rights"),
        ("/commit/", 500, "VU-R128", "status 500"),
        ("/commit/", 503, "VU-R128", "status 503"),
    ],
)
def test_a_hub_that_refuses_or_fails_is_told(
    vu: Callable[..., SimpleNamespace],
    hub: StandIn,
    exported: dict[str, Any],
    place: str,
    status: int,
    code: str,
    said: str,
) -> None:
    hub.refuse[place] = (status, "You don't have the rights.")
    done = vu("push", "runs/x", REPO)
    assert done.status == RecordError.exit_status
    assert code in done.err
    assert said in done.err
    assert "Traceback" not in done.err
    assert hub.commits == []
    assert not exported["out"].exists()


def test_a_token_that_the_hub_does_not_know_is_told_before_anything_heavy(
    vu: Callable[..., SimpleNamespace], hub: StandIn, exported: dict[str, Any]
) -> None:
    hub.refuse["whoami"] = (401, "Invalid username or password.")
    done = vu("push", "runs/x", REPO)
    assert "VU-R127" in done.err
    assert "does not accept the token" in done.err
    assert exported == {}
    assert hub.paths() == ["/api/whoami-v2"]


def test_other_answers_to_who_am_i_do_not_matter(
    vu: Callable[..., SimpleNamespace], hub: StandIn, exported: dict[str, Any]
) -> None:
    hub.refuse["whoami"] = (429, "Too many requests.")
    assert vu("push", "runs/x", REPO).status == 0


def test_a_hub_that_cannot_be_reached_is_told_before_anything_heavy(
    vu: Callable[..., SimpleNamespace], hub: StandIn, exported: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")  # nobody listens there
    done = vu("push", "runs/x", REPO)
    assert done.status == RecordError.exit_status
    assert "VU-R128" in done.err
    assert exported == {}


def test_a_failed_export_sends_nothing(
    vu: Callable[..., SimpleNamespace], hub: StandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    from vu_core import EditError

    def fails(*_: object, **__: object) -> exporting.Export:
        raise EditError("VU-E055", "It does not reproduce the edit.", "Export in another format.")

    monkeypatch.setattr(exporting, "export", fails)
    assert vu("push", "runs/x", REPO).status == EditError.exit_status
    assert hub.paths() == ["/api/whoami-v2"]
    assert hub.repos == {}


def test_a_card_that_the_hub_rejects_is_told_with_its_reasons(
    vu: Callable[..., SimpleNamespace], hub: StandIn, exported: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(FILES, "README.md", b"---\nlibrary_name: vu\n---\n")
    done = vu("push", "runs/x", REPO)
    assert "VU-R127" in done.err
    assert "tags are missing" in done.err
    assert hub.commits == []


def test_private_is_asked_for_and_never_taken_for_granted(
    vu: Callable[..., SimpleNamespace], hub: StandIn, exported: dict[str, Any]
) -> None:
    assert vu("push", "runs/x", REPO, "--private").status == 0
    assert hub.repos[REPO]["private"] is True
    assert vu("push", "runs/x", REPO, "--private").status == 0  # it is there already
    hub.create("someone/open")
    done = vu("push", "runs/x", "someone/open", "--private")
    assert "VU-R127" in done.err
    assert "public" in done.err
    assert all(commit.repo == REPO for commit in hub.commits)


def test_a_repository_that_is_there_is_added_to(
    vu: Callable[..., SimpleNamespace], hub: StandIn, exported: dict[str, Any]
) -> None:
    hub.create(REPO)
    hub.repos[REPO]["branches"]["main"]["mine.txt"] = b"mine"
    assert vu("push", "runs/x", REPO).status == 0
    assert hub.repos[REPO]["branches"]["main"] == {"mine.txt": b"mine", **FILES}


def test_a_branch_is_made_and_the_card_does_not_send_readers_to_another(
    vu: Callable[..., SimpleNamespace], hub: StandIn, exported: dict[str, Any]
) -> None:
    for _ in range(2):  # the second time it is there
        assert vu("push", "runs/x", REPO, "--revision", "rank-4").status == 0
    assert exported["address"] == ""
    assert hub.repos[REPO]["branches"] == {"main": {}, "rank-4": FILES}


def test_files_that_the_repository_ignores_are_told(
    vu: Callable[..., SimpleNamespace], hub: StandIn, exported: dict[str, Any]
) -> None:
    hub.ignored.add("weights.safetensors")
    done = vu("push", "runs/x", REPO)
    assert done.status == RecordError.exit_status
    assert "did not take weights.safetensors" in done.err
    assert ".gitignore" in done.err


def test_the_endpoint_of_the_environment_is_used(hub: StandIn, tmp_path: Path) -> None:
    """In a process of its own: the client reads HF_ENDPOINT when it is imported."""
    for name, content in FILES.items():
        (tmp_path / "out" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "out" / name).write_bytes(content)
    code = (
        "import sys; from pathlib import Path; from vu_diffusers.upload import Repository\n"
        f"made = Repository.of({REPO!r}).upload(Path(sys.argv[1]), tuple(sys.argv[2:]), 'Add it', private=False)\n"
        "print(made.address)"
    )
    settings = {"HF_ENDPOINT": hub.endpoint, "HF_TOKEN": TOKEN, "HF_HUB_DISABLE_XET": "1", "HF_HOME": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "out"), *FILES],
        env={**os.environ, **settings, "HF_HUB_DISABLE_TELEMETRY": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout.strip() == f"{hub.endpoint}/{REPO}", done.stderr
    assert hub.commits[0].files == FILES


def test_push_starts_without_torch() -> None:
    code = "import sys, vu_diffusers.push; sys.exit(any(name in sys.modules for name in ('torch', 'huggingface_hub')))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_real_run_is_exported_and_pushed(
    vu: Callable[..., SimpleNamespace], hub: StandIn, plugins: Plugins, tmp_path: Path
) -> None:
    """The toy of the kit, exported by the format ``native``: what arrives is the edit, and its card."""
    from vu_core.adapters import edit_digest, load_edit
    from vu_core.config import Override
    from vu_core.pipeline import execute
    from vu_core.stages.read import read

    values = {
        "model.name": "toy",
        "data.name": "toy",
        "data.forget": ("colour:red",),
        "unlearner.method": "toy-distillation",
        "unlearner.training.steps": 2,
        "run.seed": 3,
        "run.threads": 1,
        "run.out": str(tmp_path / "run"),
        "measure.seeds": 1,
        "measure.samples": 0,
    }
    folder = execute(read(None, [Override(k, v, "test") for k, v in values.items()]), plugins=plugins).folder
    done = vu("push", folder, REPO, "--to", "native")
    assert done.status == 0, done.err
    (pushed,) = hub.commits
    assert sorted(pushed.files) == ["README.md", "edit.safetensors"]
    (tmp_path / "arrived.safetensors").write_bytes(pushed.files["edit.safetensors"])
    arrived = load_edit(tmp_path / "arrived.safetensors")
    assert edit_digest(arrived) == edit_digest(load_edit(folder / "edit.safetensors"))
    card = pushed.files["README.md"].decode()
    assert "# toy without colour:red" in card
    for place in (tmp_path, Path.home(), Path.cwd()):
        assert str(place) not in card


def test_the_command_returns_nouns(hub: StandIn, exported: dict[str, Any], plugins: Plugins) -> None:
    from contextlib import nullcontext

    from vu_diffusers.push import push

    host = SimpleNamespace(plugins=plugins, watching=lambda: nullcontext(lambda event: None))
    tables = push.main(["runs/x", REPO], obj=host, standalone_mode=False)
    assert [type(table) for table in tables] == [Table] * 3
