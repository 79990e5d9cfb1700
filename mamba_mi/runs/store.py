"""A run's folder: one writer, whole files only, and parts that survive whatever ends the process.

The lock is the kernel's: it goes when the process does, however that ends, so a killed run leaves no mess.
"""
from __future__ import annotations

import fcntl
import os
import re
import shutil
import socket
from datetime import UTC, datetime
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from ..config import UserError
from ..measure.effects import SCHEMA_VERSION, in_order
from . import files

OWN = ("config.yaml", "manifest.json", "prompts.json", "effects.parquet", "summary.json", "report.html",
       "figures", "artifacts", "wandb", "parts", "scratch")


class Store:
    """An open run folder. `with Store(folder) as store:`; a second writer of the folder gets a UserError."""

    def __init__(self, folder: Path | str):
        self.folder = Path(folder)
        with files.in_words(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
            self._lock = _lock(self.folder / ".lock")
            for torn in self.folder.rglob(f".*{files.PARTIAL}"):
                torn.unlink()

    def __enter__(self) -> Store:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the folder: another process may open it."""
        os.close(self._lock)

    @property
    def scratch(self) -> Path:
        """Where a fit keeps what it resumes from; gone after `tidy`."""
        return self.subfolder("scratch")

    def subfolder(self, name: str) -> Path:
        """A folder of the run (figures, artifacts), made on first use."""
        path = self.folder / name
        with files.in_words(path):
            path.mkdir(parents=True, exist_ok=True)
        return path

    @property
    def begun(self) -> bool:
        """Whether there is anything of an earlier start to go on from, or to contradict."""
        return any((self.folder / name).exists() for name in ("parts", "scratch", "effects.parquet"))

    def kept(self) -> set[str]:
        """The keys of the parts that are already there."""
        return kept(self.folder)

    def keep(self, key: str, table: pa.Table) -> None:
        """Keep the effects of one batch, for good: once this returns, they survive even a power cut."""
        keep(self.folder, key, table)

    def join(self) -> pa.Table:
        """The effects of all parts, in their one order, whatever order they were made in."""
        parts = [_read(self.folder / "parts" / f"{key}.parquet") for key in sorted(kept(self.folder))]
        if not parts:
            raise LookupError(f"{self.folder} has kept no effects to join")
        return in_order(pa.concat_tables(parts, promote_options="default"))

    def write_effects(self, table: pa.Table) -> None:
        """effects.parquet: equal effects give equal bytes."""
        stamp = {"mamba_mi.schema_version": str(SCHEMA_VERSION)}
        self.write_bytes("effects.parquet", parquet_bytes(in_order(table).replace_schema_metadata(stamp)))

    def write_json(self, name: str, obj: object) -> None:
        """A value as JSON every reader takes: NaN and infinity as null, arrays as lists, paths as text."""
        files.write_json(self.folder / name, obj)

    def write_artefact(self, name: str, value: object) -> None:
        """artifacts/<name>.safetensors for a mapping of tensors, .parquet for a table, .json for anything else; a name that
        ends in .csv is a text's own."""
        if isinstance(value, str) and name.endswith(".csv"):
            return self.write_text(f"artifacts/{name}", value)
        if isinstance(value, pa.Table):
            return self.write_bytes(f"artifacts/{name}.parquet", parquet_bytes(value))
        tensors = isinstance(value, dict) and value and all(hasattr(x, "storage") for x in value.values())
        if not tensors:
            return self.write_json(f"artifacts/{name}.json", value)
        from safetensors.torch import save

        # transformers reads no file that does not say whose tensors these are
        return self.write_bytes(f"artifacts/{name}.safetensors", save(value, metadata={"format": "pt"}))

    def write_text(self, name: str, text: str) -> None:
        """A text file of the run, in UTF-8."""
        self.write_bytes(name, text.encode())

    def write_bytes(self, name: str, data: bytes) -> None:
        """A file of the run: there whole or not at all."""
        files.write_bytes(self.folder / name, data)

    def clear(self) -> None:
        """Remove what runs write here (OWN), for force=true; the lock and the user's own files stay."""
        self._remove(OWN)

    def tidy(self) -> None:
        """Remove what only an unfinished run needs. To be called after the manifest says done."""
        self._remove(("parts", "scratch"))

    def _remove(self, names: tuple[str, ...]) -> None:
        for path in (self.folder / name for name in names):
            with files.in_words(path):
                if path.is_dir() and not path.is_symlink():
                    shutil.rmtree(path)
                else:
                    path.unlink(missing_ok=True)


def kept(folder: Path) -> set[str]:
    """The keys of the parts in a run's folder."""
    return {path.stem for path in (folder / "parts").glob("[!.]*.parquet")}


def keep(folder: Path, key: str, table: pa.Table) -> None:
    """`Store.keep` for a process that shares in a run whose folder another one has open."""
    if not re.fullmatch(r"[A-Za-z0-9_-][A-Za-z0-9._-]*", key):
        raise ValueError(f"a part's key names its file: letters, digits, '.', '_' and '-', not {key!r}")
    files.write_bytes(folder / f"parts/{key}.parquet", parquet_bytes(table))


def _lock(path: Path) -> int:
    lock = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        holder = os.read(lock, 200).decode(errors="replace").strip() or "another process"
        os.close(lock)
        raise UserError(f"{path.parent} is being written by {holder}: wait until it ends, or stop it and "
                        "start again (what it kept stays kept)") from None
    except OSError:
        os.close(lock)
        raise
    since = datetime.now(UTC).isoformat(timespec="seconds")
    os.ftruncate(lock, 0)
    os.write(lock, f"process {os.getpid()} on {socket.gethostname()}, since {since}\n".encode())
    return lock


def parquet_bytes(table: pa.Table) -> bytes:
    """The table as a parquet file: equal tables give equal bytes."""
    # every setting that shapes the bytes is fixed here, not left to the library's next version
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, version="2.6", data_page_version="1.0", data_page_size=1 << 20,
                   row_group_size=1 << 20, compression="zstd", compression_level=3, use_dictionary=True,
                   write_statistics=True)
    return sink.getvalue().to_pybytes()


def _read(path: Path) -> pa.Table:
    try:
        with pq.ParquetFile(path) as file:
            return file.read()
    except (pa.ArrowException, OSError) as e:
        said = str(e).splitlines()[0]
        raise UserError(f"{path} cannot be read ({said}): remove it, and the same command makes that part "
                        "again") from None
