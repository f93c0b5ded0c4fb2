"""How much a client may ask: a token bucket for each address, in bounded memory."""

import ipaddress
from collections import OrderedDict

_MOST_CLIENTS = 4096  # the address that was quiet longest is forgotten, and starts anew with a full bucket


class Buckets:
    """`burst` requests at once and `rate` per second from then on, for each client. Not for several threads."""

    def __init__(self, *, rate: float | int, burst: float | int) -> None:
        self.rate, self.burst = rate, burst
        self._left: OrderedDict[str, tuple[float, float]] = OrderedDict()  # client -> tokens left, at this time

    def take(self, client: str, *, now: float, cost: float = 1.0) -> float:
        """Let a request in, which is 0.0, or say in how many seconds there is room for it."""
        left, since = self._left.get(client, (float(self.burst), now))
        left = min(float(self.burst), left + (now - since) * self.rate)
        if left < cost:
            return (cost - left) / self.rate
        self._left[client] = (left - cost, now)
        self._left.move_to_end(client)
        if len(self._left) > _MOST_CLIENTS:
            self._left.popitem(last=False)
        return 0.0

    def __len__(self) -> int:
        return len(self._left)


def client_of(address: str) -> str:
    """What counts as one client: an IPv4 address, or the /64 that an IPv6 host may choose its address from."""
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError:
        return address
    if isinstance(parsed, ipaddress.IPv6Address) and parsed.ipv4_mapped is None and not parsed.is_loopback:
        return str(ipaddress.ip_network((parsed, 64), strict=False))
    return address
