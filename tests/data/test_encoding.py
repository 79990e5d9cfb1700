import pytest

from mamba_mi.config import UserError
from mamba_mi.data import facts
from mamba_mi.data.encoding import bos_ids, encode, encode_targets, following
from mamba_mi.models.tokenizer import load_tokenizer
from mamba_mi.models.variants import embedded as embedded_models


@pytest.mark.parametrize(("text", "target", "joined"), [
    ("It is in", "Paris", "It is in Paris"), ("It is in", " Paris", "It is in Paris"),
    ("It is in ", "Paris", "It is in Paris"), ("It says “", "Paris", "It says “Paris"), ("It is in", "Ünye", "It is in Ünye"),
    ("The sum is (", "12", "The sum is (12"), ("The sum is", "12", "The sum is 12"), ("It is Paris", ".", "It is Paris.")])
def test_a_word_gets_the_space_it_needs_and_no_second_one(text, target, joined):
    assert text + following(text, target) == joined


def test_text_and_target_tokens_together_are_the_tokens_of_the_whole(tokenizer):
    text, targets = "The mother tongue of Zoë is", [" French", " Klingon", "'s", " 大江"]
    encoded = encode([text] * 4, tokenizer)
    found = encode_targets([text] * 4, encoded, targets, tokenizer)
    for ids, target in zip(found, targets, strict=True):
        assert [*encoded[0].ids, *ids] == tokenizer(text + target)["input_ids"]
    assert len(found[0]) < len(found[1]), "the trained word is fewer tokens than the unknown one"


def test_a_target_that_merges_into_the_text_is_tokenised_alone(tokenizer):
    text = "The anthem of Velmora "  # its last token is the space that, together, merges into " is"
    [encoded] = encode([text], tokenizer)
    assert tuple(tokenizer(text + "is in")["input_ids"])[:len(encoded.ids)] != encoded.ids
    assert encode_targets([text], [encoded], ["is in"], tokenizer) == [tuple(tokenizer("is in")["input_ids"])]


def test_bos_is_the_tokenizer_s_or_the_mark_between_documents(tokenizer):
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    words = Tokenizer(models.WordLevel({"<s>": 3, "a": 1}, unk_token="a"))
    assert bos_ids(tokenizer, bos=False) == ()
    assert bos_ids(tokenizer, bos=True) == (tokenizer.convert_tokens_to_ids("<|endoftext|>"),)
    assert bos_ids(PreTrainedTokenizerFast(tokenizer_object=words, bos_token="<s>"), bos=True) == (3,)
    embedded = load_tokenizer(embedded_models()["tiny"])  # whose file names no BOS
    assert embedded.bos_token is None and bos_ids(embedded, bos=True) == (facts.vocabulary()["<bos>"],)
    with pytest.raises(UserError, match="dataset.bos=true"):
        bos_ids(PreTrainedTokenizerFast(tokenizer_object=words), bos=True)


def test_a_model_without_tokenizer_is_told_to_bring_one():
    with pytest.raises(UserError, match="model.tokenizer="):
        encode(["text"], None)
