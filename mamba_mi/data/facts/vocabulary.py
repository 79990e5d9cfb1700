"""The world's vocabulary and its tokenizer: one token a word, except surnames, which are two pieces."""
from __future__ import annotations

from functools import lru_cache
from itertools import chain

from mamba_mi.data.facts.words import BOX, FEELING, LISTS, SEEING, TAIL, TEMPLATES

PAD, UNKNOWN, BOS, PAIRS, REPEAT, STOP = "<pad>", "<unk>", "<bos>", "<kv>", "<rep>", "."
SPECIAL = (PAD, UNKNOWN, BOS, PAIRS, REPEAT)
PIECE = "##"  # begins a piece that goes on with a word


@lru_cache(maxsize=1)
def vocabulary() -> dict[str, int]:
    """Every token and its id."""
    sentences = (BOX, FEELING, SEEING, *chain.from_iterable(TEMPLATES.values()))
    said = sorted({word for sentence in sentences for word in sentence.split() if "{" not in word})
    tails = [PIECE + tail for tail in TAIL]
    return {word: i for i, word in enumerate(dict.fromkeys((*SPECIAL, STOP, *said, *chain(*LISTS), *tails)))}


def tokenizer():
    """A transformers tokenizer of the vocabulary: splits at white space, adds nothing; "Voldorf" is Vol ##dorf.

    A word the world does not have becomes `<unk>`, which is its `unk_token_id`.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    model = models.WordPiece(vocabulary(), unk_token=UNKNOWN, continuing_subword_prefix=PIECE)
    engine = Tokenizer(model)
    engine.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    engine.decoder = decoders.WordPiece(prefix=PIECE, cleanup=False)
    engine.add_special_tokens(list(SPECIAL))
    return PreTrainedTokenizerFast(tokenizer_object=engine, pad_token=PAD, unk_token=UNKNOWN, bos_token=BOS,
                                   model_input_names=["input_ids", "attention_mask"])


def pieces(name: str) -> list[str]:
    """The tokens of a name: a surname is cut where its second piece begins."""
    return [piece for word in name.split() for piece in _cut(word)]


def _cut(word: str) -> list[str]:
    if word in vocabulary():
        return [word]
    tail = next(tail for tail in TAIL if word.endswith(tail))
    return [word.removesuffix(tail), PIECE + tail]
