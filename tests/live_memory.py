"""How many bytes of tensors live at once: counted tensor by tensor, so that it is the same on every machine."""
import weakref

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class LiveMemory(TorchDispatchMode):
    """`with LiveMemory() as live:`; `live.most` are the bytes of tensors made within that lived at once, what single
    operations make for themselves left out."""

    def __init__(self):
        super().__init__()
        self.now = self.most = 0
        self._known: set[int] = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        given = {x.untyped_storage()._cdata for x in tree_leaves((args, kwargs)) if isinstance(x, torch.Tensor)}
        for x in tree_leaves(out):
            if isinstance(x, torch.Tensor) and (storage := x.untyped_storage())._cdata not in given and storage._cdata not in self._known:
                self.now += storage.nbytes()
                self._known.add(storage._cdata)
                weakref.finalize(storage, self._gone, storage.nbytes(), storage._cdata)
        self.most = max(self.most, self.now)
        return out

    def _gone(self, size: int, key: int) -> None:
        self.now -= size
        self._known.discard(key)
