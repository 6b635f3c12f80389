"""Options of the server. Torch-free."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from pathlib import Path

DEFAULT_HOST, DEFAULT_PORT = "127.0.0.1", 8000


@dataclass(frozen=True)
class ServerOptions:
    """What the server loads, where it listens, and what it accepts.

    Attributes:
        runs: run folders, adapter folders or exported files of language models.
        weights: backbone weights that replace those of the recipes; None: as recorded.
        device: device of the models; None: that of each recipe.
        host: address to listen on.
        port: TCP port; 0 selects a free one.
        api_key: key that clients must send; None: none is required.
        max_tokens: largest number of new tokens that a request may ask for.
        max_batch: number of answers that are generated together.
        max_queue: number of answers that may wait; further requests are refused.
        max_body: largest size of a request in bytes.
        grace: seconds that running answers have after SIGTERM.
    """

    runs: tuple[Path, ...]
    weights: str | None = None
    device: str | None = None
    host: str = DEFAULT_HOST
    port: int = DEFAULT_PORT
    api_key: str | None = None
    max_tokens: int = 4096
    max_batch: int = 16
    max_queue: int = 128
    max_body: int = 2**20
    grace: float = 20.0

    @property
    def is_local(self) -> bool:
        """Return whether only programs on this machine can connect."""
        return is_loopback(self.host)


def is_loopback(host: str) -> bool:
    """Return whether a host name or an address is that of this machine alone."""
    bare = host.strip("[]").lower()
    if bare == "localhost" or bare.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(bare).is_loopback
    except ValueError:
        return False
