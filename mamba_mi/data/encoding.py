"""Texts to tokens: prompts with the characters each token came from, targets as they follow their prompt."""
from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from mamba_mi.config import UserError
from mamba_mi.data.prompt import Prompt
from mamba_mi.data.reading import Unusable

OPENING = "([{<\"'`“‘«¿¡-–—/_$#@"
PLAIN = {"add_special_tokens": False, "return_attention_mask": False, "return_token_type_ids": False}
DOCUMENT_MARK = "<|endoftext|>"
MARKS = ("<bos>", DOCUMENT_MARK)  # of tokenizers that name no BOS: the world of facts', and between documents


class Encoded(NamedTuple):
    """A text's tokens. `offsets` are half-open character ranges; tokens of one character share theirs."""

    ids: tuple[int, ...]
    offsets: tuple[tuple[int, int], ...]


def encode(texts: Sequence[str], tokenizer) -> list[Encoded]:
    """Each text's tokens, without any special token."""
    if tokenizer is None:
        raise UserError("this data set is text and the model came without a tokenizer; give "
                        "model.tokenizer=FILE (a tokenizer.json) or a hub id such as EleutherAI/gpt-neox-20b")
    if not getattr(tokenizer, "is_fast", False):
        raise UserError(f"{type(tokenizer).__name__} cannot say which characters a token came from; give the "
                        "tokenizer as model.tokenizer=FILE, a tokenizer.json")
    if not texts:
        return []
    out = tokenizer(list(texts), return_offsets_mapping=True, **PLAIN)
    return [Encoded(tuple(ids), tuple(offsets))
            for ids, offsets in zip(out["input_ids"], out["offset_mapping"], strict=True)]


def following(text: str, target: str) -> str:
    """The target with the space that a word needs after this text, where neither brings one.

    Models continue "… is in" with " Paris", a different token from "Paris". No space is added to a target
    that begins with anything but a letter or a digit, nor after white space, an opening bracket or quote, a
    dash or a slash.
    """
    if not target[:1].isalnum() or text[-1:].isspace() or text[-1:] in OPENING:
        return target
    return " " + target


def encode_targets(texts: Sequence[str], encoded: Sequence[Encoded], targets: Sequence[str],
                   tokenizer) -> list[tuple[int, ...]]:
    """Each target's tokens as they follow its text.

    Text and target are tokenised together. Where the text's own tokens are not how that begins (the border
    was merged over, as after a trailing space), no continuation of the prompt is those tokens, and the
    target is tokenised alone.
    """
    joint = _ids([text + target for text, target in zip(texts, targets, strict=True)], tokenizer)
    ids = [whole[len(text.ids):] if whole[:len(text.ids)] == text.ids else ()
           for whole, text in zip(joint, encoded, strict=True)]
    alone = [i for i, tokens in enumerate(ids) if not tokens]
    for i, target in zip(alone, _ids([targets[i] for i in alone], tokenizer), strict=True):
        ids[i] = target
    return ids


def _ids(texts: list[str], tokenizer) -> list[tuple[int, ...]]:
    return [tuple(ids) for ids in tokenizer(texts, **PLAIN)["input_ids"]] if texts else []


def bos_ids(tokenizer, bos: bool) -> tuple[int, ...]:
    """What to put before every prompt: nothing, or the BOS, or without one the first of MARKS in the vocabulary.

    The state-spaces models were trained with `<|endoftext|>` between documents, the embedded ones with `<bos>`;
    a bare tokenizer.json names no BOS.
    """
    if not bos:
        return ()
    if tokenizer.bos_token_id is not None:
        return (tokenizer.bos_token_id,)
    known = tokenizer.get_vocab()
    for mark in MARKS:
        if mark in known:
            return (known[mark],)
    raise UserError(f"dataset.bos=true: the tokenizer names no BOS token and has no {' or '.join(MARKS)}; "
                    "use dataset.bos=false")


def check_known(ids: Sequence[int], tokenizer, what: str) -> None:
    """Unusable where there is no token, or one that stands for text outside the tokenizer's vocabulary."""
    unknown = tokenizer.unk_token_id
    if not ids:
        raise Unusable(f"{what} has no tokens")
    if unknown in ids and unknown not in (tokenizer.bos_token_id, tokenizer.eos_token_id):
        raise Unusable(f"{what} holds words outside the tokenizer's vocabulary")


def prompt(prompt_id: str, text: str, ids: Sequence[int], target: str, target_ids: Sequence[int],
           spans: dict[str, tuple[int, int]], *, bos: Sequence[int], cluster: str, template: str,
           wrong_id: int | None = None, source: Mapping | None = None) -> Prompt:
    """The Prompt, its spans moved behind `bos`."""
    moved = {name: (start + len(bos), end + len(bos)) for name, (start, end) in spans.items()}
    if bos:
        moved = {"bos": (0, len(bos)), **moved}
    return Prompt(prompt_id, text, (*bos, *ids), target, target_ids[0], moved, tuple(target_ids),
                  cluster=cluster, template=template, wrong_id=None if wrong_id == target_ids[0] else wrong_id,
                  source=source or {})
