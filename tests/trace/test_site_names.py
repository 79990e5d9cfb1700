"""Other libraries' names for our sites: each points at the same quantity, or says that there is none."""
import pytest
import torch
from oracles import MAMBA1, MAMBA2, deviation, random_checkpoint
from oracles.hugging_face import transformers_model

from mamba_mi import Add, Edit, Scale, Site, StateEdit, Trace, UserError, load
from mamba_mi.hook_names import BLOCK, OTHER, OUTER
from mamba_mi.models.mixer import Mixer
from mamba_mi.trace import NeverReached, site_name
from tests.small import small, tokens

# as MambaLens's README defines them, in a block's order: what they are as formulas of our own sites, for Mamba-1
FORMULAS = {
    "hook_normalized_input": lambda lm, v: lm.layers[1].norm(v["hook_resid_pre"]),
    "hook_in_proj": lambda lm, v: v["hook_normalized_input"] @ lm.layers[1].in_proj.weight[:64].T,
    "hook_skip": lambda lm, v: v["hook_normalized_input"] @ lm.layers[1].in_proj.weight[64:].T,
    "hook_ssm_input": lambda lm, v: torch.nn.functional.silu(torch.nn.functional.conv1d(
        v["hook_in_proj"].mT, lm.layers[1].conv1d.weight, lm.layers[1].conv1d.bias, padding=3, groups=64).mT[:, :-3]),
    "hook_delta": lambda lm, v: torch.nn.functional.softplus(
        lm.layers[1].dt_proj(v["hook_ssm_input"] @ lm.layers[1].x_proj.weight[:2].T)),
    "hook_B": lambda lm, v: (v["hook_ssm_input"] @ lm.layers[1].x_proj.weight[2:6].T)[:, :, None],
    "hook_C": lambda lm, v: (v["hook_ssm_input"] @ lm.layers[1].x_proj.weight[6:].T)[:, :, None],
    "hook_ssm_output": lambda lm, v: (v["hook_h"][:, :, :, 0] * v["hook_C"]).sum(-1) + lm.layers[1].D * v["hook_ssm_input"],
    "hook_after_skip": lambda lm, v: v["hook_ssm_output"] * torch.nn.functional.silu(v["hook_skip"]),
    "hook_out_proj": lambda lm, v: v["hook_after_skip"] @ lm.layers[1].out_proj.weight.T,
    "hook_resid_post": lambda lm, v: v["hook_resid_pre"] + v["hook_out_proj"],
}
MAMBA_LENS = ("hook_resid_pre", "hook_h", *FORMULAS)


def test_each_name_of_mambalens_is_the_quantity_its_definition_says():
    lm, tokens_BL = small("mamba1"), tokens(2, 6)
    with Trace(keep=[f"blocks.1.{name}" for name in MAMBA_LENS]) as trace:
        lm(tokens_BL, trace=trace)
    values = {name: trace.values[f"blocks.1.{name}"] for name in MAMBA_LENS}
    for name, formula in FORMULAS.items():
        torch.testing.assert_close(values[name], formula(lm, values), rtol=1e-10, atol=1e-12)
    dt, A = values["hook_delta"], -lm.layers[1].A_log.exp()
    h = torch.zeros(2, 64, 4, dtype=torch.float64)
    for t in range(6):  # h * A_bar + B_bar * x
        h = h * (dt[:, t, :, None] * A).exp() + (dt[:, t, :, None] * values["hook_B"][:, t]) * values["hook_ssm_input"][:, t, :, None]
        torch.testing.assert_close(values["hook_h"][:, t, :, 0], h)
        assert torch.equal(trace.values[f"blocks.1.hook_h.{t}"][:, 0], values["hook_h"][:, t])


def seen_by_hooks(model, tokens_BL):
    """What enters and leaves the modules of a transformers model, by the names TransformerLens 4 gives that."""
    seen, layer = {}, model.backbone.layers[1]
    modules = {"": layer, "norm.": layer.norm, "mixer.": layer.mixer, "mixer.in_proj.": layer.mixer.in_proj,
               "mixer.out_proj.": layer.mixer.out_proj}
    if hasattr(layer.mixer, "norm"):
        modules["mixer.inner_norm."] = layer.mixer.norm
    handles = []
    for name, module in modules.items():
        def note(_, given, kwargs, out, name=name):
            given = [*given, *kwargs.values()]
            seen[f"{name}hook_in"], seen[f"{name}hook_out"] = given[0], out[0] if isinstance(out, tuple) else out
            if name == "mixer.inner_norm.":
                seen[f"{name}hook_gate"] = given[1]
        handles.append(module.register_forward_hook(note, with_kwargs=True))
    with torch.no_grad():
        model(tokens_BL)
    for handle in handles:
        handle.remove()
    return seen


@pytest.mark.parametrize("config", [MAMBA1, MAMBA2], ids=["mamba1", "mamba2"])
def test_each_name_of_transformerlens_is_what_passes_through_that_module(config, tmp_path):
    weights, tokens_BL = random_checkpoint(tmp_path, config, 0), tokens(2, 6, vocab=45)
    seen, lm = seen_by_hooks(transformers_model(config, weights), tokens_BL), load(tmp_path)
    named = [name for name in BLOCK if name in seen]
    assert len(named) == (11 if "layer" in config["ssm_cfg"] else 8)  # the conv is called by its weight: no hook fires
    with Trace(keep=[f"blocks.1.{name}" for name in named]) as trace:
        lm(tokens_BL, trace=trace)
    for name in named:
        assert deviation(trace.values[f"blocks.1.{name}"], seen[name]) <= 1e-5, name


def test_every_name_of_the_table_is_a_site_and_every_site_but_write_has_one():
    assert set(BLOCK.values()) == set(Mixer.SITES) - {"write"}
    assert set(OUTER.values()) == {"embed", "final_norm"}
    assert not set(OTHER) & {*BLOCK, *OUTER}
    for name, ours in BLOCK.items():
        assert Site.of(f"blocks.3.{name}") == Site(3, ours) and site_name(name) == ours
    for name, ours in OUTER.items():
        assert Site.of(name) == Site.of(ours) == Site(-1, ours) and site_name(name) == ours


def test_our_own_names_stay_as_they_are():
    for site in (Site(3, "dt"), Site(-1, "embed")):
        assert Site.of(str(site)) == Site.of(tuple(site)) == Site.of(site) == site
    assert site_name("resid") == "resid" and site_name("nonsense") == "nonsense"
    assert Site.of((3, "hook_delta")) == Site(3, "dt")


def test_a_kept_site_is_found_under_either_name():
    lm = small("mamba2")
    with Trace(keep="blocks.1.hook_delta") as trace:
        lm(tokens(1, 5), trace=trace)
    assert trace.values["blocks.1.hook_delta"] is not None
    assert set(trace.values) == {Site(1, "dt")}
    assert torch.equal(trace.values["blocks.1.hook_delta"], trace.values[Site(1, "dt")])
    with pytest.raises(KeyError, match="blocks.2.hook_delta.*kept are 1.dt"):
        _ = trace.values["blocks.2.hook_delta"]


def test_a_position_in_a_name_is_absolute():
    lm, tokens_BL = small("mamba1"), tokens(1, 6)
    _, past = lm(tokens_BL[:, :4])
    with Trace(keep=["blocks.0.hook_h.5"]) as trace:
        lm(tokens_BL[:, 4:], trace=trace, past=past)
    with Trace(keep=["blocks.0.hook_h", "blocks.0.hook_h.5"]) as whole:
        lm(tokens_BL[:, 4:], trace=whole, past=past)
    assert torch.equal(whole.values["blocks.0.hook_h.5"], whole.values[Site(0, "state")][:, 1:2])
    torch.testing.assert_close(trace.values["blocks.0.hook_h.5"], whole.values["blocks.0.hook_h.5"])
    with pytest.raises(KeyError, match=r"blocks\.0\.hook_h\.3.*positions 4-5"):
        _ = whole.values["blocks.0.hook_h.3"]


def test_an_edit_by_either_name_is_the_same_edit():
    lm, tokens_BL = small("mamba1"), tokens(1, 6)

    def logits(edit):
        with Trace(interventions=[edit]) as trace:
            return lm(tokens_BL, trace=trace)[0]

    op = Add(torch.ones(1, dtype=torch.float64))
    for name, ours in (*BLOCK.items(), ("hook_h.2", "state")):
        assert torch.equal(logits(Edit(f"blocks.1.{name}", 2, op)), logits(Edit(Site(1, ours), 2, op))), name
    assert torch.equal(logits(Edit("blocks.1.hook_h.2", 2, op)), logits(StateEdit(1, 2, op)))
    assert torch.equal(logits(Edit("hook_norm", 5, op)), logits(Edit(Site(-1, "final_norm"), 5, op)))
    with pytest.raises(UserError, match=r"blocks\.1\.hook_h\.2: names position 2, and positions=\(3,\)"):
        Edit("blocks.1.hook_h.2", 3, op)


@pytest.mark.parametrize("name", OTHER)
def test_what_others_have_and_we_do_not_says_what_there_is_instead(name):
    for asked in (name, f"blocks.3.{name}"):
        with pytest.raises(UserError) as caught:
            Site.of(asked)
        assert str(caught.value).startswith(f"{asked}: no site here") and "\n" not in str(caught.value)
    with pytest.raises(UserError, match="no site here"):
        site_name(name)


@pytest.mark.parametrize(("asked", "said"), [
    ("blocks.3.hook_resid_pree", "did you mean 'hook_resid_pre'"), ("blocks.3.hook_attn_out", "no such site"),
    ("blocks.3.attn.hook_pattern", "no such site"), ("blocks.x.hook_h", "no such site"),
    ("blocks.3.hook_h.-1", "counted from the prompt's first token"), ("blocks.3.hook_h.x", "counted from the prompt's first token"), ("hook_h", "at which layer"),
    ("blocks.3.hook_embed", "no such site"), ("dt", 'Write Site(3, \'dt\') or "3.dt"'), ("", "no such site"),
    ("blocks.3.hook_B.2", "no such site"), ("hook\nh", "no such site")])
def test_a_name_that_is_none_is_refused_by_name(asked, said):
    for how in (Site.of, lambda name: Trace(keep=[name]), lambda name: Edit(name, 0, Scale(2.0))):
        with pytest.raises(UserError) as caught:
            how(asked)
        assert str(caught.value).startswith(asked) and said in str(caught.value)


@pytest.mark.parametrize("asked", ["blocks.3.hook_delta", "hook_h.2", "3.dt"])
def test_a_bare_name_is_one_without_layer_or_position(asked):
    with pytest.raises(UserError, match=f"{asked}: .*without layer or position"):
        site_name(asked)


def test_a_site_never_reached_is_said_by_the_name_it_was_asked_for():
    asked = "blocks.99.hook_resid_pre"
    for how in ({"keep": [asked]}, {"interventions": [Edit(asked, 0, Scale(2.0))]}):
        with pytest.raises(NeverReached, match=rf"99\.resid \({asked}\)"), Trace(**how) as trace:
            small("mamba1")(tokens(1, 3), trace=trace)
