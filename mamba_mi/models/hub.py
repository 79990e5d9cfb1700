"""Checkpoints from the hub: the config first, then one format of the weights, safetensors before torch's."""
from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from mamba_mi.config import UserError
from mamba_mi.models.checkpoints import read_config
from mamba_mi.models.weights import INDEX, WEIGHTS, some

SMALL = ("config.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json")


def download(repo: str) -> Path:
    """The folder of `repo` (org/name) in the hub's cache, fetched where it is not there; what cannot be raises."""
    from huggingface_hub import HfApi

    hub = HfApi()
    try:
        # not list_repo_files, which tries for 23 s before it admits that there is no network
        held = [file.rfilename for file in hub.model_info(repo).siblings or ()]
    except Exception as e:  # the hub's errors share no base class with the network's
        return _cached(repo, e)
    weights = _weights(repo, held)
    try:
        folder = Path(hub.snapshot_download(repo, allow_patterns=[name for name in held if name in SMALL]))
        read_config(folder)  # before gigabytes of a model that is none of ours
        hub.snapshot_download(repo, allow_patterns=[*SMALL, *weights])
    except UserError:
        raise
    except Exception as e:
        raise _refusal(repo, e) from None
    return folder


def _weights(repo: str, held: Sequence[str]) -> list[str]:
    """The files to fetch of those the repo holds: one format, all of its shards."""
    lead = next((name for name in WEIGHTS if name in held), None)
    if lead is None or "config.json" not in held:
        raise UserError(f"{repo}: this hub repo is no checkpoint: it needs config.json and one of {', '.join(WEIGHTS)}, "
                        f"and holds {some(sorted(held), most=8)}")
    if not lead.endswith(INDEX):
        return [lead]
    stem, suffix = lead.removesuffix(INDEX).rsplit(".", 1)
    return [lead, *(name for name in held if name.startswith(f"{stem}-") and name.endswith(f".{suffix}"))]


def _cached(repo: str, cause: Exception) -> Path:
    """What an earlier call fetched, where the hub cannot be asked; a refusal by the hub itself stands."""
    from huggingface_hub import constants, try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError, RepositoryNotFoundError

    if isinstance(cause, RepositoryNotFoundError | HFValidationError):
        raise _refusal(repo, cause) from None
    config = try_to_load_from_cache(repo, "config.json", cache_dir=constants.HF_HUB_CACHE)
    if not isinstance(config, str) or not any((Path(config).parent / name).is_file() for name in WEIGHTS):
        raise _refusal(repo, cause) from None
    return Path(config).parent


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
