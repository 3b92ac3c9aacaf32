"""The listener's main loop: films of quiet studies are scored, their results put to the sender."""

import time
from collections.abc import Callable, Iterator

from selftaught.dicom.folder import saved
from selftaught.dicom.network import Listener, Sender
from selftaught.dicom.scorer import BATCH, Scorer
from selftaught.dicom.spool import Spool
from selftaught.errors import MachineError

LOOK, AFTER_FAULT = 0.1, 5.0  # seconds between two looks at the spool


def serve(
    scorer: Scorer,
    spool: Spool,
    listener: Listener,
    sender: Sender,
    *,
    quiet: float,
    stopped: Callable[[], bool],
    report: Callable[[str], object],
) -> None:
    """Work until `stopped`; what was taken by then is in the spool.

    Args:
        scorer: of the model.
        spool: between all of them.
        listener: is started, and stopped at the end.
        sender: likewise.
        quiet: seconds without a new film after which a study counts as whole.
        stopped: whether to end.
        report: takes lines for the log, which name no patient, study or film.

    Raises:
        InputError: the address cannot be listened on.
    """
    report(f"{listener.start()}; results go to {sender.to.aet}; research, not a diagnosis")
    sender.start()
    try:
        wait = LOOK
        while not stopped():
            try:
                for line in _round(scorer, spool, quiet, stopped):
                    report(f"{listener.taken} films taken; {line}")
                wait = LOOK
            except (MachineError, MemoryError) as error:
                report(f"{error or 'out of memory'}; what was taken is kept and tried again")
                wait = AFTER_FAULT
            until = time.monotonic() + wait
            while not stopped() and time.monotonic() < until:
                time.sleep(LOOK)
    finally:
        listener.stop()
        sender.stop()


def _round(
    scorer: Scorer, spool: Spool, quiet: float, stopped: Callable[[], bool]
) -> Iterator[str]:
    """One look at the spool; a line for each batch of films."""
    paths = spool.ready(quiet)
    for start in range(0, len(paths), BATCH):
        if stopped():
            return
        some = paths[start : start + BATCH]
        results = scorer([scorer.read(path) for path in some])
        for path, result in zip(some, results, strict=True):
            spool.settle(path, result.facts(), [saved(one) for one in result.objects])
        fine = [result for result in results if not result.problem]
        flagged = sum(result.columns.get("flagged", 0) for result in fine)
        yield f"{len(fine)} of {len(some)} films scored, {flagged} flagged"
