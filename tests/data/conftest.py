"""A small byte-level tokenizer, trained here, and what a prompt's tokens are when counted in bytes."""
from pathlib import Path

import pytest

CORPUS = [
    "The mother tongue of Danielle Darrieux is French",
    "The mother tongue of Zoë Müller is German",
    "The mother tongue of 大江健三郎 is Japanese",
    "Toko Yasuda, the guitar",
    "Zoë Müller, the piano",
    "The anthem of Velmora is in Danish",
] * 20

SHARED = Path(__file__).resolve().parents[2].parent / "shared" / "data"


def train_bpe(trim_offsets: bool, merges: int = 60, corpus=CORPUS):
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.post_processor = processors.ByteLevel(trim_offsets=trim_offsets)
    bpe.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    bpe.train_from_iterator(corpus, trainers.BpeTrainer(
        vocab_size=257 + merges, special_tokens=["<|endoftext|>"], initial_alphabet=alphabet, show_progress=False))
    return PreTrainedTokenizerFast(tokenizer_object=bpe, model_input_names=["input_ids", "attention_mask"])


@pytest.fixture(scope="session")
def tokenizer():
    return train_bpe(trim_offsets=True)


@pytest.fixture(scope="session", params=[True, False], ids=["offsets without the space", "offsets with the space"])
def either_tokenizer(request):
    return train_bpe(trim_offsets=request.param)


@pytest.fixture(scope="session")
def byte_span():
    """The tokens on the characters start … end-1, counted in bytes: each token of a byte-level BPE is some bytes."""

    def count(tokenizer, token_ids, text, start, end):
        lengths = [len(token) for token in tokenizer.convert_ids_to_tokens(token_ids)]
        assert sum(lengths) == len(text.encode()), "the oracle needs a tokenizer that changes no byte"
        lo, hi = len(text[:start].encode()), len(text[:end].encode())
        ends = [sum(lengths[:i + 1]) for i in range(len(lengths))]
        on = [i for i, stop in enumerate(ends) if stop - lengths[i] < hi and stop > lo]
        return on[0], on[-1] + 1

    return count


@pytest.fixture(scope="session")
def real_counterfact():
    return _shared("counterfact-tracing.parquet")


@pytest.fixture(scope="session")
def shared():
    """`shared(name)` is a file that lies beside the repository; the test is skipped where it does not."""
    return _shared


@pytest.fixture(scope="session")
def neox():
    from transformers import PreTrainedTokenizerFast

    return PreTrainedTokenizerFast(tokenizer_file=str(_shared("gpt-neox-20b-tokenizer.json")),
                                   model_input_names=["input_ids", "attention_mask"])


def _shared(name: str) -> Path:
    if not (SHARED / name).is_file():
        pytest.skip(f"{name} is not beside the repository, in ../shared/data")
    return SHARED / name
