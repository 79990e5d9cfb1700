"""The report of one run: its figures drawn, its page composed of what the experiment says and what the run recorded."""
from __future__ import annotations

from pathlib import Path

import yaml

from mamba_mi.report.figures import draw, save
from mamba_mi.report.html import Page, render
from mamba_mi.report.tables import RunTables, read_run

NOT_YET = ("status", "ended", "seconds")  # of a manifest: known only when the run has ended, its report among the rest


def write_report(folder: Path, experiment, selected: dict[str, int]) -> tuple[str, list[Path]]:
    """The report's HTML and the figures it shows, drawn from the run's own files.

    `selected` counts prompts by their fate. The experiment gives the question, the headline, the words and the caveats.
    """
    tables = read_run(folder)
    drawn = []
    for name in experiment.figures:
        figure, caption = draw(name, tables)
        drawn.append((save(figure, folder, name), caption))
    page = Page(
        title=f"{experiment.title} · {tables.config['model']['name']}" if experiment.of_one_model else experiment.title,
        question=experiment.question,
        setting={**(_model(tables) if experiment.of_one_model else {}), "data": experiment.data_in_words(_data(tables.config["dataset"])),
                 **_setting(tables), **experiment.setting_in_words()},
        findings=experiment.findings(tables.summary),
        table=experiment.headline(tables.summary),
        figures=drawn,
        caveats=[*_measured(tables), *experiment.caveats(tables.summary)],
        reproduce=tables.manifest.get("command", ""),
        config_yaml=yaml.safe_dump(tables.config, sort_keys=False, allow_unicode=True),
        manifest={key: value for key, value in tables.manifest.items() if key not in NOT_YET},
        selection=selected,
        complete=tables.summary,
        listings=experiment.listings(tables),
    )
    return render(page), [path for path, _ in drawn]


def _model(tables: RunTables) -> dict[str, str]:
    model = tables.config["model"]
    return {"model": f"{model['name']} ({model['path'] or model['hub'] or 'embedded'})", "is a": _kind(tables.manifest.get("model") or {})}


def _setting(tables: RunTables) -> dict[str, str]:
    config, manifest = tables.config, tables.manifest
    backend = manifest.get("backend") or {}
    return {
        "arithmetic": f"{manifest.get('dtype', config['dtype'])}, backend {backend.get('used', '?')} on "
                      f"{manifest.get('device', '?')}, {_threads(manifest)}",
        "seed": str(config["seed"]),
        "run": manifest.get("run_id", ""),
    }


def _data(dataset: dict) -> str:
    return dataset["name"] + (f" ({dataset['path']})" if dataset.get("path") else "")


def _threads(manifest: dict) -> str:
    threads = manifest.get("threads", "?")
    return "1 thread" if threads == 1 else f"{threads} threads"


def _kind(model: dict) -> str:
    """What the checkpoint is, whatever it is called: a name and a folder may contradict each other."""
    if not model:
        return "not recorded"
    about = f". {model['about']}" if model.get("about") else ""
    return f"{model['variant']}, {model['layers']} layers, {model['parameters']:,} parameters{about}"


def _measured(tables: RunTables) -> list[str]:
    off, routing = tables.manifest.get("deviation"), tables.manifest.get("routing")
    said = [f"The interventions sent {routing['flips']:,} of {routing['tokens']:,} tokens ({routing['flips'] / routing['tokens']:.1%}) to "
            "another expert than the clean run did; what they change there is part of the effects (by layer: manifest.json). "
            f"The nearest choice was {routing['least_margin']:.1e} of probability ahead of the next."
            ] if routing else []
    if not off:
        return said
    return [*said, f"On the first prompt the logits differ from a float64 reference by at most {off['max_abs']:.1e}, "
            f"{off['relative']:.1e} of the largest."]
