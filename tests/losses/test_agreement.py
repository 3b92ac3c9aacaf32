"""What the ranks of a group tell each other of their arguments, and when a host looks at it.

On a GPU a look is a wait: there a host looks at arguments that are new to it, and at others a call
later. Here ranks on CPUs behave so.
"""

import pytest
import torch

from selftaught import distributed
from selftaught.losses import group, info_nce_loss, ntxent_loss
from selftaught.sent import Sent
from tests.ranks import run_ranks

WIDTH = 9


def views(rows=4, dtype=torch.float32):
    return torch.randn(2, rows, WIDTH, generator=torch.Generator().manual_seed(rows)).to(dtype)


def loss(rows=4, temperature=0.5, dtype=torch.float32, function=ntxent_loss):
    return function(*views(rows, dtype), temperature=temperature, group="world")


def as_on_a_gpu(function):
    """What `function` gives where a look is a wait, with a list of the rows that were looked at."""
    seen, read = [], Sent.read

    def counted(sent):
        seen.append(sent)
        return read(sent)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(group, "_waits", lambda device: True)
        patch.setattr(Sent, "read", counted)
        return function(seen)


def looks(seen):
    """Of each of several calls, how often the host looked, and whether at the call's own row."""
    counts = []
    for rows in (4, 4, 4, 2, 4, 2, 2):
        seen.clear()
        loss(rows)
        counts.append((len(seen), ("", "ntxent") not in group._unread))
    return counts


def test_a_host_waits_for_arguments_that_are_new_to_it_alone():
    for counts in run_ranks(2, as_on_a_gpu, looks):
        # Of the call before, and of its own where that is new.
        assert counts == [
            *((1, True), (0, False), (1, False), (2, True), (0, False), (1, False), (1, False))
        ]


ALONE = {
    "another number of rows": ({"rows": 3}, "4 x 9 float32", "3 x 9 float32"),
    "another dtype": ({"dtype": torch.float64}, "4 x 9 float32", "4 x 9 float64"),
    "another temperature": ({"temperature": 0.25}, "4 x 9 float32", "4 x 9 float32"),
    "another loss": ({"function": info_nce_loss}, "4 x 9 float32", "4 x 9 float32"),
    "none that are right": ({"temperature": -1.0}, "", ""),
}


def alone(seen):
    """Rank 1 differs once all have agreed: each case's message on this rank."""
    messages = {}
    for name, (different, *_) in ALONE.items():
        loss(), loss()
        if distributed.rank() == 1:
            with pytest.raises(ValueError) as raised:
                loss(**different)
            # Its part of what rank 0 has begun, which on a GPU would wait for ever.
            distributed.gather(torch.zeros(2 * 4, WIDTH))
            group._unread.clear()
        else:
            assert loss().isfinite()
            with pytest.raises(ValueError) as raised:
                loss()
        messages[name] = str(raised.value)
    return messages


def test_a_rank_that_alone_differs_is_named_on_all():
    first, second = run_ranks(2, as_on_a_gpu, alone)
    for name, (_, of_first, of_second) in ALONE.items():
        if of_first:
            assert first[name] == second[name]
            start = "group: every rank must pass the like, got rank 0: "
            assert first[name].startswith(f"{start}{of_first}, settings "), name
            assert f"; rank 1: {of_second}, settings " in first[name], name
            codes = [one.split("; ")[0] for one in first[name].split("settings ")[1:]]
            assert (codes[0] == codes[1]) == (name in tuple(ALONE)[:2]), name
    assert first["none that are right"] == "rank 1: refuses its arguments"
    assert second["none that are right"].startswith("temperature: must be a finite number above 0")


def at_once():
    """On a CPU, where a look costs nothing, every call's own."""
    loss(), loss()
    other = distributed.rank() == 1
    with pytest.raises(ValueError, match="rank 0: 4 x 9 .*temperature.*rank 1: 3 x 9 ") as raised:
        loss(rows=4 - other)
    loss()
    return str(raised.value)


def test_on_a_cpu_all_hear_of_it_at_once_and_can_go_on():
    first, second = run_ranks(2, at_once)
    assert first == second
