"""``push``: a network to a folder, or to a repository of the Hugging Face Hub."""

from __future__ import annotations

import os
import re
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import nn

from deepres.errors import DeepresError, first_line
from deepres.models.builders import need_library
from deepres.models.hub_folder import HubFolder, save_pretrained
from deepres.models.options import PushOptions

HUB = "https://huggingface.co"


@dataclass(frozen=True)
class Pushed:
    """Result of ``push``."""

    files: HubFolder
    address: str | None = None  # of the repository; None where a folder was written

    def lines(self) -> list[str]:
        """Sentences for the user."""
        if self.address is None:
            return self.files.lines()
        repository = "/".join(self.address.rsplit("/", 2)[-2:])
        return [f"{self.address}: {', '.join(self.files.files)}", f"opened by deepres: hf:{repository}", *self.files.remarks]


def push(
    model: nn.Module | str | Path,
    to: str | Path,
    *,
    weights: str | Path | None = PushOptions.weights,
    license: str | None = PushOptions.license,
    private: bool = PushOptions.private,
    message: str = PushOptions.message,
) -> Pushed:
    """Write a trained network into a folder for the Hub, or upload it to ``hf:OWNER/NAME``, which is made where it does not exist.

    ``model``, ``weights``: as in ``open_model``. ``private``: of a repository that is made here. ``huggingface_hub`` uploads in one
    commit, with the token that it finds (``HF_TOKEN``, or ``hf auth login``), to ``HF_ENDPOINT``.

    Raises ``DeepresError`` as ``save_pretrained`` does, and where the Hub cannot be reached or refuses.
    """
    if not str(to).startswith("hf:"):
        if private or message != PushOptions.message:
            raise DeepresError(
                f"{to}: is a folder, which has no use for --private and --message; give hf:OWNER/NAME to upload, or leave them out"
            )
        return Pushed(save_pretrained(model, to, weights=weights, license=license))
    repository = str(to).removeprefix("hf:")
    if not re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", repository):
        raise DeepresError(f"{to}: is not hf:OWNER/NAME, a repository of the Hugging Face Hub")
    hub = need_library("huggingface_hub", "hub")
    name = repository.split("/")[1]
    with tempfile.TemporaryDirectory() as temporary:
        written = save_pretrained(model, Path(temporary) / name, weights=weights, name=name, license=license)
        address = _upload(hub, repository, written.folder, private, message)
    return Pushed(replace(written, folder=Path(name)), address)


def _upload(hub: Any, repository: str, folder: Path, private: bool, message: str) -> str:
    """The address of the repository that now holds the files of ``folder``."""
    endpoint = os.environ.get("HF_ENDPOINT", HUB)
    api = hub.HfApi(endpoint=endpoint, library_name="deepres")
    quiet = hub.utils.are_progress_bars_disabled()
    try:
        made = api.create_repo(repository, private=private, exist_ok=True)
        if not os.isatty(2):
            hub.utils.disable_progress_bars()
        api.upload_folder(repo_id=made.repo_id, folder_path=folder, commit_message=message)
    except Exception as error:  # of httpx, sockets and the Hub: a dozen kinds
        status = getattr(getattr(error, "response", None), "status_code", None)
        advice = (
            "give a token with the right to write, in HF_TOKEN or by `hf auth login`" if status in (401, 403) else "try again"
        )
        raise DeepresError(
            f"hf:{repository}: could not be uploaded to {endpoint} ({first_line(error, 160)}); {advice}, or write a folder with --to FOLDER"
        ) from error
    finally:
        if not quiet:
            hub.utils.enable_progress_bars()
    return f"{endpoint}/{made.repo_id}"
