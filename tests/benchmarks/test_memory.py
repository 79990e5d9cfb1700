"""The memory benchmark runs, its cases are knockouts, it sees memory that was given back, and (slow) they are linear."""
import json
import os
import subprocess
import sys
from pathlib import Path

import memory
import pytest
import torch
from machine import write

TINY = {"d_model": 64}
LINUX = pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="only Linux starts the high-water mark anew")
VARIANTS = pytest.mark.parametrize("variant", memory.SSM)


@LINUX
@pytest.mark.slow
def test_the_benchmark_runs_and_writes_a_line_a_case(tmp_path):
    result = memory.run(["mamba2"], [64, 128], **TINY)
    write(tmp_path, "memory", result, memory.page(result))
    rows = json.loads((tmp_path / "memory.json").read_text())["rows"]
    assert [row["case"] for row in rows] == [*memory.CASES, memory.MATRIX]
    assert all(set(row["bytes"]) == {"64", "128"} for row in rows[:-1])
    assert sum(line.startswith("| ") for line in (tmp_path / "memory.md").read_text().splitlines()) == 3 + len(memory.CASES)


@VARIANTS
@pytest.mark.parametrize("conv", ["scan", "both"])
def test_the_cone_and_a_pass_run_the_same_knockout(variant, conv):
    lm = memory.model(variant, **TINY).double()
    tokens_BL = torch.arange(24)[None]
    with torch.no_grad():
        alone_BV = memory.no_knockout(lm, tokens_BL, None)
        for of in (memory.last, memory.half):
            cone_BV, pass_BV = (run(lm, tokens_BL, of(24, conv=conv)) for run in (memory.in_the_cone, memory.in_a_pass))
            assert torch.allclose(cone_BV, pass_BV, rtol=0, atol=1e-12)
            assert (cone_BV - alone_BV).abs().max() > 1e-9


@VARIANTS
def test_the_matrix_written_out_has_the_size_that_is_said(variant):
    lm = memory.model(variant, **TINY)
    with torch.no_grad():
        M_BHTS = memory.written_out(lm, torch.arange(24)[None], None)
    assert M_BHTS.numel() * M_BHTS.element_size() == memory.matrix_bytes(lm.config, 24)


@LINUX
def test_the_peak_counts_what_was_given_back_and_not_what_was_there():
    # in a process of its own: what others left in this one may be taken from it meanwhile
    code = ("import memory, torch; kept = torch.ones(1 << 23); torch.ones(1 << 26)\n"  # an earlier and higher peak
            "before = memory.reset(); torch.ones(1 << 24)\n"
            "print(memory.status('VmHWM') - before, memory.status('VmRSS') - before, len(kept))")
    done = subprocess.run([sys.executable, "-c", code], env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}, text=True,
                          capture_output=True)
    peak, left, _ = map(int, done.stdout.split())
    assert peak == pytest.approx(4 << 24, rel=0.1) and left < 1 << 24, done.stderr


def test_queries_are_the_last_token_and_the_second_half():
    assert memory.last(8).queries == (-1,) and memory.half(8).queries == (4, 5, 6, 7)


def test_the_exponent_of_a_power_is_that_power():
    lengths = [512, 1024, 4096]
    assert memory.exponent(lengths, [3 * n**1.5 for n in lengths]) == pytest.approx(1.5)


def test_what_grows_too_fast_is_named():
    rows = [{"variant": "mamba2", "case": case, "bytes": {8: 8, 16: 32}, "exponent": 2.0, "matrix_bytes": {8: 1, 16: 4}}
            for case in ("forward alone", "last token, cone", memory.MATRIX)]
    said = memory.page({"machine": {"torch": "2", "system": "Linux"}, "asked": "", "lengths": [8, 16], "rows": rows})
    assert said.split("## Above 1.1")[1].strip() == "- mamba2, last token, cone: 2.00"


@LINUX
@pytest.mark.slow
@VARIANTS
def test_a_knockout_takes_memory_linear_in_length(variant):
    rows = memory.measure([variant], [512, 1024, 2048, 4096], {})
    exponents = {row["case"]: row["exponent"] for row in rows}
    assert all(0.8 < exponents[case] <= memory.BOUND for case in memory.KNOCKOUTS), exponents
    assert exponents[memory.MATRIX] > 1.5
