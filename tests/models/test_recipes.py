"""Models that are a config and a vocabulary: they are trained, never loaded."""
import pytest
import torch

from mamba_mi import UserError, models
from mamba_mi.models import RECIPES, variants


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_is_trained_from_and_says_so_when_asked_for_weights(name):
    with pytest.raises(UserError, match=f"no public checkpoint of {name}: .*experiment=train model={name}") as caught:
        models.load(name)
    assert "\n" not in str(caught.value)
    lm = models.blank(name, seed=0)
    assert lm.config.variant in variants.modules() and lm.name == name
    assert len(lm.tokenizer) <= lm.config.vocab_size
    assert torch.isfinite(lm(torch.tensor([lm.tokenizer.encode("a b")]))[0][..., :lm.config.vocab_size]).all()


@pytest.mark.parametrize("name", RECIPES)
def test_what_was_trained_from_a_recipe_is_loaded_from_its_folder(name, tmp_path):
    lm = models.blank(name, seed=1)
    models.save(lm, tmp_path)
    again = models.load(tmp_path)
    assert again.config == lm.config
    assert all(torch.equal(x, again.state_dict()[n]) for n, x in lm.state_dict().items())


def test_a_recipe_holds_no_weights():
    assert not any(path.suffix in (".safetensors", ".bin") for folder in RECIPES.values() for path in folder.iterdir())
