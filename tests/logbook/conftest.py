"""wandb as on a machine where nobody has used it, and with nothing to talk to but this machine."""
import os
import sys

import pytest

NOWHERE = "http://127.0.0.1:1"  # nothing listens on port 1


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    return tmp_path_factory.mktemp("home")


@pytest.fixture(autouse=True, scope="module")
def alone(home):
    """No key, no settings, no proxy, no server; a fresh process of wandb's, which is gone afterwards."""
    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith("WANDB") or name.lower().endswith("_proxy")]:
            patch.delenv(name)
        patch.setenv("HOME", str(home))
        patch.setenv("NETRC", str(home / "netrc"))
        patch.setenv("NO_PROXY", "*")
        patch.setenv("WANDB_BASE_URL", NOWHERE)
        patch.setenv("WANDB_ERROR_REPORTING", "false")
        patch.setenv("WANDB__DISABLE_STATS", "true")  # the machine's load, and the metadata server of a cloud
        patch.setenv("WANDB__DISABLE_MACHINE_INFO", "true")
        for place in ("CONFIG", "CACHE", "DATA", "ARTIFACT"):
            patch.setenv(f"WANDB_{place}_DIR", str(home / place.lower()))
        forget()
        yield
        forget()


def forget() -> None:
    """End wandb's process, so that the next use of wandb reads the environment again."""
    if "wandb" in sys.modules:
        import wandb
        from wandb.sdk.lib import wbauth

        wbauth.unauthenticate_session(update_settings=False)
        wandb.teardown()


@pytest.fixture
def forget_wandb():
    """wandb reads the environment of this test, and the next one's in the next."""
    forget()
    yield
    forget()


@pytest.fixture
def said():
    """A list to hand over as `said.append`: the lines a user would read."""
    return []
