"""A small corpus in the Pile's shape: documents about nothing, in zstandard files of several frames."""
import json
from pathlib import Path

import zstandard

WORDS = "the state of a river is what it has read so far and each bank keeps some of it".split()


def records(n: int, sets=("Pile-CC", "Github")) -> list[dict]:
    """Documents that all differ, their sets in turn."""
    return [{"text": " ".join(WORDS[(i * 7 + j * (1 + i % 5)) % len(WORDS)] for j in range(12 + i % 9)) + f" {i}",
             "meta": {"pile_set_name": sets[i % len(sets)]}} for i in range(n)]


def write(path: Path, documents, frames: int = 3) -> Path:
    """A .jsonl.zst of that many frames, or a .jsonl; what is no dict is written as it is."""
    lines = [line if isinstance(line, bytes) else json.dumps(line).encode() for line in documents]
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix != ".zst":
        path.write_bytes(b"\n".join(lines) + b"\n")
        return path
    size, pack = -(-len(lines) // frames), zstandard.ZstdCompressor().compress
    path.write_bytes(b"".join(pack(b"".join(line + b"\n" for line in lines[i:i + size])) for i in range(0, len(lines), size)))
    return path
