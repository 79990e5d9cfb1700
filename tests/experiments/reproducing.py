"""A reference made by brute force: transformers' own classes for what is unblocked, the written-out matrix for knockouts."""
from __future__ import annotations

import json
from pathlib import Path

import torch
from oracles import Knock, knocked
from oracles.checkpoints import MAMBA1, MAMBA2, random_checkpoint, with_ssm
from oracles.hugging_face import transformers_model
from tokenizers import Tokenizer, models, pre_tokenizers

WORDS = ("the mother tongue of Ann Lee Bo is was born in city and speaks French German Danish Paris Rome Oslo "
         "to go home with a car bus tram or on foot every day").split()
CONFIGS = {"mamba1": {**MAMBA1, "n_layer": 4}, "mamba2": {**with_ssm(MAMBA2, d_state=16, headdim=16), "n_layer": 4}}
SIZE = 2
PROMPTS = [("a", "the mother tongue of Ann Lee is", "Ann Lee", "French"), ("b", "Bo Lee was born in the city of", "Bo Lee", "Rome"),
           ("c", "the mother tongue of Bo Ann is", "Bo Ann", "German")]
WHERE = {"a": (4, 6), "b": (0, 2), "c": (4, 6)}  # the subject's tokens, counted by hand
PAIRS = (("last", "subject"), ("last", "last"), ("last", "first"), ("relation", "subject"), ("relation", "context"),
         ("subject", "subject"), ("relation", "relation"))


def checkpoint(folder: Path, variant: str, seed: int = 3) -> Path:
    """A random model in the state-spaces layout, with a tokenizer of words; its A is spread out, so that thirds differ."""
    weights = random_checkpoint(folder, CONFIGS[variant], seed=seed)
    generator = torch.Generator().manual_seed(seed)
    for name, x in weights.items():
        if name.endswith("A_log"):
            x.add_(torch.randn(x.shape, generator=generator))
    torch.save(weights, folder / "pytorch_model.bin")
    words = Tokenizer(models.WordLevel({"<unk>": 0} | {word: i for i, word in enumerate(WORDS, 1)}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    words.save(str(folder / "tokenizer.json"))
    return folder


def made(folder: Path, variant: str) -> dict:
    """The reference of that checkpoint."""
    weights = torch.load(folder / "pytorch_model.bin")
    theirs = transformers_model(CONFIGS[variant], weights)
    arrays = {name: x.double().numpy() for name, x in weights.items()}
    tokens = {i: [1 + WORDS.index(word) for word in text.split()] for i, text, _, _ in PROMPTS}
    answer = {i: 1 + WORDS.index(target) for i, _, _, target in PROMPTS}
    with torch.no_grad():
        clean = {i: theirs(torch.tensor([ids])).logits[0, -1, :45].double() for i, ids in tokens.items()}
    numbers = [{"metric": "probability", "values": [clean[i].softmax(-1)[answer[i]].item() for i in tokens]},
               {"metric": "hit", "values": [float(clean[i].argmax() == answer[i]) for i in tokens]}]
    kinds = [(query, source, None) for query, source in PAIRS]
    kinds += [("last", "subject", "all_but_slow"), ("last", "subject", "all_but_fast")]
    for query, source, timescale in kinds:
        values = [[_blocked(variant, arrays, tokens[i], answer[i], query, source, timescale, start, WHERE[i]) for i in tokens]
                  for start in range(CONFIGS[variant]["n_layer"] - SIZE + 1)]
        numbers.append({"metric": "probability", "query": query, "source": source, "timescale": timescale, "window_size": SIZE,
                        "values": values})
    prompts = [{"id": i, "text": text, "subject": subject, "target": target} for i, text, subject, target in PROMPTS]
    return {"about": "made by brute force", "prompts": prompts, "numbers": numbers,
            "tolerance": {"probability": [1e-6, 1e-4]}}


def _blocked(variant, weights, tokens, answer, query, source, timescale, start, where) -> float:
    queries, sources = (_at(name, len(tokens), where) for name in (query, source))
    knocks = [Knock((layer,), queries, sources, heads=_heads(variant, weights, layer, timescale))
              for layer in range(start, start + SIZE) if sources]
    logits = torch.from_numpy(knocked(CONFIGS[variant], weights, tokens, knocks)[-1, :45])
    return logits.softmax(-1)[answer].item()


def _at(name: str, length: int, where: tuple[int, int]) -> frozenset[int]:
    inside = set(range(*where))
    return frozenset({"last": {length - 1}, "first": {0}, "subject": inside, "relation": set(range(length)) - inside,
                      "context": set(range(where[0]))}[name])


def _heads(variant, weights, layer, timescale) -> tuple[int, ...] | None:
    """By hand: which heads keep the sources is the third with the largest (smallest) sum of exp(A)."""
    if timescale is None:
        return None
    A_log = weights[f"backbone.layers.{layer}.mixer.A_log"]
    kept = [sum(2.718281828459045 ** -(2.718281828459045 ** a) for a in (row if row.ndim else [row])) for row in A_log]
    ranked = sorted(range(len(kept)), key=lambda h: kept[h], reverse=timescale == "all_but_slow")
    return tuple(sorted(ranked[len(kept) // 3:]))


def write(reference: dict, path: Path) -> Path:
    path.write_text(json.dumps(reference))
    return path
