"""The README's Python runs as it stands."""
import re
from pathlib import Path

import torch

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
