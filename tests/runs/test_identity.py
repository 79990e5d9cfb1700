"""The run's id means the settings and nothing else."""
import copy
import hashlib
import subprocess
import sys

import pytest

from mamba_mi.config import UserError
from mamba_mi.runs.identity import NOT_IDENTITY, canonical, folder, run_id

CONFIG = {
    "seed": 0, "device": "auto", "threads": None, "dtype": "float32", "tags": ["a", "b"],
    "model": {"name": "tiny", "path": None, "scale": 0.5},
    "dataset": {"name": "facts", "n": 50, "only_correct": True},
    "method": {"name": "patching", "sites": ["resid", "out"], "logger": {"every": 10}, "force": False},
    **{group: {"kind": "none", "deep": {"er": 1}} for group in NOT_IDENTITY},
    "paths": {"logs": "experiment_logs"}, "force": False, "dry_run": False,
}


def leaves(node, trail=()):
    if isinstance(node, dict | list):
        for key, item in node.items() if isinstance(node, dict) else enumerate(node):
            yield from leaves(item, (*trail, key))
    else:
        yield trail


def changed(trail, value="something else") -> dict:
    config = copy.deepcopy(CONFIG)
    place = config
    for key in trail[:-1]:
        place = place[key]
    place[trail[-1]] = value
    return config


@pytest.mark.parametrize("trail", list(leaves(CONFIG)), ids=lambda trail: ".".join(map(str, trail)))
def test_every_setting_counts_but_those_declared_not_to(trail):
    assert (run_id(changed(trail)) == run_id(CONFIG)) is (trail[0] in NOT_IDENTITY)


@pytest.mark.parametrize("group", NOT_IDENTITY)
def test_what_does_not_count_may_be_missing(group):
    assert run_id({key: value for key, value in CONFIG.items() if key != group}) == run_id(CONFIG)


def test_exactly_these_do_not_count():
    assert set(NOT_IDENTITY) == {"hydra", "logger", "paths", "launcher", "force", "dry_run", "hparams_search"}


def test_the_id_is_the_beginning_of_a_sha256_over_the_version_and_the_json():
    text = '1:{"a":[1,2],"b":{"x":null,"y":true},"c":"\\u00e9"}'
    config = {"c": "é", "b": {"y": True, "x": None}, "a": (1.0, 2), "paths": {"logs": "elsewhere"}}
    assert run_id(config) == hashlib.sha256(text.encode()).hexdigest()[:12]


@pytest.mark.parametrize("one, other, same", [
    (1, 1.0, True), (-0.0, 0, True), ([1, 2], (1, 2), True), ({"a": 1, "b": 2}, {"b": 2, "a": 1}, True),
    (0.3, 0.1 + 0.2, False), (1, True, False), (1, "1", False), (None, "null", False),
    ([1, 2], [2, 1], False), (0.0, False, False), (float("inf"), 1e308, False), ({}, [], False),
])
def test_equal_values_are_the_same_however_written(one, other, same):
    assert (canonical({"x": one}) == canonical({"x": other})) is same


def test_an_unresolved_value_is_not_hashed_by_its_address():
    with pytest.raises(TypeError, match=r"config\.model\.net is a object"):
        run_id({"model": {"net": object()}})


def test_the_folder_is_named_by_logs_method_model_and_id():
    assert folder(CONFIG).as_posix() == f"experiment_logs/patching/tiny/{run_id(CONFIG)}"


@pytest.mark.parametrize("name", ["", "..", "a/b", "../../elsewhere"])
def test_a_name_cannot_lead_out_of_the_logs(name):
    with pytest.raises(UserError, match="model.name="):
        folder(changed(("model", "name"), name))


def test_the_rooms_of_runs_load_without_torch():
    code = ("import sys; from mamba_mi.runs import identity, logbook, manifest, store\n"
            "sys.exit(' '.join({'torch', 'transformers', 'wandb', 'hydra'} & set(sys.modules)) or 0)")
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
