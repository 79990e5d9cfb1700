"""Whether W&B is online, offline or off for a run, and why. It is decided here, so that wandb never has to ask."""
from __future__ import annotations

import http.client
import os
import ssl
import urllib.error
import urllib.request
from contextlib import suppress
from typing import NamedTuple

from ..config import UserError, did_you_mean

MODES = ("auto", "offline", "online", "disabled")
PROBE = 5.0  # seconds for the server to say anything at all


class Chosen(NamedTuple):
    """A mode of wandb's own, and in a few words why it is that one."""

    mode: str
    why: str


def library():
    """wandb, quiet, and sending nothing about itself to anybody unless the user's environment says it may."""
    os.environ.setdefault("WANDB_ERROR_REPORTING", "false")  # read at import; an offline run would connect without it
    import wandb

    wandb.setup(settings=wandb.Settings(silent=True, mode="online"))  # a WANDB_MODE would hide the key from us
    return wandb


def shut_down() -> None:
    """End wandb's own process, whatever state it is in; the next run starts another."""
    with suppress(Exception, SystemExit):  # it exits with the code of its process
        library().teardown()


def check_mode(asked: str) -> None:
    """A UserError for a mode that does not exist, or one that needs a key where there is none."""
    if asked not in MODES:
        raise UserError(f"logger.mode={asked}: there are {', '.join(MODES)}{did_you_mean(asked, MODES)}")
    if asked == "online" and (trouble := without_key()):
        raise UserError(f"logger.mode=online: {trouble}; run `wandb login`, or set WANDB_API_KEY, "
                        "or take logger.mode=offline and sync later")


def choose(asked: str) -> Chosen:
    """What `asked` comes to here and now. auto: offline or disabled if WANDB_MODE says so, else online if that can be."""
    if asked != "auto":
        return Chosen(asked, f"logger.mode={asked}")
    wished = os.environ.get("WANDB_MODE", "").lower()
    if wished in ("offline", "disabled"):
        return Chosen(wished, "WANDB_MODE says so")
    if trouble := without_key():
        return Chosen("offline", trouble)
    if trouble := unreachable(server()):
        return Chosen("offline", f"{server()} cannot be reached: {trouble}")
    return Chosen("online", "there is a key, and the server answers")


def without_key() -> str:
    """Why there is no key to show to the server; empty when wandb finds one, wherever it keeps keys."""
    wandb = library()
    try:
        return "" if wandb.login(prompt=False, verify=False) else f"there is no key for {server()}"
    except wandb.errors.AuthenticationError as e:
        return str(e).rstrip(".")


def server() -> str:
    """The address of the W&B server in force."""
    return library().setup().settings.base_url


def unreachable(address: str) -> str:
    """Why nobody answers at this address, in a few words; empty when a server is there."""
    try:
        with urllib.request.urlopen(f"{address}/graphql", timeout=PROBE):
            return ""
    except urllib.error.HTTPError as e:
        return f"it answers {e.code}" if e.code >= 500 else ""  # it need not like the question
    except urllib.error.URLError as e:
        # whether a certificate is good is for wandb to say, which has settings for it
        return "" if isinstance(e.reason, ssl.SSLError) else str(getattr(e.reason, "strerror", None) or e.reason)
    except (OSError, http.client.HTTPException, ValueError) as e:
        return str(e) or type(e).__name__
