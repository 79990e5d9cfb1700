"""Training on running text, from the command line's door: what it leaves, what reads it, what is refused."""
import json
import math
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch
from transformers import Mamba2ForCausalLM, MambaForCausalLM

from mamba_mi import experiments, models
from mamba_mi.cli import main
from mamba_mi.config import UserError
from mamba_mi.report.corpus_words import ALL
from mamba_mi.training.checkpointing import weights_hash
from tests.data.texts import records, write
from tests.training.corpora import SIZES, made, tokenizer_file

SMALL = ["dataset=pile", "dataset.heldout=0.3", "dataset.buffer=10", "model.sizes.d_model=16", "model.sizes.n_layer=2",
         "model.sizes.d_state=4", "model.sizes.vocab_size=361", "method.steps=4", "method.batch=4", "method.length=24", "method.warmup=1",
         "method.examined=20", "method.eval_every=2", "method.resamples=100", "threads=1", "method.lr=4e-3"]


def launch(monkeypatch, *words) -> int:
    monkeypatch.setattr(sys, "argv", ["launch.py", *words])
    try:
        main()
    except SystemExit as ended:
        return ended.code
    return 0


def files(folder: Path) -> list[str]:
    return [f"dataset.path={write(folder / 'text.jsonl.zst', records(90))}", f"model.tokenizer={tokenizer_file(folder)}"]


def only_run(logs: Path) -> Path:
    return next(logs.glob("*/*/*/manifest.json")).parent


@pytest.mark.parametrize(("model", "theirs"), [("mamba-130m", MambaForCausalLM), ("mamba2-130m", Mamba2ForCausalLM)])
def test_a_run_leaves_a_model_that_ours_and_transformers_read_and_patching_takes(model, theirs, tmp_path, monkeypatch):
    headdim = ["model.sizes.headdim=8"] if "2" in model else []
    assert launch(monkeypatch, "experiment=train", f"model={model}", *SMALL, *headdim, *files(tmp_path), f"paths.logs={tmp_path / 'logs'}") == 0
    run = only_run(tmp_path / "logs")
    assert run.parts[-3:-1] == ("train", model) and (run / "report.html").exists()
    assert {path.stem for path in (run / "figures").glob("*.png")} == {"corpus_curve", "corpus_perplexity"}
    told = json.loads((run / "artifacts" / "training_info.json").read_text())
    ours, hf = (models.load(run / "artifacts" / name, cached=False) for name in ("", "hf"))
    assert weights_hash(ours) == told["weights"] and told["parameters"] == sum(x.numel() for x in ours.parameters())
    other = theirs.from_pretrained(run / "artifacts" / "hf", dtype=torch.float32).eval()
    tokens_BL = torch.randint(0, 361, (2, 30), generator=torch.Generator().manual_seed(0))
    logits_BLV = ours(tokens_BL)[0][..., :361]
    for got_BLV in (hf(tokens_BL)[0], other(tokens_BL).logits):
        assert (got_BLV[..., :361] - logits_BLV).abs().max() <= 1e-5 * logits_BLV.abs().max()

    pairs = tmp_path / "pairs.jsonl"
    pairs.write_text("".join(json.dumps({"clean": f"the state of {a}", "corrupt": f"the state of {b}", "answer": " the", "wrong_answer": " each"})
                             + "\n" for a, b in (("river", "bank"), ("what", "keep"))))
    assert launch(monkeypatch, "experiment=patching", f"model={model}", f"model.path={run / 'artifacts'}", "dataset=pairs", f"dataset.path={pairs}",
                  "dataset.only_correct=false", "method.sites=[resid]", "method.resamples=50", f"paths.logs={tmp_path / 'patching'}") == 0
    manifest = json.loads((only_run(tmp_path / "patching") / "manifest.json").read_text())
    assert manifest["status"] == "done" and manifest["model"]["parameters"] == told["parameters"]


def test_perplexities_are_those_of_the_effects_and_of_the_weights(tmp_path, monkeypatch):
    launch(monkeypatch, "experiment=train", "model=mamba2-130m", *SMALL, "method.examined=null", "model.sizes.headdim=8", *files(tmp_path), f"paths.logs={tmp_path / 'logs'}")
    run = only_run(tmp_path / "logs")
    rows = {(row["metric"], row["conditions"]["source"]): row for row in json.loads((run / "summary.json").read_text())}
    effects = pq.read_table(run / "effects.parquet").to_pandas()
    told = json.loads((run / "artifacts" / "training_info.json").read_text())
    lm = models.load(run / "artifacts", cached=False)
    held = [record for record in records(90) if is_held_out(record["text"])]
    assert told["validation"]["documents"] == len(held) == rows["perplexity", ALL]["n"] > 15
    costs = []
    for record in held:
        ids = [0, *lm.tokenizer(record["text"]).input_ids]
        costs.append((record["meta"]["pile_set_name"], alone(lm, ids, 24), len(ids) - 2))
    for source in ("Pile-CC", "Github", ALL):
        of = [each for each in costs if source in (ALL, each[0])]
        cost, count = (sum(each[k] for each in of) for k in (1, 2))
        row = rows["perplexity", source]
        assert (row["tokens"], row["mean"]) == (count, pytest.approx(math.exp(cost / count), rel=1e-5))
        assert row["ci_low"] < row["mean"] < row["ci_high"] and row["p"] is None
        nats = effects[(effects.metric == "nats") & ((effects.source == source) | (source == ALL))]
        assert nats.value.sum() == pytest.approx(cost, rel=1e-5) and (nats.full - nats.baseline).sum() == count
        gain = rows["nats_per_token_over_unigram", source]["mean"]
        assert gain == pytest.approx(rows["nats_per_token", source]["mean"] - rows["unigram_nats_per_token", source]["mean"], abs=1e-9)
    assert {metric for metric, _ in rows} == {"perplexity", "unigram_perplexity", "nats_per_token", "unigram_nats_per_token",
                                              "nats_per_token_over_unigram"}
    assert told["final_validation"] == pytest.approx(rows["nats_per_token", ALL]["mean"], rel=1e-6)


def is_held_out(text: str) -> bool:
    import hashlib

    return int(hashlib.sha256(text.encode()).hexdigest()[:15], 16) / 16**15 < 0.3


def alone(lm, ids: list[int], length: int) -> float:
    """Nats of a document but its first token, token by token, in windows that overlap by one."""
    cost = 0.0
    for at in range(2, len(ids)):
        start = (at - 1) // (length - 1) * (length - 1)
        cost -= lm(torch.tensor([ids[start:at]]))[0][0, -1].double().log_softmax(-1)[ids[at]].item()
    return cost


def test_a_trained_model_is_trained_on_from_its_checkpoint(tmp_path):
    first = made(tmp_path)
    first.fit(None, tmp_path / "scratch")
    kind = experiments.get("train").on("pile")
    how = dict(name="x", variant="mamba2", sizes={}, asked=[], tokenizer=None, seed=0, options={}, backend="auto", device="cpu", dtype="float32")
    knobs = experiments.knobs_of(kind, {"name": "train", "start": "checkpoint"})
    again = kind.model(knobs, str(tmp_path / "scratch" / "model"), **how)
    assert weights_hash(again) == weights_hash(first.lm) and all(p.requires_grad for p in again.parameters())
    more = made(tmp_path, lm=again, steps=8)
    more.fit(None, tmp_path / "more")
    assert more.curve[-1]["loss"] < first.curve[0]["loss"]


def test_the_start_is_the_published_one():
    """state-spaces' `_init_weights`: embedding N(0, .02), dt log-uniform in [1e-3, .1], out_proj over the square root of depth."""
    lm = models.sized("x", "mamba1", {"d_model": 64, "n_layer": 9, "d_state": 16, "vocab_size": 3000}, seed=0)
    assert lm.embedding.weight.std().item() == pytest.approx(0.02, rel=0.02) and lm.lm_head is None
    dt = torch.nn.functional.softplus(torch.cat([layer.dt_proj.bias for layer in lm.layers])).log()
    low, high = math.log(1e-3), math.log(0.1)
    assert low - 1e-3 <= dt.min() and dt.max() <= high + 1e-3
    assert dt.mean().item() == pytest.approx((low + high) / 2, abs=0.15) and dt.std().item() == pytest.approx((high - low) / 12**0.5, rel=0.06)
    for layer in lm.layers:
        torch.testing.assert_close(layer.A_log.exp(), torch.arange(1.0, 17).expand(128, 16))
        assert layer.out_proj.weight.abs().max().item() == pytest.approx(128**-0.5 / 3, rel=0.01)
        assert layer.in_proj.weight.abs().max().item() == pytest.approx(64**-0.5, rel=0.01)


@pytest.mark.parametrize("model", ["mamba-130m", "mamba2-130m"])
def test_the_sizes_of_the_file_make_the_published_model(model):
    import yaml

    cfg = yaml.safe_load((Path(__file__).resolve().parents[2] / "conf" / "model" / f"{model}.yaml").read_text())
    config = models.state_spaces.of_sizes(cfg["variant"], cfg["sizes"], 0)
    module, sized = models.checkpoints.parse_config(config)
    assert (sized.d_inner, sized.padded_vocab) == (1536, 50280 if model == "mamba-130m" else 50288)
    with torch.device("meta"):
        lm = models._empty(module, sized, "chunked", "cpu", "x", None)
    assert sum(x.numel() for x in lm.parameters()) == module.PUBLISHED[model].parameters


def test_every_size_that_is_asked_for_is_taken_and_the_others_follow():
    sizes = {"d_model": 48, "n_layer": 3, "d_state": 5, "d_conv": 3, "headdim": 12, "n_groups": 2, "vocab_size": 99, "d_inner": 7, "n_heads": 1}
    two = models.sized("x", "mamba2", sizes, seed=0).config
    assert (two.d_model, two.n_layer, two.d_state, two.d_conv, two.headdim, two.ngroups) == (48, 3, 5, 3, 12, 2)
    assert (two.vocab_size, two.padded_vocab, two.d_inner, two.heads) == (99, 112, 96, 8)
    one = models.sized("x", "mamba1", {"d_model": 48, "n_layer": 3, "d_state": 5, "d_conv": 3, "vocab_size": 99, "dt_rank": 40}, seed=0).config
    assert (one.d_state, one.d_conv, one.dt_rank, one.padded_vocab) == (5, 3, 3, 104)


@pytest.mark.parametrize(("words", "said"), [
    (["experiment=patching", "dataset=pile"], "dataset=pile: running text without prompts, which experiment=train alone reads"),
    (["experiment=models", "dataset=pile"], "dataset=pile: running text without prompts"),
    (["experiment=train", "dataset=pairs"], "dataset=pairs: experiment=train reads dataset=facts or running text, dataset=pile"),
    (["model.sizes.n_layer=2"], "model.sizes.n_layer: a checkpoint has its own sizes"),
    (["experiment=train", "model.sizes.n_layer=2"], "model.sizes.n_layer: a checkpoint has its own sizes"),
    (["experiment=train", "model=tiny", "dataset=pile", "PATH"], "the tokenizer names no EOS"),
    (["experiment=train", "model=tiny-hyena", "dataset=pile", "PATH"], "method.start=scratch: a hyena is not built from sizes"),
    (["experiment=train", "model=mamba-130m", *SMALL, "FILES", "model.sizes.d_inner=64"], "model.sizes.d_inner: follows from d_model"),
    (["experiment=train", "model=mamba-130m", *SMALL, "FILES", "model.path=nowhere"], "model.path=nowhere: a model from scratch reads no checkpoint"),
    (["experiment=train", "model=mamba-130m", *SMALL, "FILES", "method.start=scrtch"], "method.start=scrtch: there are scratch, checkpoint"),
    (["experiment=train", "model=mamba-130m", *SMALL, "FILES", "method.samples=null", "method.steps=null"], "nothing says how long to train"),
    (["experiment=train", "model=mamba-130m", *SMALL, "FILES", "method.autocast=fp8"], "method.autocast=fp8: there are none, bf16"),
    (["experiment=train", "model=mamba-130m", *SMALL, "FILES", "method.autocast=bf16", "dtype=bfloat16"], "only for mamba1 and mamba2 with dtype=float32"),
    (["experiment=train", "model=mamba-130m", *SMALL, "FILES", "method.start=checkpoint"], "model.sizes.d_model: a checkpoint has its own sizes"),
    (["experiment=train", "method.boundaries=false"], "method.boundaries: no such key"),  # no key of training on facts
])
def test_what_cannot_be_is_one_line_and_leaves_nothing(words, said, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    given = files(tmp_path)
    words = [part for word in words for part in {"FILES": given, "PATH": given[:1]}.get(word, [word])]
    assert launch(monkeypatch, *words) == 1
    error = capsys.readouterr().err
    assert error.startswith(f"error: {said}") or said in error
    assert error.count("\n") == 1 and not (tmp_path / "experiment_logs").exists()


def test_the_keys_of_training_on_text_are_its_knobs_with_the_same_defaults():
    from hydra import initialize_config_dir
    from omegaconf import OmegaConf

    from mamba_mi.cli.composing import Composer

    with initialize_config_dir(str(Path(__file__).resolve().parents[2] / "conf"), version_base="1.3", job_name="test"):
        composer = Composer(None)
        written = OmegaConf.to_container(composer.checked(composer.parse(["experiment=train", "dataset=pile"])).method)
    kind = experiments.get("train").on("pile")
    assert list(written) == ["name", *kind.Knobs.__dataclass_fields__]
    assert experiments.knobs_of(kind, written) == kind.Knobs()


def test_a_gated_norm_in_groups_has_no_copy_in_the_other_layout(tmp_path):
    lm = models.sized("x", "mamba2", {"d_model": 16, "n_layer": 2, "d_state": 4, "headdim": 8, "n_groups": 2, "vocab_size": 361}, seed=0,
                      tokenizer=tokenizer_file(tmp_path))
    train = made(tmp_path, lm=lm, steps=1)
    train.fit(None, tmp_path / "scratch")
    assert train.info["hugging_face"].startswith("transformers norms all groups") and "hf/model" not in train.artefacts()


def test_what_was_asked_for_and_never_met_is_said(tmp_path):
    train = made(tmp_path, data_knobs={"sets": ["Github", "Gutenberg"]}, steps=1)
    train.fit(None, tmp_path / "scratch")
    assert train.info["documents"]["asked_for_and_never_met"] == ["Gutenberg"]
    train = made(tmp_path, data_knobs={"weights": {"Github": 0, "Gutenberg": 2.0, "Pile-CC": 1.0}}, steps=1)
    train.fit(None, tmp_path / "other")
    assert train.info["documents"]["asked_for_and_never_met"] == ["Gutenberg"]


def test_the_other_layout_names_the_mark_that_the_text_was_written_with(tmp_path):
    train = made(tmp_path, steps=1)
    train.script.mark = 5
    train.fit(None, tmp_path / "scratch")
    written = train.artefacts()["hf/config"]
    assert [written[f"{name}_token_id"] for name in ("bos", "eos", "pad")] == [5, 5, 5]


@pytest.mark.parametrize(("name", "knobs", "said"), [
    ("tiny-moe", {"checkpoint_activations": True}, "the routers of a moe would be balanced twice"),
    ("tiny-hyena", {"autocast": "bf16"}, "method.autocast=bf16: only for mamba1 and mamba2")])
def test_what_another_variant_would_do_wrong_is_refused(name, knobs, said, tmp_path):
    lm = models.load(name, cached=False)
    lm.tokenizer = models.sized("x", "mamba2", SIZES["mamba2"], seed=0, tokenizer=tokenizer_file(tmp_path)).tokenizer
    with pytest.raises(UserError, match=said):
        made(tmp_path, lm=lm, **knobs)


def test_a_single_source_is_told_once_as_all(tmp_path):
    train = made(tmp_path, data_knobs={"sets": ["Github"]}, steps=1)
    train.fit(None, tmp_path / "scratch")
    table = train.step(train.batches(())[0])
    assert set(table["source"].to_pylist()) == {"Github"} and set(train.in_groups(table)["source"].to_pylist()) == {ALL}


def test_a_text_longer_than_the_model_takes_is_refused(tmp_path):
    lm = models.load("tiny-hyena", cached=False)
    lm.tokenizer = models.sized("x", "mamba2", SIZES["mamba2"], seed=0, tokenizer=tokenizer_file(tmp_path)).tokenizer
    with pytest.raises(UserError, match=f"method.length=5000: .* takes at most {lm.config.max_length} tokens"):
        made(tmp_path, lm=lm, length=5000)
