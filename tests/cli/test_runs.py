"""What reaches the runner, what its failures become, and what is left on the disk."""
import sys
from datetime import datetime
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from mamba_mi.config import UserError
from mamba_mi.models import EMBEDDED
from mamba_mi.runs.identity import folder, run_id


def plain(cfg) -> dict:
    return OmegaConf.to_container(cfg, resolve=True)


def test_the_command_alone_is_patching_the_tiny_model_on_the_facts(command):
    answer = command()
    alone, spelled = answer.ran[0], command("experiment=patching", "model=tiny", "dataset=facts").ran[0]
    assert (alone.method.name, alone.model.name, alone.dataset.name, alone.seed) == ("patching", "tiny", "facts", 0)
    assert plain(alone) == plain(spelled) and "hydra" not in alone


def test_a_run_leaves_nothing_but_what_the_runner_writes(command):
    answer = command("seed=4")
    assert (answer.code, answer.left, list(Path().iterdir())) == (0, [], [])


@pytest.mark.parametrize("words", [["-m", "seed=0,1,2"], ["seed=0,1,2", "-m"], ["-m", "seeds=three"], ["-m", "seed=range(0,3)"]])
def test_a_sweep_runs_once_for_each_seed(command, words):
    answer = command("dataset.n=5", *words)
    assert answer.code == 0 and [(cfg.seed, cfg.dataset.n) for cfg in answer.ran] == [(0, 5), (1, 5), (2, 5)]
    assert "run 2 of 3: seed=1" in answer.out


def test_the_command_line_wins_over_a_set_of_seeds(command):
    assert [cfg.seed for cfg in command("-m", "seeds=three", "seed=7,8").ran] == [7, 8]


def test_in_a_sweep_over_models_each_has_its_own_data_set(command):
    ran = command("-m", "model=tiny,mamba2-1.3b", "seed=0,1").ran
    assert [(cfg.model.name, cfg.dataset.name, cfg.seed) for cfg in ran] == [
        ("tiny", "facts", 0), ("tiny", "facts", 1), ("mamba2-1.3b", "counterfact", 0), ("mamba2-1.3b", "counterfact", 1)]


@pytest.mark.parametrize("path", ["facts.parquet", "../my facts/a.csv", "'a,b.csv'"])
def test_a_sweep_may_set_a_key_that_only_its_jobs_have(command, path):
    words = ["model=mamba-130m,mamba2-130m", f"dataset.path={path}"]
    ran = command("-m", *words).ran
    alone = command("model=mamba2-130m", words[1]).ran[0]
    assert [cfg.model.name for cfg in ran] == ["mamba-130m", "mamba2-130m"]
    assert plain(ran[1]) == plain(alone)  # though Hydra's composition of what they share, dataset=facts, has no path


@pytest.mark.parametrize("word", ["dataset.weights={Pile-CC:2.0}", "dataset={weights:{Pile-CC:2.0}}"])
def test_a_key_that_is_null_takes_a_mapping(command, word):
    [ran] = command("experiment=train", "model=mamba-130m", "dataset=pile", word).ran
    assert ran.dataset.weights == {"Pile-CC": 2.0}


def test_the_runner_sees_the_command_as_it_was_given(command, runner):
    runner.run = lambda cfg: runner.ran.append(list(sys.argv))
    words = ["model=mamba-130m,mamba2-130m", "-m", "dataset.path=a.csv"]
    assert command(*words).ran == [["launch.py", *words]] * 2


def test_a_glob_names_models(command):
    ran = command("-m", "model=glob(tiny*)").ran
    assert [(cfg.model.name, cfg.dataset.name) for cfg in ran] == [(name, "facts") for name in sorted(EMBEDDED)]


def test_a_named_sweep_runs_every_model_it_names_with_every_seed(command):
    ran = command("-m", "sweep=models_mamba2", "seed=0,1").ran
    assert len(ran) == 10 and {cfg.model.variant for cfg in ran} == {"mamba2"}
    assert {cfg.dataset.name for cfg in ran} == {"counterfact"}


def test_a_run_has_one_identity_swept_or_not(command):
    alone = [command(f"seed={seed}", "model=mamba-130m").ran[0] for seed in (0, 1)]
    swept = command("-m", "seed=0,1", "model=mamba-130m").ran
    assert [run_id(plain(cfg)) for cfg in alone] == [run_id(plain(cfg)) for cfg in swept]
    assert folder(plain(alone[0])).parent == Path("experiment_logs/patching/mamba-130m")
    assert len({run_id(plain(cfg)) for cfg in swept}) == 2


def test_where_and_how_often_is_no_part_of_the_identity(command):
    usual = run_id(plain(command().ran[0]))
    assert run_id(plain(command("paths.logs=elsewhere", "force=true", "dry_run=true").ran[0])) == usual
    assert run_id(plain(command("debug=fast").ran[0])) != usual


def test_a_sweep_records_itself_below_multirun(command):
    answer = command("-m", "seed=0,1", "paths.sweeps=sweeps", "experiment=train")
    assert {Path(path).name for path in answer.left} == {".lock", "multirun.yaml", "report.html", "summary.json", "sweep.json"}
    folders = {Path(path).parts[:-1] for path in answer.left}
    assert len(folders) == 1 and (folder := folders.pop())[:2] == ("sweeps", "train")
    datetime.strptime(folder[2], "%Y-%m-%d_%H-%M-%S")


def test_a_dry_sweep_leaves_nothing(command):
    answer = command("-m", "seed=0,1", "dry_run=true")
    assert len(answer.ran) == 2 and list(Path().iterdir()) == []


def test_what_the_user_can_mend_is_one_line(command, runner):
    def refuse(cfg):
        raise UserError("model.path=x: there is no such folder")

    runner.run = refuse
    answer = command("model.path=x")
    assert (answer.code, answer.err) == (1, "error: model.path=x: there is no such folder\n")


def test_a_site_never_reached_is_one_line(command, runner):
    from mamba_mi.trace import NeverReached

    def miss(cfg):
        raise NeverReached("never reached: 9.dt")

    runner.run = miss
    assert command().err == "error: never reached: 9.dt\n"


def test_a_fault_of_the_program_shows_where_it_is(command, runner):
    runner.run = lambda cfg: {}["lost"]
    answer = command()
    assert answer.code == 1 and "Traceback" in answer.err and "KeyError: 'lost'" in answer.err


def test_in_a_sweep_the_other_runs_go_on_and_the_failures_are_listed(command, runner):
    def run(cfg):
        runner.ran.append(cfg)
        if cfg.seed == 1:
            raise UserError("the disk is full")
        if cfg.seed == 2:
            raise ZeroDivisionError("oh")

    runner.run = run
    answer = command("-m", "seed=0,1,2,3")
    assert answer.code == 1 and [cfg.seed for cfg in answer.ran] == [0, 1, 2, 3]
    assert answer.err.endswith("2 of 4 runs are not done:\n  run 2 of 4: seed=1: failed: the disk is full\n"
                               "  run 3 of 4: seed=2: failed: ZeroDivisionError: oh\n")
    assert command("seed=0").code == 0  # a failure is not carried over to the next command


def test_an_interrupted_sweep_stops_with_one_line(command, runner):
    def run(cfg):
        runner.ran.append(cfg)
        raise KeyboardInterrupt

    runner.run = run
    answer = command("-m", "seed=0,1")
    assert (answer.code, len(answer.ran)) == (130, 1)
    assert answer.err.startswith("interrupted: ") and answer.err.count("\n") == 1


def test_a_worker_process_hands_its_error_to_the_launcher(runner, monkeypatch):
    from mamba_mi import cli

    def refuse(cfg):
        raise UserError("no")

    runner.run = refuse
    monkeypatch.setattr(cli, "PROGRESS", cli.Progress())  # as a freshly started worker has it
    with pytest.raises(UserError):
        cli.task(None)


def test_the_users_own_folder_adds_options_and_defaults(command, tmp_path):
    mine = tmp_path / "mine"
    for name, text in {"dataset/mine": "name: mine\npath: ???\n", "local/default": "# @package _global_\nseed: 3\n",
                       "experiment/mine": "# @package _global_\ndefaults:\n  - override /model: mamba-130m\nthreads: 2\n"}.items():
        (mine / name).parent.mkdir(parents=True)
        (mine / f"{name}.yaml").write_text(text)
    cfg = command("--config-dir", "mine", "experiment=mine", "dataset=mine", "dataset.path=a.csv").ran[0]
    assert (cfg.seed, cfg.threads, cfg.model.name, cfg.dataset) == (
        3, 2, "mamba-130m", {"name": "mine", "path": "a.csv"})
    assert [c.dataset.name for c in command("--config-dir", "mine", "-m", "dataset=glob(mi*)", "dataset.path=a").ran] == ["mine"]
    assert command("--config-dir", "mine", "dataset=mine").err.startswith("error: dataset.path")
