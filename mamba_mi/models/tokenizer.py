"""Tokenizers: from a file, a folder or a hub id, always transformers' fast class without token types."""
from __future__ import annotations

import json
from pathlib import Path

from mamba_mi.config import UserError


def load_tokenizer(source: str | Path):
    """A PreTrainedTokenizerFast from a tokenizer.json, a folder holding one, or a hub id."""
    path = Path(source)
    if path.is_dir():
        path = path / "tokenizer.json"
        if not path.is_file():
            raise UserError(f"model.tokenizer={source}: the folder holds no tokenizer.json")
    if path.is_file():
        return _from_file(path)
    if path.suffix == ".json" or str(source).startswith((".", "/", "~")) or str(source).count("/") > 1:
        raise UserError(f"model.tokenizer={source}: no such file; give a tokenizer.json, a folder holding one, or a hub id")
    return _from_hub(str(source))


def _from_file(path: Path):
    from transformers import PreTrainedTokenizerFast

    try:
        model = json.loads(path.read_text(encoding="utf-8")).get("model") or {}
        # or the class knows of none, and words outside the vocabulary would be taken for known ones
        return PreTrainedTokenizerFast(tokenizer_file=str(path), unk_token=model.get("unk_token"),
                                       model_input_names=["input_ids", "attention_mask"])
    except Exception as e:  # the Rust loader raises bare Exception
        raise UserError(f"model.tokenizer={path}: not a tokenizer.json ({type(e).__name__}: {_first_line(e)})") from None


def _from_hub(name: str):
    from huggingface_hub import constants
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(name, use_fast=True)
    except (OSError, ValueError) as e:
        cause = "HF_HUB_OFFLINE is set" if constants.HF_HUB_OFFLINE else type(e).__name__
        raise UserError(f"model.tokenizer={name}: neither a local file nor to be had from the hub ({cause}); `hf download "
                        f"{name} tokenizer.json --local-dir DIR` where there is a network, then model.tokenizer=DIR") from None
    tokenizer.model_input_names = ["input_ids", "attention_mask"]
    return tokenizer


def _first_line(e: Exception) -> str:
    return (str(e).splitlines() or [""])[0][:120]
