"""Records of the Hugging Face hub's data sets: a split as a whole, or its beginning as a stream; the commit is kept.

A data set whose loading is a script is refused by `datasets` 4 and later: the ids in conf/dataset/ are those of parquet.
"""
from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import NamedTuple

from mamba_mi.config import UserError
from mamba_mi.models.hub import answering

OFFLINE = "HF_HUB_OFFLINE"


class Found(NamedTuple):
    """Records and where each stood; a sha256 of the source's bytes, or of the records where the hub sent them; their origin."""

    rows: Sequence[int]
    records: list[dict]
    fingerprint: str
    origin: dict[str, str | None]


def whole(hub: str, *, split: str, config: str | None = None, revision: str | None = None, key: str = "dataset",
          choose: Callable[[int], Sequence[int]] = range) -> Found:
    """The rows that `choose` picks of so many, of a split that is downloaded once and kept in the hub's cache."""
    with _in_words(hub, config, revision, key):
        builder = _builder(hub, config, revision)
        builder.download_and_prepare(download_config=_once())
        table = builder.as_dataset(split=split)
        rows = choose(len(table))
        return _found(rows, table.select(rows).to_list(), builder, hub, config, split)


def beginning(hub: str, count: int | None, *, split: str, config: str | None = None, revision: str | None = None,
              key: str = "dataset") -> Found:
    """The first `count` records (None: all), read from the hub without downloading the rest."""
    with _in_words(hub, config, revision, key):
        builder = _builder(hub, config, revision)
        records = list(islice(builder.as_streaming_dataset(split=split), count))
        return _found(range(len(records)), records, builder, hub, config, split)


def download(hub: str, config: str | None, key: str = "dataset", revision: str | None = None) -> str:
    """How to do without the hub, as the end of a sentence: of the configuration's files alone, which lie in a folder of its name."""
    alone = f" --include '{config}/*'" if config else ""
    pinned = f" --revision {revision}" if revision else ""
    return f"download it with `hf download {hub} --repo-type dataset{alone}{pinned} --local-dir FOLDER` and give {_path_key(key)}=FOLDER, or a file in it"


def _path_key(key: str) -> str:
    return f"{key}.path" if key == "dataset" else key


def _builder(hub: str, config: str | None, revision: str | None):
    from datasets import load_dataset_builder

    return load_dataset_builder(hub, config, revision=revision, download_config=_once())


def _once():
    from datasets import DownloadConfig

    return DownloadConfig(max_retries=0)


def _found(rows, records, builder, hub, config, split) -> Found:
    said = json.dumps(records, sort_keys=True, default=str).encode()
    origin = {"hub": hub, "config": config, "split": split, "commit": commit(builder)}
    return Found(rows, records, hashlib.sha256(said).hexdigest(), origin)


def commit(builder) -> str | None:
    """The commit whose files a builder reads: they are named by it, and so is its cache. None for a folder of one's own."""
    files = [str(file) for group in (builder.config.data_files or {}).values() for file in group]
    names = [match[1] for file in files if (match := re.search(r"@([0-9a-f]{40})/", file))]
    return names[0] if names else builder.hash if re.fullmatch(r"[0-9a-f]{40}", builder.hash or "") else None


@contextmanager
def _in_words(hub: str, config: str | None, revision: str | None, key: str) -> Iterator[None]:
    asked, how = f"dataset.hub={hub}" if key == "dataset" else hub, download(hub, config, key, revision)
    try:
        import datasets  # noqa: F401 - the name alone, as its parts may be there without it
        from datasets.exceptions import DatasetsError
        from huggingface_hub import HfApi
    except ImportError:
        raise UserError(f"{asked} needs `pip install datasets`; or {how}") from None
    silent = None
    try:
        with answering(lambda: Path(hub).is_dir() or HfApi().dataset_info(hub)) as silent:
            yield
    except (OSError, ValueError, DatasetsError) as e:  # ConnectionError, FileNotFoundError and the hub's own are OSErrors
        e = silent or e
        said = f"{type(e).__name__}: {(str(e).splitlines() or [''])[0][:200]}"
        offline = f"{OFFLINE}={os.environ[OFFLINE]} keeps it from the network; " if os.environ.get(OFFLINE) else ""
        raise UserError(f"{asked}: not to be had ({said}) and {_path_key(key)} is not set; {offline}"
                        f"where there is a network, {how}") from None
