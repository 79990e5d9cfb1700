"""The files a corpus lies in: found in a folder, by a pattern or on the hub, and read line by line, never held whole."""
from __future__ import annotations

import glob
import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import BinaryIO, NamedTuple

from mamba_mi.config import UserError, did_you_mean

SUFFIXES = (".jsonl", ".jsonl.zst")
BLOCK = 1 << 16  # bytes read at once
EDGE = 1 << 20  # bytes at either end of a file that its fingerprint is taken of


class Shard(NamedTuple):
    """One file: its name, its bytes, how it is opened, and what tells it from another."""

    name: str
    size: int
    open: Callable[[], BinaryIO]
    mark: str


def local(path: str, key: str) -> list[Shard]:
    """The shards that a file, a folder (with what is below it) or a pattern names, in the order of their names."""
    asked, place = f"{key}={path}", Path(path).expanduser()
    if place.is_dir():
        files = [file for file in place.rglob("*") if file.name.endswith(SUFFIXES)]
    elif place.exists():
        files = [place]
    else:
        files = [Path(name) for name in glob.glob(str(place), recursive=True)]
    if not files:
        beside = [file.name for file in place.parent.glob("*")] if place.parent.is_dir() else []
        raise UserError(f"{asked}: no {' or '.join(SUFFIXES)} file there{did_you_mean(place.name, beside)}; give a file, a folder "
                        "or a pattern in quotes, such as 'DIR/*.jsonl.zst'")
    if other := sorted(str(file) for file in files if not file.name.endswith(SUFFIXES)):
        raise UserError(f"{asked}: cannot read {other[0]}; give files that end in {' or '.join(SUFFIXES)}")
    return [_local(file) for file in sorted(files)]


def _local(file: Path) -> Shard:
    try:
        size = file.stat().st_size
        with file.open("rb") as f:
            digest = hashlib.sha256(f.read(EDGE))
            f.seek(max(0, size - EDGE))
            digest.update(f.read(EDGE))
    except OSError as e:
        raise UserError(f"{file} cannot be read: {e.strerror or e}") from None
    return Shard(str(file), size, partial(file.open, "rb"), digest.hexdigest())


def same(some: Iterable[Shard], others: Iterable[Shard]) -> list[str]:
    """The names of those that are files of both, by whatever path."""
    there = {Path(shard.name).resolve() for shard in others}
    return sorted(shard.name for shard in some if Path(shard.name).resolve() in there)


def hub(repo: str, revision: str | None) -> tuple[list[Shard], list[Shard]]:
    """The training and the validation shards of a data set on the hub, at the commit that `revision` is now.

    They are read as they come over the network: what `train/` holds (without it, all that is not named after validation
    or test), and what is named after validation. A file is named by its folders, too.
    """
    from huggingface_hub import HfApi, HfFileSystem

    how = (f"where there is a network, `hf download {repo} --repo-type dataset --include 'train/00*' --local-dir DIR`, then "
           "dataset.path=DIR")
    try:
        info = HfApi().dataset_info(repo, revision=revision, files_metadata=True)
    except Exception as e:  # its errors share no class
        raise UserError(f"dataset.hub={repo}: not to be had ({type(e).__name__}) and dataset.path is not set; {how}") from None
    files = HfFileSystem()
    found = [Shard(each.rfilename, each.size or 0, partial(files.open, f"datasets/{repo}@{info.sha}/{each.rfilename}", "rb"),
                   info.sha) for each in info.siblings if each.rfilename.endswith(SUFFIXES)]
    validation = [shard for shard in found if _named(shard, "val")]
    rest = [shard for shard in found if not _named(shard, "val", "test")]
    train = [shard for shard in rest if shard.name.startswith("train/")] or rest
    if not train:
        raise UserError(f"dataset.hub={repo}: holds no {' or '.join(SUFFIXES)} file to train on")
    return train, validation


def _named(shard: Shard, *beginnings: str) -> bool:
    return any(part.startswith(beginnings) for part in Path(shard.name).parts)


def fingerprint(shards: Iterable[Shard]) -> str:
    """sha256 of every shard's name, size and mark: of a local file its first and last MiB, on the hub the commit."""
    said = (f"{Path(shard.name).name}\0{shard.size}\0{shard.mark}\n" for shard in shards)
    return hashlib.sha256("".join(said).encode()).hexdigest()


def lines(shard: Shard) -> Iterator[bytes]:
    """Its lines, without their ends."""
    tail = b""
    try:
        with shard.open() as file:
            raw = iter(partial(file.read, BLOCK), b"")
            for block in _decompressed(raw, shard.name) if shard.name.endswith(".zst") else raw:
                *whole, tail = (tail + block).split(b"\n")
                yield from whole
    except UserError:
        raise
    except Exception as e:  # a disk's and a network's errors share no class
        raise UserError(f"{shard.name}: reading broke off ({type(e).__name__}: {e}); the same command goes on from the last "
                        "checkpoint") from None
    if tail:
        yield tail


def _decompressed(blocks: Iterator[bytes], name: str) -> Iterator[bytes]:
    """All frames of a zstandard file. `decompress` would give the first alone, and a stream reader a cut-off one in silence."""
    import zstandard

    reader = zstandard.ZstdDecompressor(max_window_size=2**31)  # what `zstd --long=31` may ask for
    frame, begun = reader.decompressobj(), False
    try:
        for block in blocks:
            while block:
                begun = True
                yield frame.decompress(block)
                if not frame.eof:
                    break
                block = frame.unused_data
                frame, begun = reader.decompressobj(), False
    except zstandard.ZstdError as e:
        raise UserError(f"{name}: not a whole zstandard file ({e}); download it again") from None
    if begun:
        raise UserError(f"{name}: ends within a frame, so it is cut off; download it again")


def in_order(shards: Sequence[Shard], generator) -> list[Shard]:
    """The shards in a drawn order."""
    import torch

    return [shards[i] for i in torch.randperm(len(shards), generator=generator).tolist()]
