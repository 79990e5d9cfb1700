"""The one way a run goes, whatever the experiment: build, select, fit, step, keep, summarise, report.

Configuration stops here: below there are only arguments.
"""
from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read when CUDA starts, so before torch
# Read when torch's threads start: waiting ones sleep. Spinning, two threads beside another busy program took the main
# job from 11 s to minutes.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import torch
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from rich.console import Console

from mamba_mi import data, experiments, models, references, together
from mamba_mi.config import UserError
from mamba_mi.data import Dataset, Dropped, Pair
from mamba_mi.experiments import Experiment, Setting
from mamba_mi.measure.controls import control_rows, judge, parted
from mamba_mi.measure.selection import Selection, select
from mamba_mi.measure.summary import summarise
from mamba_mi.models import variants
from mamba_mi.report import console as tables
from mamba_mi.report.run import write_report
from mamba_mi.report.tables import read_run
from mamba_mi.runs import identity, provenance
from mamba_mi.runs.forecast import forecast
from mamba_mi.runs.logbook import Card, check_logbook, open_logbook
from mamba_mi.runs.manifest import demand_same, open_manifest, read_manifest
from mamba_mi.runs.precision import deviation
from mamba_mi.runs.progress import bar
from mamba_mi.runs.prompts import fates, prompt_records
from mamba_mi.runs.steps import step_through
from mamba_mi.runs.store import Store

console = Console()
MODEL_KEYS = ("name", "variant", "path", "hub", "tokenizer", "sizes")  # what else a model's YAML has is the variant's own


class Refuted(UserError):
    """A run's own result contradicts what was asserted of it (`Experiment.verdict`); all of it is kept and reported."""


@dataclass(frozen=True)
class Built:
    """A run ready to go: the plain configuration, the model, the data set and the experiment."""

    settings: dict
    lm: models.LM
    dataset: Dataset | None
    experiment: Experiment

    def conditions(self) -> dict:
        """What a resumed run must agree in with what it kept, and what its data are."""
        sources = self.experiment.read_from
        origin = dict(self.dataset.origin) if self.dataset and self.dataset.origin else sources
        return {"device": str(self.lm.device), "backend": self.lm.choice._asdict(), "threads": torch.get_num_threads(),
                "dtype": str(self.lm.dtype).removeprefix("torch."),
                "fingerprints": {"checkpoint": self.lm.fingerprint, "code": provenance.code_fingerprint(),
                                 **({"data": self.dataset.fingerprint} if self.dataset else {}),
                                 **{name: source["fingerprint"] for name, source in sources.items()}},
                **({"data": origin} if origin else {}),
                **({"gpu": torch.cuda.get_device_name(self.lm.device)} if self.lm.device.type == "cuda" else {}),
                "model": _described(self.lm)}


def _described(lm: models.LM) -> dict:
    """What a report says of a model, without having it."""
    return {"variant": lm.config.variant, "layers": lm.config.n_layer, "parameters": sum(x.numel() for x in lm.parameters()),
            "mixed": lm.layers[lm.mixing[0]].MIXED, "mixing": list(lm.mixing), "parts": list(lm.config.mixes_by),
            "conv": lm.config.d_conv, "about": variants.about(lm.config)}


def run(cfg: DictConfig) -> Path | None:
    """Do what the configuration says; the run's folder, or None for a dry run."""
    settings = OmegaConf.to_container(cfg, resolve=True)
    console.quiet = not together.is_first()
    if sweep_folder() is None:  # of a sweep's jobs the label says what differs
        console.print(tables.config_tree(settings))
    built = build(settings)
    if settings["dry_run"]:
        _forecast(built)
        return None
    folder = identity.folder(settings)
    if built.experiment.setting.ranks.rank > 0:
        return _assist(built, folder)
    with Store(folder) as store:
        if settings["force"]:
            store.clear()
        if (read_manifest(folder) or {}).get("status") == "done":
            demand_same(folder, read_manifest(folder), built.conditions() | {"versions": provenance.versions()})
            console.print(f"already done, nothing was run again (force=true would): {folder}")
            if settings["logger"]["name"] != "none":
                console.print(f"nothing was logged with logger={settings['logger']['name']} either; force=true would")
        else:
            try:
                _carry_out(built, store)
            except Refuted:
                _show(built.experiment, folder)
                raise
        _show(built.experiment, folder)
    return folder


def _assist(built: Built, folder: Path) -> None:
    """What a process besides the first does of a run: its share of the fit or of the batches, of which it keeps the parts."""
    if not built.settings["force"] and (read_manifest(folder) or {}).get("status") == "done":
        return
    if built.experiment.shares == together.FIT:
        built.experiment.fit((), folder / "scratch")
    else:
        _step_through(built, _select(built)[1], folder)


def _forecast(built: Built) -> None:
    chosen, dataset = built.settings["dataset"], built.dataset
    if built.experiment.train_size:
        dataset = data.divide(dataset, built.settings["seed"])[1]
    lines = forecast(built.experiment, dataset, n=chosen["n"], only_correct=chosen["only_correct"],
                     seed=built.settings["seed"])
    for name, text in lines.items():
        console.print(f"{name:<16}{text}", highlight=False)
    console.print("dry run: nothing was run, nothing was written")


def build(settings: Mapping) -> Built:
    """The parts of a run; every mistake in the configuration is found here, before anything is written."""
    check_logbook(settings["logger"])
    kind = experiments.get(settings["method"]["name"]).on(settings["dataset"]["name"])
    knobs = experiments.knobs_of(kind, settings["method"])
    _check_reference(kind, settings)
    if kind.right_and_wrong and settings["dataset"]["only_correct"]:
        raise UserError(f"dataset.only_correct=true: method={settings['method']['name']} counts right and wrong answers; give "
                        f"experiment={settings['method']['name']} without it, or dataset.only_correct=false")
    seed, device = settings["seed"], models.device_of(settings["device"])
    _prepare(settings["threads"], device)
    what = f"experiment={settings['method']['name']} dataset={settings['dataset']['name']}"
    ranks = together.join(device, kind.shares, what)
    lm = _model(kind, knobs, settings)
    experiment = kind(knobs, lm, Setting(seed, settings["cone"]["memory"], model=settings["model"]["name"],
                                         reference=settings["reference"], ranks=ranks, force=settings["force"]))
    experiment.check()
    together.demand_shareable(what, experiment.train_size)
    dataset = experiment.candidates(lambda: data.load(settings["dataset"], lm.tokenizer, seed, lm.config.max_length))
    return Built(dict(settings), lm, dataset, experiment)


def _check_reference(kind: type[Experiment], settings: Mapping) -> None:
    """Before any weights are read: a reference goes with an experiment that compares, and has numbers of this model."""
    reference, method = settings["reference"], settings["method"]["name"]
    if kind.compares:
        references.read(**reference).of(settings["model"]["name"])
    given = next((f"reference{key}={value}" for key, value in (("", reference["name"]), (".path", reference["path"]))
                  if value not in ("none", None)), None)
    if given and not kind.compares:
        raise UserError(f"{given}: experiment={method} compares with no published numbers; give experiment=reproduce")


def _prepare(threads: int | None, device: str) -> None:
    if device.startswith("cuda:"):
        torch.cuda.set_device(device)  # kernels and libraries that ask for no device take the current one
    if threads is not None:
        torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.backends.cudnn.benchmark = False
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False


def _model(kind: type[Experiment], knobs, settings: Mapping) -> models.LM:
    model, asked = settings["model"], _asked_of_model()
    how = {"backend": settings["backend"]["name"], "device": settings["device"], "dtype": settings["dtype"]}
    options = {key: value for key, value in model.items() if key not in MODEL_KEYS}
    said = next((f"model.{key}={model[key]}" for key in ("path", "hub") if model[key]), f"model={model['name']}")
    meant = variants.Meant(model["name"], model["variant"], said) if model["variant"] else None
    # a folder's own vocabulary comes before the one published under the model's name, and after the one that is asked for
    own = model["path"] and "tokenizer" not in asked and (Path(model["path"]).expanduser() / "tokenizer.json").is_file()
    return kind.model(knobs, model["path"] or model["hub"] or model["name"], name=model["name"], variant=model["variant"],
                      sizes=model["sizes"], asked=[key.removeprefix("sizes.") for key in asked if key.startswith("sizes.")],
                      tokenizer=None if own else model["tokenizer"], seed=settings["seed"], options=options, meant=meant, **how)


def _asked_of_model() -> list[str]:
    """Which keys of the model the command line sets."""
    given = HydraConfig.get().overrides.task if HydraConfig.initialized() else []
    return [line.partition("=")[0].removeprefix("model.") for line in given if line.startswith("model.")]


def _carry_out(built: Built, store: Store) -> None:
    settings, experiment = built.settings, built.experiment
    with open_manifest(store, run_id=identity.run_id(settings), seed=settings["seed"],
                       **built.conditions()) as manifest:
        with open_logbook(settings["logger"], _card(settings, store.folder), _say) as logbook:
            experiment.setting = replace(experiment.setting, log=logbook.log)
            manifest.record(logbook=logbook.facts)
            store.write_text("config.yaml", OmegaConf.to_yaml(OmegaConf.create(settings)))
            logbook.config(settings)
            train, selection = _select(built)
            prompts = prompt_records(selection, train)
            store.write_json("prompts.json", prompts)
            experiment.fit(train.items, store.scratch)
            manifest.read_from(experiment.read_from)
            _step_through(built, selection, store.folder)
            summary = _summarise(built, store, selection)
            measured = dict(hook_counts=dict(experiment.setting.ledger.edits),
                            token_layers=experiment.setting.ledger.token_layers,
                            bit_reproducible=experiment.setting.ledger.halvings == 0 and built.lm.device.type == "cpu",
                            memory_halvings=experiment.setting.ledger.halvings, processes=experiment.setting.ranks.count,
                            **experiment.setting.ledger.routing, **_deviation(built, prompts))
            manifest.record(**measured)
            if not experiment.summary_only:
                html, figures = write_report(store.folder, experiment, fates(selection, train))
                store.write_text("report.html", html)
                for figure in figures:
                    logbook.figure(figure)
            logbook.summary(summary, experiment.headline(summary),
                            {**measured, "seconds": manifest.fields["seconds"], "prompts": fates(selection, train)})
            if wrong := experiment.verdict(summary):
                raise Refuted(f"{wrong}; all results are kept, see {store.folder}")
        manifest.record(logbook=logbook.facts)  # again, for it may have met with trouble
    store.tidy()


def sweep_folder() -> Path | None:
    """The folder of the sweep this run is a job of, in whatever process a launcher put it; None outside a sweep."""
    if not HydraConfig.initialized() or HydraConfig.get().mode != RunMode.MULTIRUN:
        return None
    return Path(HydraConfig.get().sweep.dir)


def _card(settings: Mapping, folder: Path) -> Card:
    sweep = sweep_folder()
    model, dataset, method = (settings[group]["name"] for group in ("model", "dataset", "method"))
    return Card(identity.run_id(settings), method, folder, group=sweep and f"{sweep.parent.name}/{sweep.name}",
                tags=(model, dataset, method), name=f"{method} {model} {dataset} seed {settings['seed']}")


def _say(text: str) -> None:
    console.print(text, soft_wrap=True, highlight=False, markup=False)  # a path may hold what looks like markup


def _select(built: Built) -> tuple[Selection, Selection]:
    """The items to fit on, none unless the experiment wants some, and those to measure: no subject is in both."""
    experiment, dataset = built.experiment, built.dataset
    nothing = Selection((), (), 0, 0)
    if dataset is None or dataset.corpus:
        return nothing, nothing
    if not experiment.train_size:
        return nothing, _measured(built, dataset)
    to_fit, to_measure = data.divide(dataset, built.settings["seed"])
    return (_chosen(built, to_fit, experiment.train_size, "prompts to fit on"),
            _measured(built, to_measure))


def _measured(built: Built, dataset: Dataset) -> Selection:
    """The selected items that the experiment measures; the others are dropped for its reason."""
    selection = _chosen(built, dataset, built.settings["dataset"]["n"], "choosing prompts")
    items, why = built.experiment.choose(selection.items)
    measured = set(items)
    prompts = [item.clean if isinstance(item, Pair) else item for item in selection.items if item not in measured]
    return replace(selection, items=tuple(items),
                   dropped=(*selection.dropped, *(Dropped(p.prompt_id, p.text, why) for p in prompts)))


def _chosen(built: Built, dataset: Dataset, n: int | None, what: str) -> Selection:
    settings, experiment = built.settings, built.experiment
    with bar(what, console) as progress:
        return select(built.lm, dataset, n=n, only_correct=settings["dataset"]["only_correct"],
                      pairs=experiment.needs == "pairs", same_template=experiment.same_template, seed=settings["seed"],
                      size=getattr(experiment.knobs, "batch", 32), progress=progress)


def _step_through(built: Built, selection: Selection, folder: Path) -> None:
    with bar(built.experiment.name, console) as progress:
        step_through(built.experiment, selection.items, folder, progress=progress, say=console.print)


def _summarise(built: Built, store: Store, selection: Selection) -> list[dict]:
    experiment = built.experiment
    table = store.join()
    store.write_effects(table)
    clusters = experiment.clusters(selection.items)
    asked, with_draws = parted(experiment.in_groups(table))
    tau = getattr(experiment.knobs, "tau", 0.0)
    with bar("statistics", console) as progress:
        rows = summarise(asked, clusters, experiment.conditions, normalised=experiment.normalised, tau=tau,
                         resamples=getattr(experiment.knobs, "resamples", 2000), seed=built.settings["seed"],
                         family=experiment.family, progress=progress)
    drawn = control_rows(with_draws, experiment.conditions, experiment.normalised, tau) if with_draws else []
    rows = experiment.completed(judge([*rows, *drawn]), table, selection.items)
    store.write_json("summary.json", [*rows, *drawn])
    for name, value in {**experiment.artefacts(), **experiment.tables(table, selection.items)}.items():
        store.write_artefact(name, value)
    return rows


def _deviation(built: Built, prompts: list[dict]) -> dict:
    first = next((record["token_ids"] for record in prompts if record["kept"]), None)
    return {"deviation": deviation(built.lm, first, Path(built.settings["paths"]["logs"]))} if first else {}


def _show(experiment: Experiment, folder: Path) -> None:
    if sweep_folder() is None:  # the sweep's own table has the others
        run_tables = read_run(folder)
        experiment.recall(folder)
        rows = experiment.headline(run_tables.summary)
        if rows:
            console.print(tables.result_table(rows, experiment.question))
        for sentence in experiment.findings(run_tables.summary):
            console.print(f"• {sentence}", highlight=False, markup=False)
    made = folder / ("summary.json" if experiment.summary_only else "report.html")
    console.print(f"{made.stem}: {made}", soft_wrap=True, highlight=False)
