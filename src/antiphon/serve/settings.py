"""What may be set of a server, and its limits."""

import ipaddress
from dataclasses import dataclass

from antiphon.errors import OptionError

_LEAST_TOKEN = 16  # characters; 16 of base64 are 96 bits


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Where a server listens and what it lets in. Raises `OptionError` for a host beyond this machine without a token.

    Rates are requests per second of one client address, with what it may ask at once; loopback, where all programs
    of this machine share an address, gets `LOOPBACK_SHARE` times as much.
    """

    host: str = "127.0.0.1"
    port: int = 8765
    token: str | None = None
    name: str = "library"  # shown on the page
    max_upload_mb: int = 64  # 10^6 bytes
    max_upload_seconds: float | int = 600.0  # of sound, decoded
    decode_seconds: float | int = 20.0  # of time, for a sound
    upload_wait_seconds: float | int = 60.0  # for the bytes of one to arrive
    uploads_at_once: int = 4
    rate: float | int = 200.0
    burst: int = 400
    upload_rate: float | int = 2.0
    upload_burst: int = 20

    def __post_init__(self) -> None:
        if self.token is None and not self.loopback:
            raise OptionError(
                f"--host {self.host}: other machines reach it, so give a --token of 16 characters or more"
            )
        if self.token is not None and (len(self.token) < _LEAST_TOKEN or not _plain(self.token)):
            raise OptionError("--token: give 16 or more letters, digits, '-' and '_', e.g. from `openssl rand -hex 16`")

    @property
    def loopback(self) -> bool:
        """Whether only this machine reaches the host."""
        return is_loopback(self.host)

    @property
    def max_upload_bytes(self) -> int:
        """The largest upload."""
        return self.max_upload_mb * 1_000_000


def is_loopback(host: str) -> bool:
    """Whether a host's name or address means this machine alone."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host.lower() == "localhost"


def _plain(token: str) -> bool:
    return token.isascii() and all(letter.isalnum() or letter in "-_" for letter in token)
