"""The figure of a hidden attention map: its panels hold `mamba_mi.attention`'s numbers under the right names."""
import numpy as np
import pytest

import mamba_mi
from mamba_mi import UserError, load
from tests.small import small, tokens

from .test_figures import shown

TEXT = "<bos> in the evening Petra Bensen can be heard on the"
NAMES = ["<bos>", "in", "the", "evening", "Petra", "Ben", "##sen", "can", "be", "heard", "on", "the"]


def panels(figure):
    return {axes.get_label(): axes for axes in figure.axes if axes.get_label() != "scale"}


def drawn(axes):
    return axes.collections[0].get_array()


@pytest.mark.parametrize(("model", "asked", "names"), [
    ("tiny", {}, [f"head {h}" for h in range(8)]), ("tiny", {"heads": [5, -1]}, ["head 5", "head 7"]),
    ("tiny-mamba1", {}, ["mean of 256 channels"]), ("tiny-mamba1", {"channels": [3, 0]}, ["channel 3", "channel 0"]),
    ("tiny-mamba1", {"over_channels": "norm"}, ["root mean square of 256 channels"])])
def test_every_panel_is_its_heads_map(model, asked, names):
    lm = load(model)
    M_HTL = mamba_mi.attention(lm, TEXT, 4, **asked)[0].numpy()
    found = panels(mamba_mi.attention_map(lm, TEXT, 4, **asked))
    assert list(found) == names
    for M_TL, axes in zip(M_HTL, found.values(), strict=True):
        np.testing.assert_allclose(np.tril(drawn(axes).filled(0)), np.tril(M_TL), rtol=1e-6)
        assert drawn(axes).mask.sum() == 66 and axes.collections[0].norm.vmax == pytest.approx(np.abs(M_TL).max())
    first = next(iter(found.values()))
    assert [tick.get_text() for tick in first.get_yticklabels()] == NAMES == [t.get_text() for t in first.get_xticklabels()]


def test_a_row_alone_reads_all_that_stands_before_it():
    lm = load("tiny")
    axes = panels(mamba_mi.attention_map(lm, TEXT, -1, rows=[-4], heads=[2]))["head 2"]
    np.testing.assert_allclose(drawn(axes)[0, :9].filled(0), mamba_mi.attention(lm, TEXT, 5)[0, 2, 8, :9].numpy(), atol=1e-7)
    assert drawn(axes).mask.tolist() == [[False] * 9 + [True] * 3]
    assert [tick.get_text() for tick in axes.get_yticklabels()] == ["be"]


def test_without_a_tokenizer_the_tokens_numbers_stand_there_and_two_prompts_are_refused():
    lm = small("mamba2")
    ids = tokens(1, 5)
    axes = panels(mamba_mi.attention_map(lm, ids, 0))["head 0"]
    assert [tick.get_text() for tick in axes.get_xticklabels()] == [str(i) for i in ids[0].tolist()]
    with pytest.raises(UserError, match="2 prompts: give one"):
        mamba_mi.attention_map(lm, tokens(2, 5), 0)


@pytest.mark.parametrize(("model", "asked"), [("tiny", {}), ("tiny", {"heads": [0]}), ("tiny", {"rows": [-1]}),
                                              ("tiny-mamba1", {}), ("tiny-mamba1", {"channels": range(20)})])
def test_no_text_is_clipped_or_overlaps(model, asked):
    figure = mamba_mi.attention_map(load(model), TEXT, 2, **asked)
    texts, box = shown(figure)
    page, (low, high) = figure.bbox.extents, (box[:, :2], box[:, 2:])
    assert not ((box < page[[0, 1, 0, 1]]) | (box > page[[2, 3, 2, 3]])).any(), texts
    common = np.minimum(high[:, None], high) - np.maximum(low[:, None], low)
    pairs = np.argwhere(np.triu((common > 1).all(-1), k=1))
    assert not len(pairs), [(texts[a], texts[b]) for a, b in pairs[:3]]
