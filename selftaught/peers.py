"""Signs of life between ranks: who ended, told to those who wait for it.

A collective of gloo fails without naming the rank that is gone; one of NCCL just waits. So every
rank leaves a sign of life in the launcher's store each second, watches the next rank's, and reads
whether some rank has ended. All that this file uses is a store: set, get, check, compare_set.
"""

import os
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

BEAT_SECONDS = 1.0
# Own beats, not seconds: a job that is suspended as a whole finds nobody silent when it goes on.
SILENT_BEATS = 20
GRACE_SECONDS = 5.0
# Exit codes: a machine failed, and starting again helps; the input is wrong, and it does not.
FAILED, WRONG = 3, 2


class Peers:
    """This rank's signs of life, in a thread, and what is known of the others.

    Args:
        store: shared by the ranks, its keys used by nobody else.
        rank: of this process.
        ranks: how many there are.
        leave: ends the process where its main thread is stuck in a collective.
    """

    def __init__(
        self, store: Any, rank: int, ranks: int, leave: Callable[[int], Any] = os._exit
    ) -> None:
        self.store, self.rank, self.ranks, self.leave = store, rank, ranks, leave
        self.arrivals = 0
        self.beats = 0
        self.explained = False
        self.known = ""
        self.code = FAILED
        self.over = threading.Event()

    def start(self) -> None:
        """Give the first sign of life and go on giving them."""
        self._beat()
        threading.Thread(target=self._watch, name="selftaught-peers", daemon=True).start()

    def stop(self) -> None:
        """Give no more signs, and do not mind that others give none."""
        self.over.set()

    def tell(self, text: str, code: int = FAILED) -> str:
        """Say why the ranks must end, and with which code; the first to say so is right.

        Returns:
            What was said first; its code is in `code`.
        """
        try:
            return self._read(self.store.compare_set("ended", "", f"{code} {text}"))
        except RuntimeError:
            return self._no_store()

    def _read(self, answer: Any) -> str:
        code, _, text = bytes(answer).decode().partition(" ")
        self.code = int(code)
        return text

    def explain(self, seconds: float = 6.0) -> str:
        """Which rank ended, or is behind, after a collective failed on this one.

        Args:
            seconds: a rank without a sign of life for so long has ended; at least 3 beats.
        """
        self.explained = True
        if self.known:
            return self.known
        try:
            before, deadline = self._signs(), time.monotonic() + seconds
            while time.monotonic() < deadline:
                if self.store.check(["ended"]):
                    return self.tell("")
                time.sleep(BEAT_SECONDS / 4)
            after = self._signs()
        except RuntimeError:
            return self.known or self._no_store()
        gone = [r for r in range(self.ranks) if r != self.rank and before[r] == after[r]]
        if gone:
            return self.tell(f"{_names(gone)} ended without a word (killed, or its machine lost)")
        arrived = {r: int(after[r].split()[1]) for r in range(self.ranks) if r != self.rank}
        late = [r for r, count in arrived.items() if count == min(arrived.values())]
        return self.tell(f"{_names(late)} did not arrive within the time limit")

    def _signs(self) -> list[str]:
        keys = [f"rank {r}" for r in range(self.ranks)]
        return [
            bytes(self.store.get(key)).decode() if self.store.check([key]) else "0 0"
            for key in keys
        ]

    def _beat(self) -> None:
        self.beats += 1
        self.store.set(f"rank {self.rank}", f"{self.beats} {self.arrivals}")

    def _no_store(self) -> str:
        return "rank 0, or the launcher that holds the ranks' store, ended without a word"

    def _watch(self) -> None:
        neighbour = (self.rank + 1) % self.ranks
        key, seen, missed = f"rank {neighbour}", "", 0
        while not self.over.wait(BEAT_SECONDS):
            text = ""
            try:
                self._beat()
                if self.store.check(["ended"]):
                    text = self._read(self.store.get("ended"))
                sign = bytes(self.store.get(key)).decode() if self.store.check([key]) else ""
                missed = missed + 1 if sign == seen else 0
                seen = sign
                if missed >= SILENT_BEATS and not text:
                    text = self.tell(
                        f"rank {neighbour} gave no sign of life for {SILENT_BEATS} beats"
                    )
            except RuntimeError:
                text = self._no_store()
            if text:
                self.known = text
                return self._end(text)
        return None

    def _end(self, text: str) -> None:
        """Give the main thread time to end by itself, then end the process."""
        if self.over.wait(GRACE_SECONDS):
            return
        if not self.explained:
            print(f"selftaught: {self.ended(text)}", file=sys.stderr, flush=True)
        elif self.over.wait(GRACE_SECONDS):
            return
        self.leave(self.code)

    def ended(self, text: str) -> str:
        """The line that this rank ends with because of another one."""
        then = "; the last checkpoint is intact: start the same command again"
        return f"{text}; rank {self.rank} ends too{then if self.code == FAILED else ''}"


def _names(ranks: list[int]) -> str:
    return ("rank " if len(ranks) == 1 else "ranks ") + ", ".join(map(str, ranks))
