"""Words that are one token of a tokenizer, as they stand inside a text: what toy tasks and name games are made of."""
from __future__ import annotations

import re
from collections.abc import Sequence

from mamba_mi.config import UserError
from mamba_mi.data.encoding import PLAIN, encode
from mamba_mi.data.pairing import shuffled

_MARKS = ("Ġ", "▁")  # how byte-level and sentencepiece vocabularies write the space before a word
_WORD = re.compile(r"[a-z]{3,9}")
BATCH = 256


def single(words: Sequence[str], tokenizer) -> list[str]:
    """Those of the words that are one known token after a space; of two with one token the first."""
    encode([], tokenizer)  # refuses a tokenizer that cannot say what it did
    if not words:
        return []
    found: dict[int, str] = {}
    for word, ids in zip(words, tokenizer([f" {word}" for word in words], **PLAIN)["input_ids"], strict=True):
        if len(ids) == 1 and ids[0] != tokenizer.unk_token_id:
            found.setdefault(ids[0], word)
    return list(found.values())


def drawn(least: int, most: int, tokenizer, seed: int, what: str) -> list[str]:
    """Words of lower-case letters from the tokenizer's own vocabulary, drawn from the seed: `most`, or all if not under `least`."""
    encode([], tokenizer)
    vocabulary = tokenizer.get_vocab()
    marked = [token[1:] for token in vocabulary if token[:1] in _MARKS]
    known = set(marked or vocabulary)  # without such a mark: one token a word
    order = shuffled(sorted(word for word in known if _WORD.fullmatch(word)), seed, "words", what)
    found: list[str] = []
    for lo in range(0, len(order), BATCH):
        if len(found) < most:
            found += single(order[lo:lo + BATCH], tokenizer)
    return enough(found, least, tokenizer, what, ", or a smaller dataset.length or dataset.pairs")[:most]


def enough(words: Sequence[str], n: int, tokenizer, what: str, instead: str = "") -> list[str]:
    """The words, or a UserError where there are fewer than n."""
    if len(words) < n:
        raise UserError(f"{what} needs {n} different words that are single tokens, and the model's tokenizer "
                        f"({len(tokenizer):,} tokens) has {len(words)}; give a model with a larger vocabulary{instead}")
    return list(words)
