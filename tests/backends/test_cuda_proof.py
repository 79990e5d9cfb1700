"""The backend `cuda` is tried before it is used: a build that computes something else is refused, whichever call it is in."""
import pytest
import torch

from mamba_mi import UserError, backends
from mamba_mi.backends import chunked, cuda, proving
from tests.backends import stand_in


@pytest.fixture
def unproved():
    proving.prove.cache_clear()
    yield
    proving.prove.cache_clear()


def test_a_right_backend_is_proved_once_and_taken(stood_in, unproved):
    stood_in(types=())
    assert proving.prove("cuda", "cpu") == "" and len(stand_in.CALLS) == 11
    assert proving.prove("cuda", "cpu") == "" and len(stand_in.CALLS) == 11 and len(dict(stand_in.CALLS)) == 7
    for name in ("chunked", "reference"):
        assert proving.prove(name, "cpu") == ""


def broken(**changed):
    """The libraries with one of their functions doing something else."""
    return {name: {key: changed.get(key, value) for key, value in holds.items()} for name, holds in stand_in.NEW.items()}


def raising(*_, **__):
    raise RuntimeError("CUDA error: no kernel image is available\nfor execution on the device")


def changing(kernel, change):
    def changed(*args, **kwargs):
        made = kernel(*args, **kwargs)
        return (change(made[0]), made[1]) if isinstance(made, tuple) else change(made)
    return changed


def with_another_state(kernel):
    def changed(*args, **kwargs):
        y, h = kernel(*args, **kwargs)
        return y, h * 1.01
    return changed


BROKEN = [({"selective_scan_fn": changing(stand_in.selective_scan_fn, lambda y: y * 1.1)}, "the scan of many decays a head is off by 1e-01 from the recurrence"),
          ({"mamba_chunk_scan_combined": changing(stand_in.mamba_chunk_scan_combined, lambda y: y * torch.nan)},
           "the scan of one decay a head is off by nan"),
          ({"mamba_chunk_scan_combined": with_another_state(stand_in.mamba_chunk_scan_combined)}, "the last state of the scan of one decay a head is off by 1e-02"),
          ({"causal_conv1d_fn": changing(stand_in.causal_conv1d_fn, torch.zeros_like)}, "the conv is off by 1e+00"),
          ({"rms_norm_fn": changing(stand_in.rms_norm_fn, lambda y: y * 1.1)}, "the norm is off by 1e-01"),
          ({"rmsnorm_fn": changing(stand_in.rmsnorm_fn, lambda y: y * 1.1)}, "the gated norm is off by 1e-01"),
          ({"mamba_inner_fn": changing(stand_in.mamba_inner_fn, lambda y: y * 1.1)}, "a layer of mamba1 that nobody watches is off by 1e-01"),
          ({"mamba_split_conv1d_scan_combined": changing(stand_in.mamba_split_conv1d_scan_combined, lambda y: y * 1.1)},
           "a layer of mamba2 that nobody watches is off by 1e-01"),
          ({"mamba_split_conv1d_scan_combined": with_another_state(stand_in.mamba_split_conv1d_scan_combined)},
           "the last state of a layer of mamba2 that nobody watches is off by 1e-02"),
          ({"mamba_inner_fn": raising}, "it was tried and raised RuntimeError: CUDA error: no kernel image is available"),
          ({"causal_conv1d_fn": raising}, "it was tried and raised RuntimeError: CUDA error: no kernel image is available")]


@pytest.mark.parametrize(("changed", "said"), BROKEN, ids=[f"{next(iter(changed))}: {said}" for changed, said in BROKEN])
def test_a_build_that_computes_something_else_is_refused_and_passed_over(stood_in, unproved, monkeypatch, changed, said):
    stood_in(broken(**changed), types=())
    monkeypatch.setattr(cuda, "DEVICES", ("cpu", "cuda"))  # as if the CPU were the device
    with pytest.raises(UserError, match="^backend=cuda cannot run: ") as caught:
        backends.choose("cuda", "cpu")
    assert said in str(caught.value) and "\n" not in str(caught.value) and "backend=auto" in str(caught.value)
    choice = backends.choose("auto", "cpu")
    assert choice.used != "cuda" and "not cuda: " in choice.why and said in choice.why
    assert "cuda" not in backends.available("cpu")


@pytest.mark.parametrize(("verb", "said"), [
    (chunked.states_at, "a state within"), (chunked.mixing, "a row of the matrix of"), (chunked.mixing_over_heads, "the heads taken together of")])
def test_every_verb_of_a_scan_is_tried(unproved, monkeypatch, verb, said):
    monkeypatch.setattr(chunked, verb.__name__, lambda *given, **how: verb(*given, **how) * 1.1)
    assert proving.prove("chunked", "cpu").startswith(f"{said} the scan of one decay a head is off by 1e-01 from the recurrence")


def test_auto_takes_it_first_where_it_runs(stood_in, unproved, monkeypatch):
    stood_in(types=())
    monkeypatch.setattr(cuda, "DEVICES", ("cpu",))
    assert backends.choose("auto", "cpu")[:2] == ("auto", "cuda")
    assert backends.choose("cuda", "cpu") == ("cuda", "cuda", "asked for", "ieee")
