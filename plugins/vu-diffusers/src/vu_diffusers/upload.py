"""Files into a repository of the hub: one commit, and what is said when the hub does not take them."""

from __future__ import annotations

import json
from pathlib import Path
from types import TracebackType
from typing import Any

import attrs

from vu_core import RecordError

REFUSED = {
    401: ("does not accept the token", "Log in with `hf auth login`, or set HF_TOKEN to a token that is valid."),
    403: ("forbids it", "Use a token with write access to the repository, or name a repository of your own."),
    404: ("knows no such owner or repository", "Check the spelling; the owner is you or an organisation of yours."),
    409: ("has another change of the repository in progress", "Wait a moment, and push again."),
    429: ("has had too many requests from you", "Wait some minutes, and push again."),
}
"""What the hub says by the status of its answer, and what to do."""


@attrs.frozen
class Uploaded:
    """Where the files are now.

    Args:
        address: of the repository; commit: of the commit.
    """

    address: str
    commit: str


@attrs.frozen
class Repository:
    """A repository of the hub that is written to.

    Args:
        name: ``owner/name``; revision: the branch; api: the client, with endpoint and token.
    """

    name: str
    revision: str
    api: Any

    @classmethod
    def of(cls, name: str, revision: str = "main") -> Repository:
        """Return a repository for whoever is logged in; nothing is sent.

        Raises:
            RecordError: VU-R129 for what is no ``owner/name``, VU-R126 when nobody is logged in.
        """
        from huggingface_hub import HfApi

        check_name(name)
        return cls(name, revision, HfApi(token=token()))

    def check_login(self) -> None:
        """Ask the hub whether it knows the token, before anything that takes long.

        Raises:
            RecordError: VU-R127 when it does not, VU-R128 when it does not answer.
        """
        from huggingface_hub.errors import HfHubHTTPError

        try:
            with _hub_errors(self.name):
                self.api.whoami()
        except RecordError as error:
            # Other answers, such as that for too many questions, do not say who may write what.
            answer = error.__cause__
            if not isinstance(answer, HfHubHTTPError) or answer.response.status_code == 401:
                raise

    def upload(self, folder: Path, files: tuple[str, ...], message: str, *, private: bool) -> Uploaded:
        """Make the repository and the branch where there are none, and commit the files.

        Args:
            folder: where they lie.
            files: relative to the folder, and in the repository.
            message: of the commit.
            private: make a private repository; `False` leaves it to the settings of the owner.

        Raises:
            RecordError: VU-R127 when the hub refuses, VU-R128 when it does not answer or work.
        """
        from huggingface_hub import CommitOperationAdd

        with _hub_errors(self.name):
            self.api.create_repo(self.name, private=True if private else None, exist_ok=True)
            if private and not self.api.repo_info(self.name).private:
                raise _refused(self.name, "has this repository already, and it is public", "Make it private there.")
            if self.revision != "main":
                self.api.create_branch(self.name, branch=self.revision, exist_ok=True)
            # One commit: `upload_folder` may make several.
            commit = self.api.create_commit(
                self.name,
                [CommitOperationAdd(name, str(folder / name)) for name in files],
                commit_message=message,
                revision=self.revision,
            )
            there = {entry.path for entry in self.api.get_paths_info(self.name, list(files), revision=commit.oid)}
        absent = [name for name in files if name not in there]
        if absent:
            raise _refused(
                self.name, f"did not take {', '.join(absent)}", "Look at the file .gitignore of the repository."
            )
        return Uploaded(f"{self.api.endpoint}/{self.name}", str(commit.commit_url))


def check_name(name: str) -> None:
    """Refuse what cannot be a repository. Raises: RecordError VU-R129."""
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]  # public, says its docstring

    try:
        validate_repo_id(name)
        sound = name.count("/") == 1
    except HFValidationError:
        sound = False
    if not sound:
        raise RecordError(
            "VU-R129",
            f"{name!r} cannot be a repository of the hub.",
            "Write OWNER/NAME in letters, digits, '-', '_' and '.', such as me/sd15-without-neon.",
            where="REPO",
        )


def token() -> str:
    """Return the token of whoever is logged in: HF_TOKEN, or what `hf auth login` has saved.

    Raises:
        RecordError: VU-R126 when there is none.
    """
    from huggingface_hub import get_token

    why = ""
    try:
        found = get_token()
    except Exception as error:  # noqa: BLE001  where a token is looked up, many things can go wrong; all are told
        found, why = None, f": {_first_line(error)}"
    if not found:
        raise RecordError(
            "VU-R126",
            f"Nobody is logged in to the hub{why}.",
            "Log in with `hf auth login`, or set HF_TOKEN to a token with write access. Nothing was sent.",
            where="HF_TOKEN",
        )
    return found


@attrs.frozen
class _hub_errors:
    """Turn what the hub client raises into errors that say what to do."""

    repo: str

    def __enter__(self) -> None:
        return None

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not isinstance(error, Exception) or isinstance(error, RecordError):
            return
        answer = _answer(error)
        status = answer.response.status_code if answer is not None else None
        if status is not None and status < 500:
            said = str(getattr(answer, "server_message", None) or "").strip()
            problem, remedy = REFUSED.get(status, (f"refuses ({status})", "Correct what it says, and push again."))
            raise _refused(self.repo, problem + (f": {_first_line(said)}" if said else ""), remedy) from answer
        if isinstance(error, ValueError) and not isinstance(error, json.JSONDecodeError):
            raise _refused(self.repo, f"refuses: {_first_line(error)}", "Correct it, and push again.") from error
        why = f"it answers with status {status}" if status is not None else _first_line(error)
        raise RecordError(
            "VU-R128",
            f"The hub cannot be reached, or does not work: {why}.",
            "Check the network and HF_ENDPOINT, and push again later; the run is as it was.",
            where=self.repo,
        ) from (answer or error)


def _answer(error: BaseException | None) -> Any:
    """Return the answer of the hub behind an error; the client wraps those of uploads."""
    from huggingface_hub.errors import HfHubHTTPError

    while error is not None and not isinstance(error, HfHubHTTPError):
        error = error.__cause__
    return error


def _refused(repo: str, problem: str, remedy: str) -> RecordError:
    return RecordError("VU-R127", f"The hub {problem}: {repo!r} is not uploaded.", remedy, where=repo)


def _first_line(what: object) -> str:
    text = " ".join(str(what).split())
    return (text or type(what).__name__).rstrip(".")[:300]
