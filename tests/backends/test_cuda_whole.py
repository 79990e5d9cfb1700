"""The backend `cuda` where nobody watches: what goes into one call of mamba-ssm's, what does not, and that both say the same."""
import warnings

import pytest
import torch
from oracles import deviation
from small import small, tokens

import mamba_mi
from mamba_mi.backends import cuda, cuda_gradients, cuda_library, reference
from mamba_mi.config import stream
from mamba_mi.models import mamba1, mamba2, moe
from mamba_mi.models.mixer import RMSNorm
from mamba_mi.trace import BLIND, Site, Trace
from tests.backends import stand_in, stand_in_whole

WHOLE = {"mamba1": "mamba_inner_fn", "mamba2": "mamba_split_conv1d_scan_combined"}
SIZES = {"mamba1": {}, "mamba2": {"ssm_cfg": {"layer": "Mamba2", "d_state": 8, "headdim": 8, "ngroups": 2, "dt_limit": [0.05, 0.5]}}}


@pytest.fixture(params=WHOLE)
def variant(request):
    return request.param


def layers(variant, stood_in, dtype="float64", modules=None, **how):
    """A model's second layer on this backend and on the reference, and a stream for it."""
    lms = [small(variant, dtype=dtype, **SIZES[variant]) for _ in range(2)]  # before a device is said to be there
    ours, wide = (lm.layers[1] for lm in lms)
    ours.backend, wide.backend = stood_in(modules, **how), reference
    return ours, wide.double(), torch.randn(2, 21, 32, dtype=torch.float64, generator=stream(0, "stream")).to(lms[0].norm_f.weight.dtype)


def called(*but):
    return {name for name, _ in stand_in.CALLS} - set(but)


@pytest.mark.parametrize("length", [1, 2, 21])
def test_a_layer_that_nobody_watches_is_one_call_and_what_it_is_step_by_step(stood_in, variant, length):
    ours, wide, x = layers(variant, stood_in)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        out, state = ours(x[:, :length], keep=False)
    assert called() == {"rms_norm_fn", WHOLE[variant]} and state is None
    assert deviation(out - x[:, :length], wide(x[:, :length], keep=False)[0] - x[:, :length]) <= 1e-12


@pytest.mark.parametrize("length", [1, 2, 3, 21])
def test_mamba2s_call_gives_the_state_to_go_on_from_and_mamba1s_gives_none(stood_in, variant, length):
    ours, wide, x = layers(variant, stood_in)
    got, want = ours(x[:, :length]), wide(x[:, :length])
    assert (called() == {"rms_norm_fn", WHOLE[variant]}) == (variant == "mamba2") and (WHOLE[variant] in called()) == (variant == "mamba2")
    for one, other in zip((got[0], *got[1]), (want[0], *want[1]), strict=True):
        assert deviation(one, other) <= 1e-12
    assert got[1].tail_BKC.untyped_storage().nbytes() <= 16 * got[1].tail_BKC.numel()  # not a part of all that was projected
    after = ours(x[:, length:], past=got[1])[0] if length < 21 else None
    assert after is None or deviation(after, wide(x)[0][:, length:]) <= 1e-12


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_in_the_models_own_type_it_is_as_near_as_step_by_step(stood_in, variant, dtype):
    """Mamba-2's call keeps its states in the type it is given."""
    ours, wide, x = layers(variant, stood_in, dtype, types=())
    want = wide(x.double(), keep=False)[0] - x.double()
    off = [deviation(ours(x, trace, keep=False)[0].double() - x.double(), want) for trace in (BLIND, Trace())]
    assert off[0] <= (1e-5 if dtype == "float32" else 2e-2) and off[0] <= 1.5 * off[1] + 1e-6
    kinds = {kind for name, kind in stand_in.CALLS if name == WHOLE[variant]}
    assert kinds == {torch.float32 if variant == "mamba2" else getattr(torch, dtype)}


class Doubling(torch.nn.Linear):
    def forward(self, x):
        return 2 * super().forward(x)


def another_part(layer, _):
    linear = layer.out_proj
    layer.out_proj = Doubling(linear.in_features, linear.out_features, bias=False).double().requires_grad_(False)
    layer.out_proj.weight.data = linear.weight


def a_bias(layer, _):
    layer.out_proj.bias = torch.nn.Parameter(torch.ones_like(layer.out_proj.weight[:, 0]), requires_grad=False)


def a_hook(layer, _):
    layer.out_proj.register_forward_hook(lambda part, given, made: 2 * made)


def an_early_hook(layer, _):
    layer.out_proj.register_forward_pre_hook(lambda part, given: (given[0] + 1,))


def a_subclass(layer, variant):
    kind = {"mamba1": mamba1, "mamba2": mamba2}[variant].Block

    class Another(kind):
        def select(self, at, *given):
            selected = super().select(at, *given)
            return selected._replace(C_BLGN=2 * selected.C_BLGN)

    layer.__class__ = Another


@pytest.mark.parametrize("change", [another_part, a_bias, a_hook, an_early_hook, a_subclass])
def test_what_a_layer_does_otherwise_is_never_passed_over(stood_in, variant, change):
    ours, wide, x = layers(variant, stood_in)
    plain = wide(x)[0] - x
    for layer in (ours, wide):
        change(layer, variant)
    out, _ = ours(x, keep=False)
    assert WHOLE[variant] not in called() and deviation(out - x, plain) > 1e-3
    assert deviation(out, wide(x)[0]) <= 1e-12


def test_watched_from_a_past_or_for_a_gradient_it_goes_step_by_step(stood_in, variant):
    ours, wide, x = layers(variant, stood_in)
    want, past = wide(x), wide(x)[1]
    with Trace(keep=[Site(1, "scan_out")]) as trace:
        trace.begin(0, 21)
        assert deviation(ours(x, trace, keep=False)[0], want[0]) <= 1e-12
    assert called() == {"rms_norm_fn", "causal_conv1d_fn"} | {"mamba1": {"selective_scan_fn"}, "mamba2": {"mamba_chunk_scan_combined", "rmsnorm_fn"}}[variant]
    assert deviation(ours(x, BLIND, past, keep=False)[0], wide(x, BLIND, past)[0]) <= 1e-12
    asked = x.clone().requires_grad_()
    for one, other in zip(*(torch.autograd.grad(each(asked, keep=False)[0].square().sum(), asked) for each in (ours, wide)), strict=True):
        assert deviation(one, other) <= 1e-12
    ours.D.requires_grad_()
    assert ours(x, keep=False)[0].requires_grad and WHOLE[variant] not in called()
    with torch.no_grad():
        ours(x, keep=False)
    assert WHOLE[variant] in called()


def test_under_autocast_and_in_float64_it_goes_step_by_step(stood_in, variant, monkeypatch):
    ours, _, x = layers(variant, stood_in, "float32")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        ours(x, keep=False)
    monkeypatch.undo()
    ours, wide, x = layers(variant, stood_in, types=())
    assert deviation(ours(x, keep=False)[0], wide(x)[0]) <= 1e-12 and WHOLE[variant] not in called()


def arguments(variant, device="cpu", *, width=4, length=5, states=8, heads=8, head=16):
    """The verb of this layer and what it is given: E = heads head, R = 2."""
    def of(*sizes):
        return torch.rand(*sizes, dtype=torch.float32, device=device, generator=stream(0, "arguments") if device == "cpu" else None)

    inner = head * heads
    if variant == "mamba1":
        return cuda.whole_mamba1, [of(2, length, 2 * inner), of(inner, width), of(inner), of(2 + 2 * states, inner), of(inner, 2), of(inner),
                                   -of(inner, states), of(inner), of(32, inner)], {}
    channels = inner + 2 * states
    return cuda.whole_mamba2, [of(2, length, inner + channels + heads), of(channels, width), of(channels), of(heads), -of(heads),
                               of(heads), of(inner), 1e-5], {"groups": 1, "dt_limit": (0.0, float("inf")), "keep": False}


@pytest.mark.parametrize("sizes", [{}, {"width": 2}, {"width": 5}, {"states": 256}, {"states": 257}, {"heads": 3}, {"states": 10},
                                   {"length": 1, "heads": 3, "head": 4}, {"heads": 4, "states": 10}, {"heads": 2, "head": 3, "states": 1},
                                   {"heads": 1024}, {"heads": 1032}],
                         ids=str)
def test_what_the_call_does_not_do_it_is_not_asked(stood_in, variant, sizes):
    stood_in()
    verb, given, how = arguments(variant, **sizes)
    refused = sizes in ({"width": 5}, {"states": 257}) or variant == "mamba2" and sizes not in (
        {}, {"width": 2}, {"states": 256}, {"heads": 1024})
    assert (verb(*given, **how) is None) == refused == (not called()) and not cuda_gradients.told


def test_places_that_32_bits_cannot_hold_are_not_asked_for(stood_in, variant):
    stood_in()
    verb, given, how = arguments(variant, "meta", length=2**25)
    assert verb(*given, **how) is None and not called()


def test_nor_are_those_of_the_states_that_mamba2s_makes_at_the_borders_of_its_chunks(stood_in, monkeypatch, variant):
    stood_in()
    verb, given, how = arguments(variant, length=65, states=256)
    most = {"mamba1": given[0].numel(), "mamba2": 2 * 2 * 128 * 256}[variant]
    assert most >= given[0].numel()
    for numbers, refused in ((most, True), (most + 1, False)):
        monkeypatch.setattr(cuda_library, "MOST_NUMBERS", numbers)
        assert (verb(*given, **how) is None) == refused == (not called())


@pytest.mark.parametrize("narrowed", range(9))
def test_a_type_that_mamba1s_call_cannot_take_it_is_not_given(stood_in, narrowed):
    stood_in()
    verb, given, _ = arguments("mamba1")
    given[narrowed] = given[narrowed].bfloat16()
    assert verb(*given) is None and not called()


OTHERS = {"tiny": "mamba2", "tiny-mamba1": "mamba1", "tiny-moe": "mamba1", "tiny-densemamba": None, "tiny-hyena": None, "tiny-retnet": None}


@pytest.mark.parametrize("name", OTHERS)
def test_every_family_says_the_same_unwatched(stood_in, name):
    lm = mamba_mi.load(name, backend="chunked", device="cpu", dtype="float64")
    ids = torch.arange(1, 21)[None].repeat(2, 1)
    other = lm.on("chunked")
    backend = stood_in()
    for layer in other.layers:
        layer.backend = backend
    got, want = (each.through(each.embed(ids), keep=False)[0].detach() for each in (other, lm))
    assert deviation(got, want) <= 1e-9
    norms = [name for name, part in lm.layers.named_modules() if isinstance(part, RMSNorm) and name.rpartition(".")[2] in ("norm", "norm_moe")]
    assert [name for name, _ in stand_in.CALLS].count("rms_norm_fn") == len(norms)
    taken = called("rms_norm_fn", "rmsnorm_fn") & set(WHOLE.values())
    wide = name != "tiny" or not (2 * lm.config.d_inner + 2 * lm.config.ngroups * lm.config.d_state + lm.config.heads) % 8
    assert taken == ({WHOLE[OTHERS[name]]} if OTHERS[name] and wide else set())


def test_falcon_mamba_which_norms_what_it_selects_by_goes_step_by_step(stood_in):
    lm = small("falcon_mamba")
    other, backend = lm.on("chunked"), stood_in()
    for layer in other.layers:
        layer.backend = backend
    got, want = (each.through(each.embed(tokens(2, 9)), keep=False)[0] for each in (other, lm))
    assert deviation(got, want) <= 1e-12 and called() == {"rms_norm_fn", "causal_conv1d_fn", "selective_scan_fn"}


def test_a_layer_beside_experts_goes_step_by_step_with_both_its_norms(stood_in):
    config = moe.Config(d_model=32, n_layer=1, vocab_size=1, padded_vocab=1, dt_rank=2, d_state=4, pattern=("r1",), d_ff=16)
    ours, wide = (moe.Block(config, 0, backend).double().requires_grad_(False) for backend in (stood_in(), reference))
    ours.initialise(stream(0, "beside"))
    wide.load_state_dict(ours.state_dict())
    x = torch.randn(2, 9, 32, dtype=torch.float64, generator=stream(1, "beside"))
    assert deviation(ours(x, keep=False)[0], wide(x)[0]) <= 1e-12
    assert sorted(name for name, _ in stand_in.CALLS) == ["causal_conv1d_fn", "rms_norm_fn", "rms_norm_fn", "selective_scan_fn"]


def test_what_is_not_built_is_said_to_be_so_whatever_else_lacks(stood_in):
    stood_in({name: holds for name, holds in without(MAMBA1, selective_scan_cuda=None).items() if name != "causal_conv1d"})
    assert "is built without selective_scan_cuda" in cuda_library.library().lacks["selective_scan_fn"]
    assert "is not installed" in cuda_library.library().lacks["causal_conv1d_fn"]


def without(module, **parts):
    holds = {name: dict(held) for name, held in stand_in.NEW.items()}
    for name, value in parts.items():
        holds[module][name] = value
    return {name: {key: value for key, value in held.items() if value is not ...} for name, held in holds.items()}


MAMBA1, MAMBA2 = "mamba_ssm.ops.selective_scan_interface", "mamba_ssm.ops.triton.ssd_combined"
LACKING = [("mamba1", without(MAMBA1, mamba_inner_fn=...), "mamba-ssm 0 has no mamba_inner_fn"),
           ("mamba2", without(MAMBA2, mamba_split_conv1d_scan_combined=...), "mamba-ssm 0 has no mamba_split_conv1d_scan_combined"),
           ("mamba1", without(MAMBA1, causal_conv1d_fwd_function=None), "mamba-ssm 0 finds no causal-conv1d that it can call"),
           ("mamba2", without(MAMBA2, causal_conv1d_fwd_function=..., causal_conv1d_cuda=None), "mamba-ssm 0 finds no causal-conv1d that it can call"),
           ("mamba1", without(MAMBA1, selective_scan_cuda=None), "mamba-ssm 0 is built without selective_scan_cuda"),
           ("mamba2", {name: holds | dict.fromkeys(holds.keys() & {"causal_conv1d_fwd_function"}) for name, holds in stand_in.NEW.items()
                       if name != "causal_conv1d"}, "causal-conv1d is not installed")]


@pytest.mark.parametrize(("variant", "modules", "said"), LACKING, ids=[f"{variant}: {said}" for variant, _, said in LACKING])
def test_a_call_that_the_library_lacks_is_told_once_and_the_layer_goes_step_by_step(stood_in, variant, modules, said):
    ours, wide, x = layers(variant, stood_in, modules=modules)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(2):
            assert deviation(ours(x, keep=False)[0], wide(x)[0]) <= 1e-12
    mine = [str(each.message) for each in caught if "nobody watches" in str(each.message)]
    assert len(mine) == 1 and mine[0].startswith(f"backend=cuda: a layer that nobody watches is computed step by step: {said}")
    assert WHOLE[variant] not in called()


def unfit(*_, **__):
    raise TypeError("causal_conv1d_fwd(): incompatible function arguments. The following are supported:\n    1. (arg0: torch.Tensor")


def test_two_libraries_that_do_not_fit_together_are_asked_once_and_that_is_told(stood_in, variant):
    modules = without(MAMBA1, mamba_inner_fn=unfit) if variant == "mamba1" else without(MAMBA2, mamba_split_conv1d_scan_combined=unfit)
    ours, wide, x = layers(variant, stood_in, modules=modules)
    with pytest.warns(UserWarning, match="computed step by step: mamba-ssm and causal-conv1d as installed do not fit together .causal_conv1d_fwd"):
        assert deviation(ours(x, keep=False)[0], wide(x)[0]) <= 1e-12
    told, lacks = " ".join(cuda_gradients.told), cuda_library.library().lacks
    assert "\n" not in told and lacks.keys() == {WHOLE[variant]}
    lacks[WHOLE[variant]] = "asked again"
    ours(x, keep=False)
    assert lacks[WHOLE[variant]] == "asked again"


OLD = {"1.2": ("mamba1", without(MAMBA1, mamba_inner_fn=stand_in_whole.mamba_inner_fn_of_1_2)),
       "2.0": ("mamba2", without(MAMBA2, mamba_split_conv1d_scan_combined=stand_in_whole.mamba_split_conv1d_scan_combined_of_2_0))}


@pytest.mark.parametrize("version", OLD)
def test_older_calls_are_called_alike(stood_in, version):
    variant, modules = OLD[version]
    ours, wide, x = layers(variant, stood_in, modules=modules)
    assert deviation(ours(x, keep=False)[0], wide(x)[0]) <= 1e-12 and WHOLE[variant] in called()


def test_mamba1s_norm_is_found_where_older_libraries_had_it(stood_in):
    old = {name: holds for name, holds in stand_in.NEW.items() if "norm" not in name}
    backend = stood_in(old | {"mamba_ssm.ops.triton.layernorm": {"rms_norm_fn": stand_in_whole.rms_norm_fn_of_1_2}})
    x = torch.ones(1, 2, 8, dtype=torch.float64)
    backend.norm(x, x[0, 0], 1e-5)
    assert called() == {"rms_norm_fn"} and not cuda_gradients.told
    assert torch.equal(backend.gated_norm(x, x, x[0, 0], 1e-5), reference.gated_norm(x, x, x[0, 0], 1e-5))
    assert "a gated norm is computed by chunked, on the same device: mamba-ssm 0 has no rmsnorm_fn" in " ".join(cuda_gradients.told)


@pytest.mark.parametrize(("said", "how"), [
    ("is at most 16384 wide, and 16385 are asked for", {"width": 16385}), ("has no float64", {"dtype": torch.float64}),
    ("reckons places in 32 bits, and 4294967296 numbers are asked for", {"length": 2**20, "width": 4096, "device": "meta"})])
@pytest.mark.parametrize("groups", [1, 2])
def test_a_norm_that_the_library_does_not_do_is_plain_torchs_and_told(stood_in, said, how, groups):
    backend = stood_in(types=())
    sizes = {"length": 1, "width": 16385, "dtype": torch.float32, "device": "cpu"} | how
    width = sizes["width"] * groups
    x = torch.ones(1, 1, width, dtype=sizes["dtype"], device=sizes["device"])
    x, weight = x.expand(1, max(1, sizes["length"] // groups), width), x[0, 0]  # one token many times over takes as many places in what is made
    for got in (backend.norm(x, weight, 1e-5, groups=groups), backend.gated_norm(x, x, weight, 1e-5, groups=groups)):
        assert got.shape == x.shape and (x.is_meta or got.isfinite().all())
    assert not called() and sum(said in each for each in cuda_gradients.told) == 2


def test_nor_one_of_a_part_of_so_many_numbers(stood_in):
    backend = stood_in(types=())
    z, weight = torch.empty(1, 2**20, 2**12, device="meta")[..., :64], torch.empty(64, device="meta")
    assert backend.gated_norm(torch.empty(z.shape, device="meta"), z, weight, 1e-5).shape == z.shape
    assert not called() and "4294963264 numbers are asked for" in " ".join(cuda_gradients.told)
