"""A model's name and the checkpoint it is run on belong together."""
import sys

import pytest

from mamba_mi import UserError, cli, models
from mamba_mi.models.variants import Meant

FOLDERS = models.EMBEDDED


@pytest.mark.parametrize("words, said", [
    (["model=densemamba", f"model.path={FOLDERS['tiny-retnet']}"],
     f"model.path={FOLDERS['tiny-retnet']} holds a retnet, but model=densemamba is a densemamba: give a model= of that family "
     "(tiny-retnet, densemamba-350m, densemamba-1.3b)"),
    (["model=tiny-hyena", f"model.path={FOLDERS['tiny-moe']}"],  # whose options are others, too
     f"model.path={FOLDERS['tiny-moe']} holds a moe, but model=tiny-hyena is a hyena: give a model= of that family "
     "(tiny-moe, moe-mamba, blackmamba-1.5b, blackmamba-2.8b)"),
    (["experiment=train", f"model.path={FOLDERS['tiny-hyena']}"],
     f"model.path={FOLDERS['tiny-hyena']} holds a hyena, but model=tiny is a mamba2: give a model= of that family "
     "(tiny-hyena, hyena-small-150b)"),
    (["model.variant=foo"], "model.variant=foo: there are densemamba, falcon_mamba, hyena, mamba1, mamba2, moe, retnet"),
    (["model=tiny-hyena", "model.variant=moe"], "model=tiny-hyena is a hyena, not model.variant=moe: leave model.variant out"),
    (["model=blackmamba-1.5b", "model.expert_activation=foo"], "model.expert_activation=foo: there are gelu, silu"),
    (["model=tiny-hyena", "model.modulate=1"], "model.modulate=1: there are true, false"),
], ids=lambda x: x[-1] if isinstance(x, list) else "")
def test_a_model_that_is_another_than_its_name_says_is_one_line_and_leaves_nothing(words, said, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["launch.py", *words, f"paths.logs={tmp_path / 'logs'}"])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 1 and capsys.readouterr().err == f"error: {said}\n" and not list(tmp_path.iterdir())


def test_what_was_trained_of_a_recipe_goes_by_its_name_and_a_kept_model_is_asked_again(tmp_path):
    models.save(models.blank("moe-mamba", seed=0), tmp_path)
    lm = models.load(tmp_path, meant=Meant("moe-mamba", "moe", f"model.path={tmp_path}"))
    assert lm.config.variant == "moe"
    with pytest.raises(UserError, match="model=tiny is a mamba2"):
        models.load(tmp_path, meant=Meant("tiny", "mamba2", f"model.path={tmp_path}"))
