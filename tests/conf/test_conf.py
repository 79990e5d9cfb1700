"""The files of conf/: every combination composes, and each says what the code below it understands."""
import itertools
from pathlib import Path

import pytest
from hydra import initialize_config_dir
from omegaconf import OmegaConf

from mamba_mi import backends, data, experiments, models, references
from mamba_mi.cli import values
from mamba_mi.cli.composing import Composer
from mamba_mi.config import typed
from mamba_mi.models import variants
from mamba_mi.runs import logbook, wandb_logbook

CONF = Path(__file__).resolve().parents[2] / "conf"


def options(group: str) -> list[str]:
    return sorted(path.stem for path in (CONF / group).glob("*.yaml"))


PRESETS = {"subspace": "patching", "causal_tracing": "patching"}  # an experiment of its own name otherwise
OFF = {"heads", "dims", "subspace", "draw", "tolerance", "prompts", "best", "path", "bos", "stop"}  # null says no, not without bound
GROUPS = sorted(path.name for path in CONF.iterdir() if path.is_dir() and path.name != "local")


def with_every_experiment(others: list[str], always: tuple[str, ...]) -> list:
    """Pairs of an experiment and one of these: at once patching with all and all with `always`, among the slow tests the rest."""
    return [pytest.param(experiment, other, marks=() if experiment == "patching" or other in always else pytest.mark.slow)
            for experiment, other in itertools.product(options("experiment"), others)]


@pytest.fixture(scope="module")
def compose():
    with initialize_config_dir(str(CONF), version_base="1.3", job_name="test"):
        composer = Composer(None)
        yield lambda *lines: composer.checked(composer.parse(lines))


@pytest.mark.parametrize(("group", "option"), [(group, option) for group in GROUPS for option in options(group)])
def test_every_option_of_every_group_composes(compose, group, option):
    cfg = compose(f"{group}={option}")
    assert cfg.hydra.runtime.choices[group] == option
    if group in ("model", "dataset", "method", "backend", "reference", "steering", "logger"):
        assert cfg[group].name == option


@pytest.mark.parametrize(("experiment", "model"), with_every_experiment(options("model"), ("tiny", "mamba2-1.3b")))
def test_every_experiment_composes_with_every_model_on_its_own_data_set(compose, experiment, model):
    default = compose(f"experiment={experiment}", f"model={model}")
    assert default.dataset.name == ("facts" if model in (*models.EMBEDDED, *models.RECIPES) else "counterfact")
    assert (default.method.name, default.model.name) == (PRESETS.get(experiment, experiment), model)


@pytest.mark.parametrize(("experiment", "dataset"), with_every_experiment(options("dataset"), ("facts", "counterfact")))
def test_every_experiment_composes_with_every_data_set_whichever_is_named_first(compose, experiment, dataset):
    # a model of each default
    for model, place in (("tiny-moe", 0), ("tiny-moe", 1), ("mamba2-1.3b", 1)):
        lines = [f"dataset={dataset}"]
        lines.insert(place, f"model={model}")
        cfg = compose(f"experiment={experiment}", *lines)
        assert (cfg.method.name, cfg.model.name, cfg.dataset.name) == (PRESETS.get(experiment, experiment), model, dataset)


@pytest.mark.parametrize(("debug", "method"), list(itertools.product(options("debug"), options("method"))))
def test_every_debug_preset_makes_every_method_smaller(compose, debug, method):
    full, small = (compose(f"method={method}", *lines).method for lines in ([], [f"debug={debug}"]))
    assert small.keys() == full.keys() and small != full
    assert not {key for key in small if small[key] is None} - OFF


def test_debug_fast_is_eight_prompts_and_fifty_steps(compose):
    patching, training = (compose("debug=fast", f"experiment={name}") for name in ("patching", "train"))
    assert (patching.dataset.n, patching.method.resamples, training.method.steps) == (8, 200, 50)
    assert compose("debug=fast", "dataset.n=20", "experiment=train", "method.steps=7").method.steps == 7
    text = compose("debug=fast", "experiment=train", "dataset=pile").method
    assert (text.steps, text.batch, text.length, text.warmup, text.resamples) == (20, 4, 64, 4, 200)


@pytest.mark.parametrize("experiment", options("experiment"))
def test_debug_fast_logs_nothing_unless_the_command_line_says_so(compose, experiment):
    words = [f"experiment={experiment}", "logger=wandb"]
    modes = [compose(*words, *more).logger.mode for more in ([], ["debug=fast"], ["debug=fast", "logger.mode=offline"])]
    assert modes == ["auto", "disabled", "offline"] and compose("debug=fast").logger == {"name": "none"}


def test_the_keys_of_the_wandb_logbook_are_its_knobs_with_the_same_defaults(compose):
    written = OmegaConf.to_container(compose("logger=wandb").logger)
    assert list(written) == ["name", *wandb_logbook.Knobs.__dataclass_fields__]
    assert wandb_logbook._typed(written) == wandb_logbook.Knobs()


def test_what_an_experiment_changes_wins_over_the_groups_and_loses_to_the_command_line(compose):
    assert compose("experiment=train").method.name == "train"
    assert compose("experiment=train", "method=patching").method.name == "patching"
    assert compose("method=train").method.name == "train"
    assert compose("~experiment").method.name == "patching"


@pytest.mark.parametrize("method", options("method"))
def test_a_methods_keys_are_its_experiments_knobs_with_the_same_defaults(compose, method):
    written = OmegaConf.to_container(compose(f"method={method}").method, resolve=True)
    knobs = experiments.get(method).Knobs
    assert list(written) == ["name", *knobs.__dataclass_fields__]
    assert experiments.knobs_of(experiments.get(method), written) == knobs()


@pytest.mark.parametrize("dataset", options("dataset"))
def test_a_data_sets_keys_are_its_modules_knobs(compose, dataset):
    written = OmegaConf.to_container(compose(f"dataset={dataset}").dataset, resolve=True)
    schema = data._module(dataset).Knobs
    assert set(written) == set(schema.__dataclass_fields__)
    typed(schema, written, "dataset")


@pytest.mark.parametrize("model", options("model"))
def test_a_models_sizes_agree_with_each_other_and_with_its_name(compose, model):
    cfg = compose(f"model={model}").model
    assert cfg.variant in variants.modules() and cfg.path is None
    if cfg.variant == "mamba2":
        assert cfg.sizes.n_heads * cfg.sizes.headdim == cfg.sizes.d_inner == 2 * cfg.sizes.d_model
    if cfg.variant == "mamba1":
        assert cfg.sizes.d_inner == 2 * cfg.sizes.d_model == 32 * cfg.sizes.dt_rank
    if model in models.HUB:
        assert cfg.hub == models.HUB[model] and cfg.tokenizer
        assert model in variants.modules()[cfg.variant].PUBLISHED
    if model.startswith(("mamba-", "mamba2-")):
        assert cfg.tokenizer == "EleutherAI/gpt-neox-20b"
        assert parameters(cfg) == pytest.approx(named(model), rel=0.05)


@pytest.mark.parametrize("model", [*models.HUB])
def test_the_count_of_a_published_model_is_that_of_its_sizes(compose, model):
    cfg = compose(f"model={model}").model
    published = variants.modules()[cfg.variant].PUBLISHED[model]
    assert published.repo == cfg.hub and published.parameters == built(cfg)
    if cfg.variant in ("mamba1", "mamba2"):
        assert published.parameters == parameters(cfg) + (padded(cfg) - cfg.sizes.vocab_size) * cfg.sizes.d_model


def test_every_model_has_its_file_and_every_backend_too():
    assert set(options("model")) == {*models.HUB, *models.EMBEDDED, *models.RECIPES}
    assert set(options("backend")) == {"auto", *backends.names()}
    assert {PRESETS.get(name, name) for name in options("experiment")} == set(options("method")) == set(experiments.names())
    assert set(options("dataset")) == set(data.names())
    assert set(options("reference")) == {"none", *references.names()}
    assert set(options("logger")) == set(logbook.KINDS)
    assert values.DTYPES == models.DTYPES


def parameters(cfg) -> int:
    """Counted from the published shapes, one tensor after another."""
    s = cfg.sizes
    if cfg.variant == "mamba1":
        mixer = (2 * s.d_inner * s.d_model + s.d_inner * (s.d_conv + 1) + (s.dt_rank + 2 * s.d_state) * s.d_inner
                 + s.d_inner * (s.dt_rank + 1) + s.d_inner * s.d_state + s.d_inner + s.d_model * s.d_inner)
    else:
        conv = s.d_inner + 2 * s.n_groups * s.d_state
        mixer = ((s.d_inner + conv + s.n_heads) * s.d_model + conv * (s.d_conv + 1) + 3 * s.n_heads + s.d_inner
                 + s.d_model * s.d_inner)
    return s.vocab_size * s.d_model + s.n_layer * (mixer + s.d_model) + s.d_model


def built(cfg) -> int:
    """Counted from an empty model of the file's sizes."""
    said = OmegaConf.to_container(cfg.sizes) | {"padded_vocab": padded(cfg)}
    said |= {"l_max": None, "max_length": said.get("l_max"), "pattern": said.get("pattern", "").split() * (said["n_layer"] // 2)}
    said |= {"d_ff": said.get("d_ff", said.get("d_inner"))}
    module = variants.modules()[cfg.variant]
    sizes = {name: said[name] for name in module.Config.__dataclass_fields__ if said.get(name)}
    return sum(x.numel() for x in models._empty(module, module.Config(**sizes), "chunked", "cpu", cfg.name, None).parameters())


def padded(cfg) -> int:
    multiple = {"mamba1": 8, "mamba2": 16, "hyena": 8}.get(cfg.variant, 1)
    return -(-cfg.sizes.vocab_size // multiple) * multiple


def named(model: str) -> float:
    size = model.split("-")[1]
    return float(size[:-1]) * {"m": 1e6, "b": 1e9}[size[-1]]


@pytest.mark.parametrize("experiment", ["construct", "compare_paths"])
def test_both_paths_are_run_on_every_record(compose, experiment):
    chosen = compose(f"experiment={experiment}", "model=mamba2-1.3b").dataset
    assert (chosen.name, chosen.n, chosen.only_correct, chosen.repeats) == ("counterfact", None, False, True)
    assert compose(f"experiment={experiment}", "model=mamba2-1.3b", "dataset.repeats=false").dataset.repeats is False
    assert compose("model=mamba2-1.3b").dataset.repeats is False
