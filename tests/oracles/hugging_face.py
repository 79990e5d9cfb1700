"""transformers' own classes with the weights of a state-spaces checkpoint, every config field set explicitly.

Their defaults are other models' (Mamba-2's are Codestral's: 8 groups, untied), so none is left to them.
"""
from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from transformers import Mamba2Config, Mamba2ForCausalLM, MambaConfig, MambaForCausalLM

from .checkpoints import is_mamba2


def transformers_model(config: Mapping, weights: Mapping) -> torch.nn.Module:
    """The checkpoint as MambaForCausalLM or Mamba2ForCausalLM in float32, ready to run."""
    rows = len(weights["backbone.embedding.weight"])
    ssm = config["ssm_cfg"]
    common = {"vocab_size": rows, "hidden_size": config["d_model"], "num_hidden_layers": config["n_layer"],
              "layer_norm_epsilon": 1e-5, "conv_kernel": ssm.get("d_conv", 4), "expand": ssm.get("expand", 2),
              "use_bias": False, "use_conv_bias": True, "hidden_act": "silu", "residual_in_fp32": True,
              "tie_word_embeddings": config.get("tie_embeddings", True), "use_cache": False,
              "bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0}
    model = (_mamba2 if is_mamba2(config) else _mamba1)(config, common)
    renamed = {key.replace("backbone.embedding.", "backbone.embeddings."): w for key, w in weights.items()}
    model.load_state_dict(renamed, strict=True)
    return model.float().eval()


def _mamba1(config, common):
    ssm = config["ssm_cfg"]
    rank = ssm.get("dt_rank", math.ceil(config["d_model"] / 16))
    return MambaForCausalLM(MambaConfig(**common, state_size=ssm.get("d_state", 16), time_step_rank=rank))


def _mamba2(config, common):
    ssm = config["ssm_cfg"]
    head = ssm.get("headdim", 64)
    heads = config["d_model"] * ssm.get("expand", 2) // head
    return Mamba2ForCausalLM(Mamba2Config(
        **common, state_size=ssm.get("d_state", 128), head_dim=head, num_heads=heads, chunk_size=32,
        n_groups=ssm.get("ngroups", 1), time_step_limit=ssm.get("dt_limit", (0.0, float("inf")))))
