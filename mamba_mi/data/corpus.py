"""Running text to train on: documents out of shards, shuffled, sifted and told apart from those held out.

A corpus holds no text. Its reader goes through it pass after pass; where it stands is a small plain value, so a training
that is killed goes on with the very document it would have read next.
"""
from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import NamedTuple

import torch

from mamba_mi.config import UserError, stream
from mamba_mi.data.reading import Unusable
from mamba_mi.data.shards import Shard, in_order, lines


class Document(NamedTuple):
    """One text and the part of the corpus it is from."""

    text: str
    source: str

    @property
    def key(self) -> str:
        """Names the text: equal texts have one key."""
        return hashlib.sha256(self.text.encode()).hexdigest()[:16]


@dataclass(frozen=True)
class Corpus:
    """Where documents come from and which of them are read.

    `document(line)` makes one, or raises Unusable. `sets` (None: all) names the sources that are read, `weights` how many
    times as often as those it does not name. Documents whose key falls into the share `heldout` are for validation, unless
    that has `validation` shards of its own. `n` bounds the documents of a pass, `buffer` those that are shuffled at once.
    """

    name: str
    seed: int
    document: Callable[[bytes], Document]
    shards: Sequence[Shard]
    validation: Sequence[Shard] = ()
    heldout: float = 0.0
    sets: frozenset[str] | None = None
    weights: Mapping[str, float] = field(default_factory=dict)
    buffer: int = 1000
    n: int | None = None

    def said(self) -> str:
        """What decides which documents are read, and when, but for the files."""
        return (f"heldout {self.heldout}, sets {self.sets and sorted(self.sets)}, "
                f"weights {sorted(self.weights.items())}, buffer {self.buffer}, n {self.n}")

    def reader(self, unread: Iterable[str] = ()) -> Reader:
        """A reader at the beginning of the first pass, which hands over no document of the keys `unread`."""
        return Reader(self, frozenset(unread))

    def held_out(self, n: int | None) -> tuple[list[Document], Counter]:
        """The first n documents (None: all) that training never reads, and how many lines were left out for which reason."""
        shards = self.validation or in_order(self.shards, stream(self.seed, "shards"))
        why = Counter()
        found = list(islice(self._held_out(shards, why), n))
        if not found:
            raise UserError(f"dataset={self.name}: no document to validate on ({reasons(why)}); give dataset.validation=FILE, or a "
                            f"larger share than dataset.heldout={self.heldout}")
        return found, why

    def _held_out(self, shards, why: Counter) -> Iterator[Document]:
        for line in (line for shard in shards for line in lines(shard)):
            found = self.sifted(line, why)
            if found and (self.validation or self.is_held_out(found)):
                yield found

    def is_held_out(self, document: Document) -> bool:
        """Decided by the text alone: a text that is there twice is never on both sides."""
        return not self.validation and int(document.key[:15], 16) < self.heldout * 16**15

    def sifted(self, line: bytes, why: Counter) -> Document | None:
        """The line's document if its set is asked for; otherwise None, counted."""
        if not line.strip():
            return None
        try:
            found = self.document(line)
        except Unusable as reason:
            why[str(reason)] += 1
            return None
        if self.sets is not None and found.source not in self.sets:
            why[f"of {found.source}, which dataset.sets leaves out"] += 1
            return None
        return found

    def chance(self, source: str) -> float:
        """With which a document is read: its weight over the largest."""
        return self.weights.get(source, 1.0) / max(1.0, *self.weights.values()) if self.weights else 1.0


class Reader:
    """Documents without end: `next(reader)`. Every pass goes through the shards in one order and shuffles anew.

    `why` counts the lines that were left out by reason, `read` the documents handed over by source.
    """

    def __init__(self, corpus: Corpus, unread: frozenset[str] = frozenset()):
        self.corpus, self.unread, self.why, self.read = corpus, unread, Counter(), Counter()
        self.passes = -1
        self.again()

    def again(self) -> None:
        """Begin the next pass, at the first shard."""
        self.passes += 1
        self._begin(stream(self.corpus.seed, "pass", self.passes))

    def _begin(self, generator, at: tuple[int, int] = (0, 0)) -> None:
        self._generator, self._buffer, self._taken, self._over = generator, [], 0, False
        self._at, self._lines = at, self._from(*at)  # how many shards are behind, and how many lines of the next one

    def __next__(self) -> Document:
        for _ in range(2):
            self._fill()
            if self._buffer:
                return self._drawn()
            self.again()
        raise UserError(f"dataset={self.corpus.name}: no document to train on ({reasons(self.why)})")

    def _drawn(self) -> Document:
        at = int(torch.randint(len(self._buffer), (), generator=self._generator))
        self._buffer[at], self._buffer[-1] = self._buffer[-1], self._buffer[at]
        found = self._buffer.pop()
        self.read[found.source] += 1
        return found

    def _fill(self) -> None:
        n = self.corpus.n
        while len(self._buffer) < self.corpus.buffer and not self._over and (n is None or self._taken < n):
            self._at, line = next(self._lines, (self._at, None))
            if line is None:
                self._over = True
                return
            self._take(self.corpus.sifted(line, self.why))

    def _take(self, found: Document | None) -> None:
        if found is None:
            return
        chance = self.corpus.chance(found.source)
        if self.corpus.is_held_out(found) or (self.unread and found.key in self.unread):
            self.why["held out for validation"] += 1
        elif chance < 1 and torch.rand((), generator=self._generator).item() >= chance:
            self.why["left out by dataset.weights"] += 1
        else:
            self._buffer.append(found)
            self._taken += 1

    def _from(self, shard: int, line: int) -> Iterator[tuple[tuple[int, int], bytes]]:
        """The lines from there on, each with where it ends."""
        shards = in_order(self.corpus.shards, stream(self.corpus.seed, "shards"))
        for number, each in enumerate(shards[shard:], start=shard):
            first = line if number == shard else 0
            yield from (((number, i), text) for i, text in enumerate(islice(lines(each), first, None), start=first + 1))

    def state(self) -> dict:
        """Where it stands: numbers, text and a tensor."""
        return {"passes": self.passes, "at": list(self._at), "taken": self._taken,
                "generator": self._generator.get_state(), "buffer": [list(each) for each in self._buffer],
                "why": dict(self.why), "read": dict(self.read)}

    def restore(self, state: Mapping) -> None:
        """Stand where `state` was taken; the lines before it are passed over unread."""
        generator = torch.Generator()
        generator.set_state(state["generator"])
        self.passes = state["passes"]
        self._begin(generator, tuple(state["at"]))
        self._buffer = [Document(*each) for each in state["buffer"]]
        self._taken = state["taken"]
        self.why, self.read = Counter(state["why"]), Counter(state["read"])


def reasons(why: Counter) -> str:
    """The commonest reasons in words."""
    return "; ".join(f"{count} times {reason}" for reason, count in why.most_common(4)) or "there are no lines"
