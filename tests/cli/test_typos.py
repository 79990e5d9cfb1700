"""A mistake on the command line: one line that names it and what there is, exit code 1, and nothing run or written."""
import pytest

TYPOS = [  # words of the command, what the line must hold
    ("experiment=patchign", ["experiment=patchign", "causal_tracing, classify, compare_paths, construct, evaluate, heatmap, info_flow, models, patching, prompts, reproduce, subspace, train", "did you mean 'patching'?"]),
    ("reference=publishd", ["knockout-130m, mamba2-1.3b-gold, none, published", "did you mean 'published'?"]),
    ("reference=null", ["reference=null", "published"]),
    ("experiment=reproduce reference.pth=a.json", ["reference.pth", "did you mean 'path'?"]),
    ("experiment=reproduce reference.path=3", ["reference.path=3"]),
    ("modle=tiny", ["modle", "backend, cone, dataset", "did you mean 'model'?"]),
    ("model=mamba2-1.3", ["mamba2-780m", "did you mean 'mamba2-1.3b'?"]),
    ("debug=slow", ["debug=slow", "there is fast"]),
    ("model=null", ["model=null", "tiny"]),
    ("experiment=null", ["~experiment"]),
    ("debug=null", ["leave it out", "fast"]),
    ("backend=[auto,chunked]", ["backend=[auto,chunked]", "auto, chunked, compiled, cuda, reference, triton"]),
    ("dataset@x=facts", ["write dataset=facts"]),
    ("hydra/launcher=slrm", ["hydra/launcher=slrm", "basic"]),
    ("dataset.nn=5", ["dataset.nn", "only_correct", "did you mean 'n'?"]),
    ("method.sits=[resid]", ["method.sits", "did you mean 'sites'?"]),
    ("model.sizes.d_modle=5", ["model.sizes has", "did you mean 'd_model'?"]),
    ("foo=1", ["foo: no such key or group", "threads"]),
    ("seed.x=1", ["seed is a value", "seed=0"]),
    ("method.sites.0=out", ["method.sites is a list", "[resid,out,mixed]"]),
    ("dataset=pile dataset.weights.Books=2", ["dataset.weights is a value", "dataset.weights=null"]),
    ("threads={a:1}", ["threads={'a': 1}", "whole number"]),
    ("cone=5", ["cone.memory"]),
    ("cone={memroy:5}", ["cone.memroy", "did you mean 'memory'?"]),
    ("hydra.foo=1", ["hydra.foo"]),
    ("debug/of=fast_train", ["debug/of"]),
    ("+seed=1", ["seed is there already", "without the +"]),
    ("++seed=1", ["without the ++"]),
    ("+foo=1", ["nothing reads such a key"]),
    ("+model=tiny", ["model is there already"]),
    ("~dataset.n", ["nothing can be taken out"]),
    ("~model", ["nothing can be taken out"]),
    ("~seeds", ["off unless"]),
    ("model", ["KEY=VALUE"]),
    ("=3", ["KEY=VALUE"]),
    ("method.sites=[resid", ["brackets do not match"]),
    ("dataset.path=~/facts.csv", ["dataset.path=$HOME/facts.csv"]),
    ("dataset.path=my(1).csv", ["\"dataset.path='my(1).csv'\""]),
    ("seed=abc", ["seed=abc", "whole number"]),
    ("seed=-1", ["seed=-1", "from 0 on"]),
    ("seed=1.5", ["seed=1.5", "whole number"]),
    ("seed=true", ["seed=true", "whole number"]),
    ("seed=null", ["seed=null"]),
    ("seed=${nope}", ["seed", "nope"]),
    ("force=1", ["true or false"]),
    ("dry_run=yes_please", ["true or false"]),
    ("dtype=float8", ["float32, float64, bfloat16, float16"]),
    ("device=gpu", ["auto, cpu, cuda and cuda:N"]),
    ("device=cuda:x", ["cuda:N"]),
    ("threads=0", ["threads=0", "from 1 on"]),
    ("cone.memory=0", ["cone.memory=0", "bytes"]),
    ("dataset.n=many", ["dataset.n=many", "200"]),
    ("method.tau=high", ["method.tau=high", "0.5"]),
    ("method.sites=resid", ["method.sites=[a,b]"]),
    ("dataset.only_correct=2", ["true or false"]),
    ("paths.logs=2024", ["./2024"]),
    ("paths.logs=", ["give a folder"]),
    ("model.path=3", ["model.path=3"]),
    ("seed=0,1,2", ["need -m", "launch.py -m seed=0,1,2"]),
    ("seed=range(0,3)", ["need -m"]),
    ("seeds=three", ["seed=0,1,2", "launch.py -m seeds=three"]),
    ("sweep=models_mamba2", ["mamba2-130m", "launch.py -m sweep=models_mamba2"]),
    ("-m model=tiny,tinyy", ["model=tinyy", "did you mean 'tiny'?"]),
    ("-m model=glob(zzz*)", ["glob(zzz*)", "matches nothing", "mamba2-1.3b"]),
    ("-m seed=0,x", ["seed=x"]),
    ("-m dataset.nn=1,2", ["did you mean 'n'?"]),
    ("-m seeds=three,five", ["seeds=three", "cannot itself be swept"]),
    ("-m model=mamba-130m,mamba-370m dataset.path=null", ["dataset=OPTION"]),
    ("-m model=mamba-130m,mamba-370m dataset.pth=a.csv", ["dataset.pth", "did you mean 'path'?"]),
    ("-m seed=interval(0,1)", ["interval", "range(0,3)"]),
    ("--foo", ["--foo: no such flag", "--help"]),
    ("--model=tiny", ["model=tiny"]),
    ("--halp", ["did you mean '--help'?"]),
    ("--cfg jobs", ["jobs", "hydra"]),
    ("--cfg", ["--cfg", "expected one argument"]),
    ("--resolve", ["--cfg job --resolve"]),
    ("-m --cfg job", ["--multirun and --cfg"]),
    ("--config-dir nowhere", ["nowhere", "no such folder"]),
]


@pytest.mark.parametrize(("words", "said"), TYPOS, ids=[words for words, _ in TYPOS])
def test_a_typo_is_one_line_and_runs_nothing(command, words, said):
    answer = command(*words.split())
    assert answer.code == 1
    assert answer.err.startswith("error: ") and answer.err.count("\n") == 1
    for text in said:
        assert text in answer.err
    assert (answer.ran, answer.left, answer.out) == ([], [], "")


@pytest.mark.parametrize("preset", ["seed: x\n", "method: {sits: [out]}\n", "sed: 1\n"])
def test_a_typo_in_a_preset_is_found_like_one_on_the_command_line(command, tmp_path, preset):
    folder = tmp_path / "mine" / "experiment"
    folder.mkdir(parents=True)
    (folder / "mine.yaml").write_text(f"# @package _global_\n{preset}")
    answer = command("--config-dir", "mine", "experiment=mine")
    assert (answer.code, answer.ran) == (1, []) and answer.err.count("\n") == 1
    assert "did you mean" in answer.err and "experiment=mine" in answer.err or "seed=x" in answer.err


def test_a_preset_that_is_no_yaml_is_one_line(command, tmp_path):
    (tmp_path / "mine" / "experiment").mkdir(parents=True)
    (tmp_path / "mine" / "experiment" / "mine.yaml").write_text("# @package _global_\nseed: [1\n")
    answer = command("--config-dir", "mine", "experiment=mine")
    assert answer.code == 1 and answer.err.startswith("error: ") and answer.err.count("\n") == 1


def test_a_developer_sees_the_traceback_when_he_asks_for_it(command, monkeypatch):
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")
    answer = command("modle=tiny")
    assert answer.code == 1 and "Traceback" in answer.err and "did you mean 'model'?" in answer.err
