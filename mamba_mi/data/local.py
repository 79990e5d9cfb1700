"""Chosen rows of a local copy of a published data set: one file, or the folder that `hf download` makes of a repository."""
from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Sequence
from pathlib import Path

from mamba_mi.config import UserError
from mamba_mi.data.formats import READERS
from mamba_mi.data.hub import Found
from mamba_mi.data.reading import fingerprint, no_such_file, read_records, readable

SPLITS = ("train", "validation", "test", "dev")
ROWS_AT_ONCE = 64  # a record of Natural Questions is a whole page: a row group of them would not fit


def read(path: str, *, split: str, config: str | None, choose: Callable[[int], Sequence[int]], key: str = "dataset.path",
         otherwise: str = "") -> Found:
    """The rows that `choose` picks of so many. A folder's files are those of `split`, in the order of their names."""
    files = _files(path, split, config, key, otherwise)
    if all(file.suffix.lower() == ".parquet" for file in files):
        rows, records = _parquet(files, choose, f"{key}={path}")
    else:
        every = [record for file in files for record in read_records(str(file), key, otherwise)]
        rows = choose(len(every))
        records = [every[row] for row in rows]
    return Found(rows, records, _fingerprint(files), {})


def identity(path: str, *, split: str, config: str | None, key: str, otherwise: str = "") -> str:
    """The fingerprint that `read` would give, without reading the records."""
    return _fingerprint(_files(path, split, config, key, otherwise))


def _fingerprint(files: Sequence[Path]) -> str:
    """A single file's own; of several that of their fingerprints, in order."""
    each = [fingerprint(str(file)) for file in files]
    return each[0] if len(each) == 1 else hashlib.sha256("".join(each).encode()).hexdigest()


def _parquet(files: Sequence[Path], choose, asked: str) -> tuple[Sequence[int], list[dict]]:
    import pyarrow as pa
    from pyarrow import dataset

    with readable(files[0], asked):
        try:
            shards = dataset.dataset([str(file) for file in files], format="parquet")
            count = shards.count_rows()
            rows = choose(count)
            records = shards.take(pa.array(rows, pa.int64()), batch_size=ROWS_AT_ONCE, batch_readahead=1, fragment_readahead=1)
            return rows, records.to_pylist() if count else []
        except pa.ArrowException as e:
            raise ValueError(str(e)) from None


def _files(path: str, split: str, config: str | None, key: str, otherwise: str) -> list[Path]:
    folder, asked = Path(path).expanduser(), f"{key}={path}"
    if not folder.exists():
        raise no_such_file(path, key, otherwise)
    if not folder.is_dir():
        return [folder]
    inside = folder / config if config and (folder / config).is_dir() else folder
    found = sorted(file for file in inside.rglob("*") if file.suffix.lower() in READERS and not _hidden(file, inside))
    named = {file: _split(file) for file in found}
    mine = [file for file in found if named[file] == split]
    if not mine and not any(named.values()):
        mine = found
    if not mine:
        there = ", ".join(sorted({name for name in named.values() if name})) or f"no file that ends in {', '.join(READERS)}"
        raise UserError(f"{asked}: no file of split {split}; it has {there}{'; ' * bool(otherwise)}{otherwise}")
    if len({file.suffix.lower() for file in mine}) > 1:
        raise UserError(f"{asked}: split {split} is there in several formats ({', '.join(file.name for file in mine[:4])}); give one file")
    return mine


def _hidden(file: Path, folder: Path) -> bool:
    return any(part.startswith(".") for part in file.relative_to(folder).parts)


def _split(file: Path) -> str | None:
    """`validation` of validation-00000-of-00001.parquet, and of hotpot_dev_distractor.json `dev`; None where the name says none."""
    words = re.split(r"[^a-z]+", f"{file.parent.name}/{file.name}".lower())
    said = [word for word in SPLITS if word in words]
    if not said:
        return None
    return "validation" if said[0] == "dev" else said[0]
