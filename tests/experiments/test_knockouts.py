"""What the experiments on knockouts share."""
import pytest
import torch

from mamba_mi import Knockout, UserError
from mamba_mi.data import Prompt, batches
from mamba_mi.experiments._knockouts import RELATIVE, measure, table, windows
from mamba_mi.interventions import Ledger
from tests.interventions.test_knockout import model
from tests.small import tokens

METRICS = ["probability", RELATIVE, "hit", "log_probability", "logit_difference"]


def batch(wrong=(5, 9)):
    prompts = [Prompt(f"p{i}", "", tuple(row), "a", 3 + i, target_ids=(3 + i,), wrong_id=wrong[i])
               for i, row in enumerate(tokens(2, 7).tolist())]
    return batches(prompts, 8)[0]


def measured(metrics, **how):
    sets = [(Knockout((0, 1), -1, s, "both"),) for s in range(7)]
    return measure(model("mamba2"), batch(**how), sets, metrics, memory=1 << 28, ledger=Ledger())


def test_two_logits_alone_give_the_same_difference():
    whole, few = measured(METRICS), measured(["logit_difference"])
    for every, alone in zip(whole, few, strict=True):
        at = [name for name in METRICS if name != RELATIVE].index("logit_difference")
        torch.testing.assert_close(alone[..., 0], every[..., at], rtol=0, atol=1e-12)
    assert (few[0] - few[1]).abs().max() > 1e-3


def test_relative_probability_is_in_percent_of_the_clean_runs():
    rows = table(batch(), METRICS, [{"source": f"s{s}"} for s in range(7)], *measured(METRICS)).to_pandas()
    p, relative = (rows[rows.metric == name].reset_index() for name in ("probability", RELATIVE))
    assert (relative.baseline == 100).all() and relative.value.values == pytest.approx((100 * p.value / p.baseline).values)
    assert len(rows) == 5 * 7 * 2 and set(rows[rows.metric == "hit"].value) <= {0.0, 1.0}


def test_a_prompt_without_a_wrong_answer_has_no_logit_difference_and_what_is_left_out_is():
    cells = [{"source": f"s{s}"} for s in range(7)]
    rows = table(batch((5, None)), METRICS, cells, *measured(METRICS, wrong=(5, None)), {2: {"p0"}}).to_pandas()
    assert set(rows[rows.metric == "logit_difference"].prompt_id) == {"p0"}
    assert set(rows[(rows.metric == "hit") & (rows.source == "s2")].prompt_id) == {"p1"} and len(rows) == 5 * 14 - 7 - 5


def test_windows_are_whole_ones():
    assert list(windows(3, range(6))) == [0, 1, 2, 3] and list(windows(6, range(6))) == [0]
    assert windows(2, (0, 2, 4)) == {0: (0, 2), 2: (2, 4)}
    for size in (0, 7):
        with pytest.raises(UserError, match=f"window of {size} layers: this model has 6"):
            windows(size, range(6))
