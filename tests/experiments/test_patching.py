"""Activation patching against transformers with hooks: one full forward a cell, by other code than ours."""
import numpy as np
import pytest
import torch
from oracles.checkpoints import MAMBA1, MAMBA2, random_checkpoint, with_ssm
from oracles.hugging_face import transformers_model

from mamba_mi import models
from mamba_mi.config import UserError
from mamba_mi.data import Batch, Prompt
from mamba_mi.experiments import Setting, get, knobs_of, names
from mamba_mi.experiments.patching import HEADLINE, Patching
from tests.small import tokens

L, SPANS = 9, {"bos": (0, 1), "subject": (3, 6)}
CONFIGS = {"mamba1": MAMBA1, "mamba2": with_ssm(MAMBA2, d_state=16, headdim=32)}


def batch(n: int = 3) -> Batch:
    """Pairs that differ in the subject's tokens."""
    clean_BL, corrupt_BL = tokens(n, L, vocab=45), tokens(n, L, vocab=45).clone()
    corrupt_BL[:, 3:6] = tokens(n, 3, seed=1, vocab=45)

    def prompt(i, row, kind, target):
        return Prompt(f"{kind}{i}", "", tuple(row.tolist()), "", target, SPANS, cluster=f"s{i}")
    return Batch(tuple(prompt(i, row, "clean", 7 + i) for i, row in enumerate(clean_BL)), "00000",
                 tuple(prompt(i, row, "corrupt", 20 + i) for i, row in enumerate(corrupt_BL)))


def patching(lm, **knobs) -> Patching:
    return Patching(knobs_of(Patching, {"name": "patching", **knobs}), lm, Setting(0, 1 << 30))


@pytest.mark.parametrize("variant", CONFIGS)
def test_residual_patching_equals_transformers_with_hooks(variant, tmp_path):
    weights = random_checkpoint(tmp_path, CONFIGS[variant], seed=3)
    theirs = transformers_model(CONFIGS[variant], weights)
    lm = models.load(tmp_path, dtype="float32")
    pairs = batch()
    table = patching(lm, sites=["resid"]).step(pairs).to_pandas()
    worst = 0.0
    for direction, base, source in (("denoising", pairs.corrupt_BL, pairs.tokens_BL),
                                    ("noising", pairs.tokens_BL, pairs.corrupt_BL)):
        for layer in range(2):
            for role, at in (("subject_2", [4]), ("subject", [3, 4, 5]), ("between", [6, 7]), ("last", [8])):
                logits = patched(theirs, layer, at, base, source)
                rows = table[(table.direction == direction) & (table.layer == layer) & (table.role == role)]
                for i in range(len(pairs)):
                    mine = rows[rows.prompt_id == f"clean{i}"].set_index("metric").value
                    own = logits[i, -1, :45]
                    worst = max(worst, abs(mine.logit_difference - (own[7 + i] - own[20 + i]).item()),
                                abs(mine.probability - own.softmax(-1)[7 + i].item()))
                    assert mine["rank"] == (own > own[7 + i]).sum().item()
    assert worst <= 1e-5 * logits[..., :45].abs().max()


@torch.no_grad()
def patched(model, layer, at, base_BL, source_BL):
    """transformers' logits with the block input of `layer` taken from another run at the positions `at`."""
    kept = {}
    block = model.backbone.layers[layer]
    look = block.register_forward_pre_hook(lambda m, args: kept.update(x=args[0].clone()))
    model(source_BL)
    look.remove()

    def put(module, args):
        x = args[0].clone()
        x[:, at] = kept["x"][:, at]
        return (x, *args[1:])
    hook = block.register_forward_pre_hook(put)
    out = model(base_BL).logits
    hook.remove()
    return out


def test_full_patches_restore_everything_and_unchanged_tokens_restore_nothing(tmp_path):
    random_checkpoint(tmp_path, CONFIGS["mamba2"], seed=3)
    table = patching(models.load(tmp_path, dtype="float64"), sites=["resid"]).step(batch()).to_pandas()
    table = table[table.metric == "logit_difference"]
    share = (table.value - table.baseline) / (table.full - table.baseline)
    whole = share[(table.role == "subject") & (table.layer == 0)]
    np.testing.assert_allclose(whole, 1.0, atol=1e-10)
    same = share[table.role.isin(["bos", "pre_subject"])]
    np.testing.assert_allclose(same, 0.0, atol=1e-10)
    clean = table[table.direction == "noising"].groupby("prompt_id").baseline.first()
    full = table[table.direction == "denoising"].groupby("prompt_id").full.first()
    np.testing.assert_allclose(clean, full, rtol=1e-12)


def test_the_table_has_every_cell_once(tmp_path):
    random_checkpoint(tmp_path, CONFIGS["mamba1"], seed=3)
    experiment = patching(models.load(tmp_path), sites=["resid", "embed", "final_norm"])
    table = experiment.step(batch()).to_pandas()
    key = ["prompt_id", "direction", "site", "layer", "role", "metric"]
    assert not table.duplicated(key).any()
    roles_found = {"bos", "pre_subject", "subject_1", "subject_2", "subject_3", "subject_last", "subject", "between", "last"}
    assert set(table.role) == roles_found
    assert len(table) == 2 * 3 * 3 * (2 * len(roles_found) + len(roles_found) + 1)
    assert set(table[table.site == "embed"].layer) == {-1}


@pytest.mark.parametrize("knobs, message", [
    ({"sites": ["residd"]}, "did you mean 'resid'"), ({"sites": []}, "at least one"),
    ({"layers": [0, 9]}, "layers 0-1"), ({"layers": "first"}, "give all or a list"),
    ({"directions": ["denoise"]}, "did you mean 'denoising'"), ({"metrics": ["rank"]}, "must hold logit_difference"),
    ({"sits": ["resid"]}, "did you mean 'sites'"), ({"batch": "many"}, "method.batch"),
])
def test_a_wrong_knob_is_one_clear_line(knobs, message, tmp_path):
    random_checkpoint(tmp_path, CONFIGS["mamba1"], seed=3)
    with pytest.raises(UserError, match=message) as caught:
        patching(models.load(tmp_path), **knobs).check()
    assert "\n" not in str(caught.value)


def test_the_registry_names_files_and_suggests():
    assert "patching" in names() and get("patching") is Patching
    with pytest.raises(UserError, match="did you mean 'patching'"):
        get("patchign")


def test_the_words_name_the_layers_where_the_curves_turn(tmp_path):
    random_checkpoint(tmp_path, CONFIGS["mamba1"], seed=3)
    experiment = patching(models.load(tmp_path))

    def row(role, layer, mean):
        return {"conditions": {"direction": "denoising", "site": "resid", "layer": layer, "role": role},
                "metric": HEADLINE, "n": 80, "mean": mean, "ci_low": mean - 0.05, "ci_high": mean + 0.05}
    falling, rising = [0.98, 0.81, 0.30, 0.02], [0.0, 0.21, 0.66, 0.97]
    rows = [row("subject", i, m) for i, m in enumerate(falling)] + [row("last", i, m) for i, m in enumerate(rising)]
    subject, last, overall = experiment.findings(rows)
    assert "8 of 8 cells stand out (max-T), the largest of each site: residual stream, layer 0, whole subject 0.98" in overall
    assert "0.98 [0.93, 1.03]" in subject and "falls below one half at layer 2 (0.30" in subject
    assert "0.97" in last and "passes one half at layer 2 (0.66" in last
    assert len(experiment.caveats(rows)) == 3 and len(experiment.caveats([{"n": 12}])) == 4
