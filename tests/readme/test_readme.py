"""The README's Python runs as it stands, its file of prompts is read, and its links lead somewhere."""
import re
from pathlib import Path

import torch

from mamba_mi.data import custom
from tests.data.conftest import train_bpe

README = Path(__file__).resolve().parents[2] / "README.md"


def test_the_notebook_lines_run():
    names = {}
    for block in re.findall(r"```python\n(.*?)```", README.read_text(), re.S):
        exec(block, names)
    Site = names["Site"]
    assert names["trace"].grads[Site(1, "gate")].abs().max() > 0 and names["trace"].grads[Site(1, "state")].any()
    assert set(names["cache"].values) == {Site(3, "dt"), Site(3, "state")}
    torch.testing.assert_close(names["last"], names["M"][:, [0, 5]][:, :, [-1]])
    assert (names["edited"] - names["logits"])[..., :names["lm"].config.vocab_size].abs().max() > 1e-3
    unknown = names["lm"].tokenizer.convert_tokens_to_ids("<unk>")
    assert not (names["tokens"] == unknown).any()


def test_the_file_of_prompts_is_read(tmp_path):
    [content] = re.findall(r"```yaml\n(.*?)```", README.read_text(), re.S)
    (tmp_path / "mine.yaml").write_text(content)
    dataset = custom.of_file(str(tmp_path / "mine.yaml"), train_bpe(trim_offsets=True), 0)
    assert not dataset.dropped and {p.target for p in dataset.prompts} == {" Paris", " Ada"}
    assert sorted(p.source["alternatives"] for p in dataset.prompts) == [[], ["Ada Byron"]]


def test_every_link_leads_somewhere():
    text = README.read_text()
    headings = {re.sub(r"[^a-z0-9 -]", "", line.lower()).replace(" ", "-") for line in re.findall(r"(?m)^#{2,3} (.*)$", text)}
    for target in re.findall(r"\]\(([^)]+)\)", text):
        assert target[1:] in headings if target.startswith("#") else (README.parent / target).exists(), target
