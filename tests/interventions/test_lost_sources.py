"""Jobs that start at their queries: what their sources wrote before is taken off, against one full pass a set."""
import pytest
import torch
from oracles import deviation

from mamba_mi import Add, Edit, Knockout, Part, Scale, Site, StateEdit, evaluate
from mamba_mi.config import stream
from mamba_mi.interventions import Ledger, cone, contrast
from tests.available import BACKENDS, at_once
from tests.interventions.test_knockout import CONVS, V, brute_force, model, truth
from tests.small import CONFIGS, small, tokens

L = 12


def drawn(variant: str, rows: int, seed: int) -> tuple:
    """A set of one or two knockouts: random layers, queries, sources, policies, heads or channels, masks for each prompt."""
    generator = stream(seed, "knockouts", variant, rows)
    below = lambda n: int(torch.randint(n, (), generator=generator))  # noqa: E731

    def one(query_conv):
        queries = [-1, (L - 2, L - 1), (7, 9, L - 1), torch.rand(rows, L, generator=generator) < 0.3][below(4)]
        if isinstance(queries, torch.Tensor):
            queries = queries & (torch.arange(L) >= 5) | (torch.arange(L) == L - 1)
        sources = [below(L), (0, 1), torch.rand(rows, L, generator=generator) < 0.4, "all"][below(4)]
        how = {"conv": CONVS[below(3)], "span": ("token", "token+conv")[below(2)]}
        how |= {"query_conv": query_conv} if how["conv"] != "scan" else {}
        some = torch.randperm(64 if variant != "mamba2" else 4, generator=generator)[:2].tolist()
        how |= {"channels" if variant != "mamba2" else "heads": tuple(some)} if below(3) == 0 else {}
        return Knockout(((0,), (1, 2), (0, 1, 2))[below(3)], queries, sources, **how)

    query_conv = bool(below(2))
    return tuple(one(query_conv) for _ in range(1 + below(2)))


@pytest.mark.parametrize("rows", at_once([3], [1, 3]))
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("variant", CONFIGS)
def test_random_sets_equal_one_full_forward_each(variant, backend, rows):
    lm, tokens_BL = model(variant, backend), tokens(rows, L)
    sets = [drawn(variant, rows, seed) for seed in range(60)]
    got = evaluate(lm, tokens_BL, sets, lambda x: x[..., :V])
    assert deviation(got, brute_force(lm, tokens_BL, sets)) <= 1e-10


@pytest.mark.parametrize("variant", CONFIGS)
def test_the_oracle_says_the_same_of_every_token_and_policy(variant):
    lm, tokens_BL = model(variant), tokens(2, L)
    knockouts = [Knockout((0, 1), -1, s, conv) for s in (0, 5, L - 3, L - 1) for conv in CONVS]
    got = evaluate(lm, tokens_BL, [(k,) for k in knockouts], lambda x: x[..., :V])
    for values, knockout in zip(got, knockouts, strict=True):
        assert deviation(values, truth(lm, tokens_BL, [knockout])[:, -1]) <= 1e-11, knockout


@pytest.mark.parametrize("conv", CONVS)
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("variant", CONFIGS)
def test_beside_edits_of_what_is_written_and_of_the_state(variant, backend, conv):
    lm, tokens_BL = model(variant, backend), tokens(2, L)
    some = Part(Scale(0.5), range(3))
    sets = [(Knockout((0, 1), (8, -1), (2, 5), conv), edit) for edit in (
        StateEdit(1, 9, Scale(0.5)), StateEdit(1, L - 1, some), Edit(Site(1, "write"), (8, -1), Scale(2.0)),
        Edit(Site(0, "dt"), 9, Scale(3.0)), Edit(Site(1, "C"), -1, Add(torch.ones(1))))]
    got = evaluate(lm, tokens_BL, sets, lambda x: x[..., :V])
    assert deviation(got, brute_force(lm, tokens_BL, sets)) <= 1e-10


@pytest.mark.parametrize("length", [2, 3, 4, 5, 66])
@pytest.mark.parametrize("variant", CONFIGS)
def test_prefixes_around_the_convs_width_and_off_the_chunks(variant, length):
    lm, tokens_BL = model(variant), tokens(2, length)
    sets = [(Knockout((0, 2), -1, sources, conv),) for conv in CONVS for sources in (0, length - 2, "all")]
    got = evaluate(lm, tokens_BL, sets, lambda x: x[..., :V])
    assert deviation(got, brute_force(lm, tokens_BL, sets)) <= 1e-10


@pytest.mark.parametrize("variant", CONFIGS)
def test_many_slots_at_once_are_taken_off_as_a_state(variant):
    """More slots than the state has dimensions, and many jobs for one set of sources: the other order of the products."""
    lm, tokens_BL = model(variant), tokens(1, 150)
    sets = [(Knockout(layer, -1, range(0, 140), conv),) for layer in range(3) for conv in CONVS for _ in range(4)]
    got = evaluate(lm, tokens_BL, sets, lambda x: x[..., :V])
    assert deviation(got, brute_force(lm, tokens_BL, sets)) <= 1e-10


@pytest.mark.parametrize("variant", CONFIGS)
def test_without_sources_nothing_changes_to_the_bit(variant):
    lm, tokens_BL = model(variant), tokens(3, L)
    nobody = torch.zeros(3, L, dtype=torch.bool)
    sets = [(Knockout((0, 1, 2), -1, nobody, conv),) for conv in CONVS] + [(Knockout((0, 1), -1, 4),)]
    values, clean = contrast(lm, tokens_BL, sets, lambda x: x)
    assert torch.equal(values[:3], clean[:3]) and not torch.equal(values[3], clean[3])


@pytest.mark.parametrize("variant", CONFIGS)
def test_a_job_runs_no_token_before_its_query(variant):
    lm, ledger = model(variant), Ledger()
    evaluate(lm, tokens(2, L), [(Knockout(layer, -1, s, conv),) for layer in range(3) for s in range(L) for conv in CONVS],
             lambda x: x, ledger=ledger)
    jobs = 3 * L  # a layer
    assert ledger.token_layers == 2 * (3 + (3 + 2 + 1) * jobs)


def test_logits_are_made_some_jobs_at_a_time(monkeypatch):
    lm, tokens_BL, seen = model("mamba2"), tokens(3, L), []
    sets = [(Knockout((0, 1), -1, s),) for s in range(L)]
    together = evaluate(lm, tokens_BL, sets, lambda x: x)
    monkeypatch.setattr(cone, "READ", 3 * lm.config.padded_vocab * 5)
    parts = evaluate(lm, tokens_BL, sets, lambda x: seen.append(len(x)) or x)
    assert seen == [5, 5, 3] and deviation(parts[..., :V], together[..., :V]) <= 1e-14


@pytest.mark.parametrize("variant", CONFIGS)
def test_logits_of_a_few_tokens_alone(variant):
    lm, tokens_BL = model(variant), tokens(3, L)
    only_BX = torch.tensor([[3, 9], [9, 3], [0, 60]])
    sets = [(Knockout((0, 1), -1, s),) for s in range(L)]
    few, whole = (contrast(lm, tokens_BL, sets, lambda x: x, only_BX=only)[0] for only in (only_BX, None))
    assert deviation(few, whole.gather(2, only_BX.expand(L, -1, -1))) <= 1e-14


@pytest.mark.parametrize("variant", CONFIGS)
def test_float32_follows(variant):
    lm, single, tokens_BL = model(variant), small(variant, dtype="float32"), tokens(2, L)
    single.load_state_dict(lm.state_dict())
    sets = [(Knockout((0, 1), -1, (3, 4), conv),) for conv in CONVS]
    got = evaluate(single, tokens_BL, sets, lambda x: x[..., :V])
    assert got.dtype == torch.float32 and deviation(got, brute_force(lm, tokens_BL, sets)) <= 1e-5


@pytest.mark.parametrize("variant", CONFIGS)
def test_the_same_knockouts_in_other_jobs_of_the_next_layer(variant):
    lm, tokens_BL = model(variant), tokens(2, L)
    sets = [(Knockout((0, 1), -1, 3),), (Edit(Site(0, "resid"), -1, Scale(0.5)), Knockout(1, -1, 5)), (Knockout(0, -1, 5),)]
    got = evaluate(lm, tokens_BL, sets, lambda x: x[..., :V])
    assert deviation(got, brute_force(lm, tokens_BL, sets)) <= 1e-10
