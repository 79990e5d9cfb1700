"""What things are called in W&B."""
from mamba_mi.runs import wandb_names as names


def row(metric="hit", mean=0.5, **conditions):
    return {"conditions": conditions, "metric": metric, "n": 3, "mean": mean, "ci_low": None, "p": 0.1}


def test_a_key_has_its_numbers_last_and_named():
    keys = names.headline_keys([row(direction="noising", layer=3, role="last", window_size=2, conv=None)])
    assert keys == {"hit/noising/last/layer_3/window_size_2/mean": 0.5, "hit/noising/last/layer_3/window_size_2/n": 3}


def test_no_two_cells_share_a_key():
    rows = [row(metric, site=site, layer=layer) for metric in "ab" for site in "xy" for layer in (1, 11)]
    assert len(names.headline_keys(rows)) == 2 * len(rows)


def test_the_headline_is_bounded():
    rows = [row(layer=layer) for layer in range(names.MOST + 7)]
    assert len(names.headline_keys(rows)) == 2 * names.MOST


def test_what_is_nested_becomes_a_path_and_lists_are_left_out():
    measured = {"seconds": 2.0, "deviation": {"max_abs": 1e-6, "tokens": [1, 2]}, "hook_counts": {"resid": 5}}
    assert dict(names.flat(measured, "run")) == {
        "run/seconds": 2.0, "run/deviation/max_abs": 1e-6, "run/hook_counts/resid": 5}


def test_a_table_has_every_column_of_every_row():
    columns, data = names.table_of([row(task="a"), row(layer=2) | {"note": "few"}])
    assert columns == ["task", "metric", "n", "mean", "ci_low", "p", "layer", "note"]
    assert data == [["a", "hit", 3, 0.5, None, 0.1, None, None], [None, "hit", 3, 0.5, None, 0.1, 2, "few"]]


def test_tags_are_given_once_and_no_longer_than_w_and_b_takes():
    assert names.tags(["a", "b", "a", "", "x" * 70]) == ("a", "b", "x" * 64)
