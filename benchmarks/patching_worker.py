"""One contestant of patching.py, in a process and, for the rivals, in an environment of its own.

    python patching_worker.py NAME FOLDER       NAME: hooks, transformer_lens or nnsight

FOLDER is a checkpoint in Hugging Face's layout with `prompts.json` in it. Requests come on standard input and answers go
to standard output, a line of JSON each; logits go through a file. Imports nothing of mamba_mi: it is not there.
Shape legend: S cells, V vocabulary.
"""
from __future__ import annotations

import json
import os
import sys
import time
from importlib.metadata import version
from pathlib import Path

import torch
import transformers

KEEP_LITTLE = {"use_cache": False, "logits_to_keep": 1}  # what a careful user asks of transformers


class Hooks:
    """Plain PyTorch hooks on transformers' blocks; several cells a forward are several rows of it."""

    packages = ("transformers", "torch")

    def __init__(self, folder: Path, clean: list[int], corrupt: list[int]):
        self.model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
        self.blocks, self.corrupt_BL = self.model.backbone.layers, torch.tensor([corrupt])
        self.clean_BLD: dict[int, torch.Tensor] = {}
        self._hooked({layer: lambda x, layer=layer: self.clean_BLD.__setitem__(layer, x.clone())
                      for layer in range(len(self.blocks))}, torch.tensor([clean]))

    def patched(self, cells):
        """The last position's logits, a row a cell, in one forward; none: of the corrupt run as it is."""
        rows: dict[int, list] = {}
        for row, (layer, position) in enumerate(cells):
            rows.setdefault(layer, []).append((row, position))
        return self._hooked({layer: lambda x, layer=layer: self._put(x, layer, *zip(*rows[layer])) for layer in rows},
                            self.corrupt_BL.expand(max(1, len(cells)), -1))

    def _put(self, x_BLD, layer, rows, positions):
        x_BLD = x_BLD.clone()
        x_BLD[list(rows), list(positions)] = self.clean_BLD[layer][0, list(positions)]
        return x_BLD

    def _hooked(self, at: dict, tokens_BL):
        fired = dict.fromkeys(at, 0)

        def hook(layer):
            def enter(module, args):
                fired[layer] += 1
                changed = at[layer](args[0])
                return None if changed is None else (changed, *args[1:])
            return self.blocks[layer].register_forward_pre_hook(enter)

        handles = [hook(layer) for layer in at]
        logits_BKV = self.model(tokens_BL, **KEEP_LITTLE).logits
        for handle in handles:
            handle.remove()
        if set(fired.values()) - {1}:
            raise RuntimeError(f"hooks on transformers' blocks fired {fired} times, each should once")
        return logits_BKV[:, -1]


class TransformerLens:
    """TransformerLens 4: the bridge, and its own loop over cells, one forward each."""

    packages = ("transformer-lens", "transformers", "torch")

    def __init__(self, folder: Path, clean: list[int], corrupt: list[int]):
        from transformer_lens.model_bridge import TransformerBridge

        self.bridge = TransformerBridge.boot_transformers(str(folder), device="cpu")
        self.corrupt_BL = torch.tensor([corrupt])
        self.cache = self.bridge.run_with_cache(torch.tensor([clean]))[1]

    def patched(self, cells):
        import pandas as pd
        from transformer_lens import patching

        if not cells:
            return self.bridge(self.corrupt_BL)[:, -1]
        seen = []

        def metric(logits_BLV):
            seen.append(logits_BLV[:, -1].clone())
            return logits_BLV[0, -1, 0] - logits_BLV[0, -1, 1]

        patching.generic_activation_patch(
            self.bridge, self.corrupt_BL, self.cache, metric, patching.layer_pos_patch_setter, "resid_pre",
            index_df=pd.DataFrame(cells, columns=["layer", "pos"]))
        return torch.cat(seen)


class NNsight:
    """nnsight: a trace a cell, or an invoke a cell, which it batches into one forward."""

    packages = ("nnsight", "transformers", "torch")

    def __init__(self, folder: Path, clean: list[int], corrupt: list[int]):
        import nnsight

        self.lib, self.corrupt_BL = nnsight, torch.tensor([corrupt])
        self.model = model = nnsight.TransformersModel(str(folder), task="text-generation", dispatch=True)
        clean_BL = torch.tensor([clean])
        with model.trace(clean_BL, **KEEP_LITTLE):
            resid = nnsight.save([])
            for block in model.backbone.layers:
                resid.append(block.input.clone())
        self.clean_BLD = resid

    def patched(self, cells):
        model, corrupt_BL, clean_BLD, little = self.model, self.corrupt_BL, self.clean_BLD, KEEP_LITTLE
        if len(cells) > 1:
            return self._invoked(cells)
        with model.trace(corrupt_BL, **little):
            for layer, position in cells:
                model.backbone.layers[layer].input[:, position] = clean_BLD[layer][:, position]
            logits_BV = model.output.logits[:, -1].save()
        return logits_BV

    def _invoked(self, cells):
        model, corrupt_BL, clean_BLD, little, lib = self.model, self.corrupt_BL, self.clean_BLD, KEEP_LITTLE, self.lib
        with model.trace() as tracer:
            rows = lib.save([])
            for layer, position in cells:
                with tracer.invoke(corrupt_BL, **little):
                    model.backbone.layers[layer].input[:, position] = clean_BLD[layer][:, position]
                    rows.append(model.output.logits[:, -1])
        return torch.cat(list(rows))


CONTESTANTS = {"hooks": Hooks, "transformer_lens": TransformerLens, "nnsight": NNsight}


@torch.no_grad()
def answer(contestant, cells: list, batch: int, out: str | None) -> dict:
    """CPU seconds of these cells, `batch` of them a forward; their logits into the file `out`."""
    parts = [cells[i:i + batch] for i in range(0, len(cells), batch)] or [[]]
    start = time.process_time()
    logits_SV = torch.cat([contestant.patched(part) for part in parts])
    seconds = time.process_time() - start
    if out:
        torch.save(logits_SV, out)
    return {"seconds": seconds}


def main(name: str, folder: Path, requests, say) -> None:
    """Say which versions these are, then answer requests until they end; whatever goes wrong is said, and ends it."""
    torch.set_num_threads(1)
    try:
        prompts = json.loads((folder / "prompts.json").read_text())
        with torch.no_grad():
            contestant = CONTESTANTS[name](folder, **prompts)
        say({"versions": {package: version(package) for package in contestant.packages}})
        for line in requests:
            say(answer(contestant, **json.loads(line)))
    except Exception as e:
        say({"failed": f"{type(e).__name__}: {' '.join(str(e).split())[-400:]}"})
        raise


if __name__ == "__main__":
    ours = os.fdopen(os.dup(1), "w")  # what a library prints goes to standard error, so that answers stay alone
    os.dup2(2, 1)
    main(sys.argv[1], Path(sys.argv[2]), sys.stdin, lambda found: print(json.dumps(found), file=ours, flush=True))
