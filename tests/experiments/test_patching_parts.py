"""Heads, coordinates, subspaces, corruptions and whole answers: each against one plain forward a cell."""
import numpy as np
import pytest
import torch
from oracles.checkpoints import MAMBA2, random_checkpoint, with_ssm
from oracles.hugging_face import transformers_model
from scipy.stats import entropy

from mamba_mi import models
from mamba_mi.config import UserError, stream
from mamba_mi.data import Batch, Prompt
from mamba_mi.experiments import Setting, knobs_of
from mamba_mi.experiments.patching import Patching
from mamba_mi.trace import Site, Trace
from tests.small import small, tokens

L, SPANS, V = 9, {"bos": (0, 1), "subject": (3, 6)}, 61
RIGHT, WRONG = 7, 20
KEY = ["direction", "site", "layer", "role", "prompt_id"]


def batch(n: int = 4, vocab: int = V, longer: int = 1) -> Batch:
    """Pairs that differ in the subject; every other answer has `longer` tokens."""
    clean_BL, corrupt_BL = tokens(n, L, vocab=vocab), tokens(n, L, vocab=vocab).clone()
    corrupt_BL[:, 3:6] = tokens(n, 3, seed=1, vocab=vocab)

    def prompt(i, row, kind, target):
        ids = (target + i, *(range(1, longer) if i % 2 else ()))
        return Prompt(f"{kind}{i}", "", tuple(row.tolist()), "", ids[0], SPANS, ids, f"s{i}")
    return Batch(tuple(prompt(i, row, "clean", RIGHT) for i, row in enumerate(clean_BL)), "00000",
                 tuple(prompt(i, row, "corrupt", WRONG) for i, row in enumerate(corrupt_BL)))


def patching(lm, seed=0, **knobs) -> Patching:
    experiment = Patching(knobs_of(Patching, {"name": "patching", **knobs}), lm, Setting(seed, 1 << 30))
    experiment.check()
    return experiment


def table(experiment, pairs) -> dict[str, object]:
    """metric: the effects, indexed by direction, site, layer, role and prompt."""
    frame = experiment.step(pairs).to_pandas()
    return {metric: rows.set_index(KEY) for metric, rows in frame.groupby("metric")}


class Touch:
    """An intervention written by hand: the value of a site changed in place by a function."""

    def __init__(self, site, change):
        self.sites, self.change = (site,), change

    def touches(self, offset, length, end):
        return {0}

    def missing(self, touched):
        return ""

    def apply(self, site, x, offset, end):
        x = x.clone()
        self.change(x)
        return x


def difference(lm, tokens_BL, site, change) -> np.ndarray:
    """The logit difference of each prompt after `change` at `site`, one plain forward."""
    with torch.no_grad(), Trace(interventions=[Touch(site, change)]) as trace:
        logits = lm(tokens_BL, trace=trace)[0][:, -1]
    return np.array([(logits[i, RIGHT + i] - logits[i, WRONG + i]).item() for i in range(len(logits))])


def seen(lm, tokens_BL, site):
    with torch.no_grad(), Trace(keep=[site]) as trace:
        lm(tokens_BL, trace=trace)
    return trace.values[site]


@pytest.mark.parametrize("name, axis", [("scan_out", "channels"), ("state", "heads"), ("dt", "heads")])
def test_one_head_patched_is_that_slice_and_no_other(name, axis):
    lm, pairs = small("mamba2"), batch()
    site, head = Site(1, name), 2
    experiment = patching(lm, sites=[name], layers=[1], roles=["subject"], heads=[head], directions=["denoising"])
    got = experiment.step(pairs).to_pandas().query("metric == 'logit_difference'")
    values = seen(lm, pairs.tokens_BL, site)

    def change(x):
        at = [0]
        def of(y):  # noqa: E306
            return y[..., 32:48] if axis == "channels" else y[:, :, head]
        if name == "state":  # met one token at a time
            change.t = getattr(change, "t", -1) + 1
            at = [0] if 3 <= change.t < 6 else []
            of(x)[:, at] = of(values)[:, [change.t]] if at else of(x)[:, at]
        else:
            of(x)[:, 3:6] = of(values)[:, 3:6]
    want = difference(lm, pairs.corrupt_BL, site, change)
    assert set(got["head"]) == {head}
    np.testing.assert_allclose(got.value, want, atol=1e-10)


def test_some_coordinates_patched_are_those_alone():
    lm, pairs, site = small("mamba1"), batch(), Site(2, "resid")
    values = seen(lm, pairs.corrupt_BL, site)

    def change(x):
        x[:, 8:9, [4, 30]] = values[:, 8:9, [4, 30]]
    got = table(patching(lm, sites=["resid"], layers=[2], roles=["last"], dims=[4, 30]), pairs)["logit_difference"]
    np.testing.assert_allclose(got.loc["noising"].value, difference(lm, pairs.tokens_BL, site, change), atol=1e-10)


def test_kl_and_the_whole_answers_probability_are_those_of_a_forward_over_the_whole_text(tmp_path):
    config = with_ssm(MAMBA2, d_state=16, headdim=32)
    theirs = transformers_model(config, random_checkpoint(tmp_path, config, seed=3))
    lm, pairs = models.load(tmp_path), batch(vocab=45, longer=3)
    found = table(patching(lm, sites=["resid"], layers=[1], roles=["last"], directions=["noising"],
                           metrics=["logit_difference", "kl", "target_logprob"]), pairs)
    block, kept = theirs.backbone.layers[1], {}
    hook = block.register_forward_pre_hook(lambda m, args: kept.update(x=args[0].clone()))
    theirs(pairs.corrupt_BL)
    hook.remove()
    for i, prompt in enumerate(pairs.prompts):
        text = torch.tensor([[*prompt.token_ids, *prompt.target_ids]])
        clean = theirs(text).logits[0, 8, :45].softmax(-1).double().detach()
        hook = block.register_forward_pre_hook(lambda m, args, value=kept["x"][i, 8]: put_one(args, value))
        logits = theirs(text).logits[0, 8:-1, :45].double().detach()
        hook.remove()
        log_p = logits.log_softmax(-1)[range(len(prompt.target_ids)), list(prompt.target_ids)].sum()
        at = ("noising", "resid", 1, "last", prompt.prompt_id)
        assert found["target_logprob"].loc[at].value == pytest.approx(log_p.item(), rel=1e-4)
        assert found["kl"].loc[at].value == pytest.approx(entropy(clean, logits[0].softmax(-1)), rel=1e-3, abs=1e-6)
        assert found["kl"].loc[at].baseline == pytest.approx(0, abs=1e-6)  # two batches, float32


def put_one(args, value):
    x = args[0].clone()
    x[0, 8] = value
    return (x, *args[1:])


def test_noise_is_that_of_a_forward_with_noisy_embeddings_averaged_over_draws():
    lm, pairs, site = small("mamba2"), batch(), Site(1, "resid")
    got = table(patching(lm, sites=["resid"], layers=[1], roles=["last"], corruption="noise", samples=3, noise=2.0),
                pairs)["logit_difference"]
    scale = 2.0 * lm.embedding.weight.std()
    noise = torch.stack([torch.stack([torch.randn(3, 32, dtype=torch.float64, generator=stream(0, "noise", p.prompt_id, s))
                                      for p in pairs.prompts]) for s in range(3)]) * scale
    clean, noisy, patched = seen(lm, pairs.tokens_BL, site), [], []
    for s in range(3):
        def corrupt(x, drawn=noise[s]):
            x[:, 3:6] += drawn
        noisy.append(difference(lm, pairs.tokens_BL, Site(-1, "embed"), corrupt))

        def restore(x):
            x[:, 8] = clean[:, 8]
        with torch.no_grad(), Trace(interventions=[Touch(Site(-1, "embed"), corrupt), Touch(site, restore)]) as trace:
            logits = lm(pairs.tokens_BL, trace=trace)[0][:, -1]
        patched.append([(logits[i, RIGHT + i] - logits[i, WRONG + i]).item() for i in range(len(pairs))])
    np.testing.assert_allclose(got.loc["denoising"].value, np.mean(patched, axis=0), atol=1e-10)
    np.testing.assert_allclose(got.loc["denoising"].baseline, np.mean(noisy, axis=0), atol=1e-10)
    np.testing.assert_allclose(got.loc["noising"].full, np.mean(noisy, axis=0), atol=1e-10)


def fitted(lm, pairs, tmp_path, **knobs) -> Patching:
    experiment = patching(lm, sites=["gated"], layers=[1], roles=["subject", "last"], directions=["denoising"],
                          **{"subspace": "mean_difference", "rank": 2, **knobs})
    tmp_path.mkdir(exist_ok=True)
    experiment.fit(_pairs(pairs), tmp_path)
    return experiment


def _pairs(pairs):
    from mamba_mi.data import Pair

    return [Pair(clean, corrupt) for clean, corrupt in zip(pairs.prompts, pairs.corrupt)]


@pytest.mark.parametrize("kind", ["mean_difference", "pca", "das"])
def test_a_subspace_exchanges_its_own_part_and_its_parts_add_up(kind, tmp_path):
    lm, pairs, site = small("mamba2"), batch(8), Site(1, "gated")
    experiment = fitted(lm, pairs, tmp_path, subspace=kind, das_steps=2)
    frame = experiment.step(pairs).to_pandas()
    values, basis = seen(lm, pairs.tokens_BL, site), experiment.fitted.directions[site, "last"]
    np.testing.assert_allclose(basis @ basis.T, np.eye(2), atol=1e-10)

    def change(x):
        x[:, 8] += (values[:, 8] - x[:, 8]) @ basis.T @ basis
    own = frame.query(f"metric == 'logit_difference' and role == 'last' and subspace == '{kind}'")
    np.testing.assert_allclose(own.value, difference(lm, pairs.corrupt_BL, site, change), atol=1e-10)
    # what out_proj does not read changes nothing: gated is 64 wide, the residual stream 32
    unread = frame.query("metric == 'logit_difference' and subspace == 'null_space'")
    assert (unread["rank"] == 2).all()
    np.testing.assert_allclose(unread.value, unread.baseline, atol=1e-10)
    full = frame.query("metric == 'logit_difference' and subspace == 'full' and role == 'last'")
    patched = table(patching(lm, sites=["gated"], layers=[1], roles=["last"]), pairs)["logit_difference"].loc["denoising"]
    np.testing.assert_allclose(full.value, patched.value, atol=1e-10)


def test_all_draws_in_one_run_are_those_of_one_job_a_draw(tmp_path):
    lm, pairs = small("mamba2"), batch(8)
    whole = fitted(lm, pairs, tmp_path / "a", draws=3).step(pairs).to_pandas()
    families = {"isotropic", "covariance", "rescaled", "orthogonal"}
    assert set(whole[whole.draw.notna()].subspace) == families
    for draw in range(3):
        job = fitted(lm, pairs, tmp_path / "b", draw=draw).step(pairs).to_pandas()
        assert set(job.draw.dropna()) == {draw}
        keys = [*KEY, "subspace", "metric"]
        one, other = (frame[frame.draw == draw].set_index(keys).sort_index() for frame in (whole, job))
        assert one.index.equals(other.index) and len(one) == 2 * 8 * 4 * 2
        np.testing.assert_allclose(one.value, other.value, rtol=1e-9)


def test_a_rescaled_control_exchanges_as_much_as_the_fitted_subspace_and_an_isotropic_one_less(tmp_path):
    frame = fitted(small("mamba2"), batch(8), tmp_path, draws=20).step(batch(8)).to_pandas()
    norms = frame[frame.metric == "intervention_norm"].groupby(["role", "subspace", "prompt_id"]).value.mean()
    for role in ("subject", "last"):
        own = norms[role, "mean_difference"]
        np.testing.assert_allclose(norms[role, "rescaled"], own, rtol=1e-9)
        assert (norms[role, "isotropic"] < own).mean() > 0.7


def test_aligning_by_gradient_lowers_the_loss_it_descends(tmp_path):
    lm, pairs = small("mamba2"), batch(8)
    effects = {}
    for steps in (1, 40):
        experiment = fitted(lm, pairs, tmp_path / str(steps), subspace="das", das_steps=steps)
        frame = experiment.step(pairs).to_pandas()
        effects[steps] = frame.query("metric == 'probability' and subspace == 'das' and role == 'last'").value.mean()
    assert effects[40] > 1.05 * effects[1]


def test_what_das_found_is_taken_up_again_and_not_searched_for_twice(tmp_path):
    lm, pairs = small("mamba2"), batch(8)
    first = fitted(lm, pairs, tmp_path, subspace="das", das_steps=3)
    again = fitted(lm, pairs, tmp_path, subspace="das", das_steps=1)
    for place, directions in first.fitted.directions.items():
        assert torch.equal(directions, again.fitted.directions[place])


@pytest.mark.parametrize("knobs, message", [
    ({"heads": "all", "dims": [1]}, "give one of them"), ({"heads": [9], "sites": ["scan_out"]}, "heads 0-3"),
    ({"heads": "all"}, "heads are apart at"), ({"dims": [64], "sites": ["resid"]}, "coordinates 0-31"),
    ({"subspace": "mean_diff"}, "did you mean 'mean_difference'"), ({"draws": 5}, "give method.subspace"),
    ({"subspace": "pca", "sites": ["state"]}, "site with one axis"), ({"subspace": "pca", "rank": 40}, "at most 32"),
    ({"subspace": "pca", "draws": 2, "draw": 1}, "give one of them"), ({"corruption": "nose"}, "did you mean 'noise'"),
    ({"subspace": "pca", "rank": 20, "draws": 9, "sites": ["resid"]}, "at most 16 with controls"), ({"samples": 0}, "at least 1"), ({"resamples": 0}, "at least 20"),
    ({"tau": -1.0}, "at least 0"), ({"noise": 0.0, "corruption": "noise"}, "more than 0"), ({"roles": []}, "at least one role"),
])
def test_parts_that_do_not_fit_are_one_clear_line(knobs, message):
    with pytest.raises(UserError, match=message) as caught:
        patching(small("mamba2"), **knobs)
    assert "\n" not in str(caught.value)


def test_sites_may_have_their_names_in_other_libraries():
    lm, pairs = small("mamba2"), batch()
    ours, theirs, both = (patching(lm, sites=names, layers=[1], roles=["last"]).step(pairs)
                          for names in (["resid"], ["hook_resid_pre"], ["resid", "hook_resid_pre"]))
    assert ours.equals(theirs) and ours.equals(both)


def test_mamba1_has_no_heads():
    with pytest.raises(UserError, match="mamba1 and has no heads; method.dims"):
        patching(small("mamba1"), heads="all", sites=["scan_out"])


def test_a_mistyped_role_among_good_ones_raises():
    with pytest.raises(UserError, match="method.roles=lasst.*did you mean 'last'"):
        patching(small("mamba1"), roles=["subject", "lasst"]).step(batch())


def test_more_directions_than_classes_raise(tmp_path):
    with pytest.raises(UserError, match="method.rank=12: the means of 8 classes of answers span only 7"):
        fitted(small("mamba2"), batch(4), tmp_path, rank=12)
