"""Films as pictures for a browser: small ones and large ones, made when asked for, and kept."""

import threading
from collections import OrderedDict
from collections.abc import Callable

KEPT_BYTES = 1 << 28
SMALL, LARGE = (176, 176), (1600, 1600)


class Pictures:
    """Pictures by key, the latest `KEPT_BYTES` of them in memory: no film lies in another file."""

    def __init__(self, most: int = KEPT_BYTES) -> None:
        self._most, self._size = most, 0
        self._kept: OrderedDict[tuple[str, int], bytes] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, key: tuple[str, int], make: Callable[[], bytes]) -> bytes:
        """The picture, made by `make` where it is not kept; what that raises passes through."""
        with self._lock:
            if key in self._kept:
                self._kept.move_to_end(key)
                return self._kept[key]
        picture = make()
        with self._lock:
            if key not in self._kept:
                self._kept[key] = picture
                self._size += len(picture)
            while self._size > self._most:
                self._size -= len(self._kept.popitem(last=False)[1])
        return picture
