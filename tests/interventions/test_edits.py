"""Each operation against its definition, and what the trace says of it."""
import pytest
import torch

from mamba_mi.config import UserError, stream
from mamba_mi.interventions import Ablate, Add, Edit, Part, Project, Replace, Scale, StateEdit, SwapSubspace
from mamba_mi.interventions.ops import orthonormal
from mamba_mi.trace import Site, Trace
from tests.small import small, tokens

RESID = Site(1, "resid")


def random(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=stream(seed, "edits", *shape))


def edited(x, positions, op, offset=0):
    return Edit(RESID, positions, op).apply(RESID, x, offset, offset + x.shape[1])


def test_only_the_named_positions_change_and_the_given_value_is_left_alone():
    x = random(2, 6, 4)
    before = x.clone()
    y = edited(x, (1, 4), Scale(3.0))
    torch.testing.assert_close(y[:, [1, 4]], 3 * x[:, [1, 4]])
    assert torch.equal(y[:, [0, 2, 3, 5]], x[:, [0, 2, 3, 5]]) and torch.equal(x, before)


def test_each_operation_does_what_its_name_says():
    x, v, other = random(2, 6, 4), random(4, seed=1), random(2, 1, 4, seed=2)
    assert torch.equal(edited(x, 2, Replace(other))[:, 2], other[:, 0])
    torch.testing.assert_close(edited(x, 2, Add(v, 0.5))[:, 2], x[:, 2] + 0.5 * v)
    assert edited(x, 2, Ablate())[:, 2].abs().max() == 0
    assert torch.equal(edited(x, 2, Ablate("resample", other))[:, 2], other[:, 0])
    torch.testing.assert_close(edited(x, 2, Ablate("mean", v))[:, 2], v.expand(2, 4))


def test_project_removes_or_keeps_exactly_the_span():
    x, directions = random(2, 6, 5), random(2, 5, seed=3)
    removed, kept = edited(x, 3, Project(directions))[:, 3], edited(x, 3, Project(directions, keep=True))[:, 3]
    torch.testing.assert_close(removed @ directions.T, torch.zeros(2, 2, dtype=torch.float64), atol=1e-12, rtol=0)
    torch.testing.assert_close(removed + kept, x[:, 3])


def test_a_swapped_subspace_takes_its_coordinates_from_the_other_run_and_leaves_the_rest():
    x, other, directions = random(2, 6, 5), random(2, 1, 5, seed=4), random(2, 5, seed=5)
    y = edited(x, 3, SwapSubspace(other, directions))[:, 3]
    torch.testing.assert_close(y @ directions.T, other[:, 0] @ directions.T)
    complement = torch.linalg.svd(directions)[2][2:]
    torch.testing.assert_close(y @ complement.T, x[:, 3] @ complement.T)


def test_a_rescaled_swap_keeps_its_own_direction_and_takes_the_others_length():
    x, values, own, other = random(2, 6, 4), random(2, 1, 4, seed=1), random(2, 4, seed=3), random(2, 4, seed=4)
    y = edited(x, 3, SwapSubspace(values, own, as_long_as=other))[:, 3] - x[:, 3]
    plain, wanted = ((edited(x, 3, SwapSubspace(values, d)) - x)[:, 3] for d in (own, other))
    torch.testing.assert_close(y / y.norm(dim=-1, keepdim=True), plain / plain.norm(dim=-1, keepdim=True))
    torch.testing.assert_close(y.norm(dim=-1), wanted.norm(dim=-1))
    nothing = edited(x, 3, SwapSubspace(x[:, 3:4], own, as_long_as=other))
    torch.testing.assert_close(nothing, x)


@pytest.mark.parametrize("dims", [range(3, 6), (3, 4, 5)])
def test_a_part_changes_its_coordinates_of_the_flattened_value_and_no_other(dims):
    x, values = random(2, 6, 4, 3), random(2, 1, 4, 3, seed=1)
    y = edited(x, 3, Part(Replace(values), dims))
    assert torch.equal(y[:, 3, 1], values[:, 0, 1])
    assert torch.equal(y[:, 3, [0, 2, 3]], x[:, 3, [0, 2, 3]]) and torch.equal(y[:, :3], x[:, :3])


def test_a_value_for_each_position_lands_on_its_own_position_in_a_restarted_pass():
    values = torch.arange(12.0, dtype=torch.float64).reshape(1, 3, 4)
    suffix = edited(random(1, 3, 4), (1, 4, 6), Replace(values), offset=4)
    assert torch.equal(suffix[:, 0], values[:, 1]) and torch.equal(suffix[:, 2], values[:, 2])


def test_an_edit_means_the_same_token_in_one_pass_and_in_generation():
    lm, tokens_BL = small("mamba2"), tokens(2, 9)
    edit = Edit(Site(1, "scan_out"), (2, 7), Scale(0.0))
    with Trace(interventions=[edit]) as trace:
        whole, _ = lm(tokens_BL, trace=trace)
    with Trace(interventions=[edit]) as trace:
        first, past = lm(tokens_BL[:, :5], trace=trace)
        second, _ = lm(tokens_BL[:, 5:], trace=trace, past=past)
    torch.testing.assert_close(torch.cat([first, second], dim=1), whole)


def test_a_state_edit_reaches_later_tokens_and_no_earlier_one():
    lm, tokens_BL = small("mamba1"), tokens(2, 9)
    clean = lm(tokens_BL)[0][..., :61]
    with Trace(interventions=[StateEdit(0, 4, Scale(0.0))]) as trace:
        changed = lm(tokens_BL, trace=trace)[0][..., :61]
    torch.testing.assert_close(changed[:, :4], clean[:, :4])
    assert (changed[:, 4:] - clean[:, 4:]).abs().amax(dim=(0, 2)).min() > 1e-6


@pytest.mark.parametrize("make, message", [
    (lambda: Edit(RESID, (), Scale(1.0)), "at least one"),
    (lambda: Edit(RESID, (1, 1), Scale(1.0)), "each once"),
    (lambda: Edit(RESID, "last", Scale(1.0)), "give a position"),
    (lambda: Ablate("noise"), "zero, mean, resample"),
    (lambda: Ablate("mean"), "needs values"),
    (lambda: orthonormal(torch.ones(2, 5)), "span only 1"),
    (lambda: edited(random(2, 6, 5), 2, Project(torch.ones(1, 4))), "width 4 at a site of width 5"),
    (lambda: edited(random(2, 6, 5), 2, Part(Scale(0.0), range(3, 6))), "coordinates 3 to 5 of a value that has 0 to 4"),
    (lambda: edited(random(2, 6, 4), 2, Replace(torch.ones(3))), "do not fit"),
    (lambda: edited(random(2, 6, 4), (0, 1, 2), Replace(torch.ones(2, 2, 4))), "position number 2"),
    (lambda: edited(random(2, 6, 4), 2, lambda x, picked: x[..., :2]), "the op gives shape"),
])
def test_what_does_not_fit_says_so(make, message):
    with pytest.raises(UserError, match=message):
        make()


@pytest.mark.parametrize("variant", ["mamba1", "mamba2"])
def test_patching_the_whole_residual_stream_carries_the_whole_run_over(variant):
    lm = small(variant)
    with Trace(keep=[RESID]) as trace:
        other, _ = lm(tokens(2, 9, seed=1), trace=trace)
    with Trace(interventions=[Edit(RESID, "all", Replace(trace.values[RESID]))]) as patched:
        got, _ = lm(tokens(2, 9), trace=patched)
    torch.testing.assert_close(got, other)
