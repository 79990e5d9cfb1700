"""Checkpoints from the hub: the config first, then one format of the weights, safetensors before torch's."""
from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from mamba_mi.config import UserError
from mamba_mi.models.checkpoints import read_config
from mamba_mi.models.variants import Meant
from mamba_mi.models.weights import FLAT, INDEX, WEIGHTS, Unsaid, lead, some

SMALL = ("config.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json")


def download(repo: str, meant: Meant | None = None) -> Path:
    """The folder of `repo` (org/name) in the hub's cache, fetched where it is not there; what cannot be, or is none that is
    `meant`, raises."""
    from huggingface_hub import HfApi

    hub = HfApi()
    try:
        # not list_repo_files, which tries for 23 s before it admits that there is no network
        held = [file.rfilename for file in hub.model_info(repo).siblings or ()]
    except Exception as e:  # the hub's errors share no base class with the network's
        return _cached(repo, e)
    weights = _weights(repo, held)
    try:
        if "config.json" in held:
            folder = Path(hub.snapshot_download(repo, allow_patterns=[name for name in held if name in SMALL]))
            with suppress(Unsaid):  # a layout that is known, whose sizes are read off the tensors
                read_config(folder, meant=meant)  # before gigabytes of a model that is none of ours
        folder = Path(hub.snapshot_download(repo, allow_patterns=[*SMALL, *weights]))
    except UserError:
        raise
    except Exception as e:
        raise _refusal(repo, e) from None
    return folder


@contextmanager
def answering(ask: Callable[[], object]) -> Iterator[Exception | None]:
    """The hub as it is if it answers `ask()`; else its cache alone, as if offline, and why.

    Libraries that fetch for themselves try again for half a minute, and tell of every time.
    """
    from huggingface_hub import constants

    cause, was = None, constants.HF_HUB_OFFLINE
    try:
        ask()
    except Exception as e:  # as above
        cause = e
    constants.HF_HUB_OFFLINE = was or cause is not None
    try:
        yield cause
    finally:
        constants.HF_HUB_OFFLINE = was


def _weights(repo: str, held: Sequence[str]) -> list[str]:
    """The files to fetch of those the repo holds: one format, all of its shards."""
    first = lead(held, repo)
    if not _is_checkpoint(first, held):
        raise UserError(f"{repo}: this hub repo is no checkpoint: it needs config.json and one of {', '.join(WEIGHTS)}, or one "
                        f"*{FLAT}, and holds {some(sorted(held), most=8)}")
    if not first.endswith(INDEX):
        return [first]
    stem, suffix = first.removesuffix(INDEX).rsplit(".", 1)
    return [first, *(name for name in held if name.startswith(f"{stem}-") and name.endswith(f".{suffix}"))]


def _is_checkpoint(weights: str, held: Sequence[str]) -> bool:
    return bool(weights) and ("config.json" in held or weights.endswith(FLAT))


def _cached(repo: str, cause: Exception) -> Path:
    """What an earlier call fetched, where the hub cannot be asked; a refusal by the hub itself stands."""
    from huggingface_hub import constants
    from huggingface_hub.errors import HFValidationError, RepositoryNotFoundError

    if isinstance(cause, RepositoryNotFoundError | HFValidationError):
        raise _refusal(repo, cause) from None
    held = Path(constants.HF_HUB_CACHE) / f"models--{repo.replace('/', '--')}"
    main = held / "refs" / "main"
    folder = held / "snapshots" / main.read_text(encoding="utf-8").strip() if main.is_file() else held
    files = sorted(path.name for path in folder.glob("*"))
    if not _is_checkpoint(lead(files, str(folder)), files):
        raise _refusal(repo, cause) from None
    return folder


def _refusal(repo: str, e: Exception) -> UserError:
    from huggingface_hub.errors import (
        GatedRepoError,
        HFValidationError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
    )

    elsewhere = f"`hf download {repo} --local-dir DIR` where there is a network, then model.path=DIR"
    if isinstance(e, OfflineModeIsEnabled):
        return UserError(f"{repo}: not in the hub's cache, and HF_HUB_OFFLINE forbids to fetch it; unset it, or {elsewhere}")
    if isinstance(e, GatedRepoError):
        return UserError(f"{repo}: gated, the hub wants its terms accepted on the model's page and `hf auth login`; or "
                         f"`hf download {repo} --local-dir DIR` by who has access, then model.path=DIR")
    if isinstance(e, HFValidationError):
        return UserError(f"{repo}: not a hub id, which is org/name")
    if isinstance(e, RepositoryNotFoundError):
        return UserError(f"{repo}: the hub has no such repo, or it is private (`hf auth login`); the weights of a folder "
                         f"are given as model.path=DIR (`hf download ORG/NAME --local-dir DIR` fetches one)")
    return UserError(f"{repo}: not to be had from the hub ({type(e).__name__}); {elsewhere}")
