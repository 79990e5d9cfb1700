"""The backends that run on this machine, found as the package finds them: a new one is tested by existing."""
from mamba_mi import backends

BACKENDS = backends.available()
