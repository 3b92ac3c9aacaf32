"""Entry point: finds the command, runs it and turns errors into one line and an exit code."""

import errno
import importlib
import os
import re
import signal
import sys
import threading
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import FrameType

from selftaught import __version__
from selftaught.errors import InputError, MachineError
from selftaught.files import FULL_DISK

COMMANDS = {
    "demo": "synthetic radiographs, then the whole job on them, in a few minutes",
    "synth": "write a labelled set of synthetic radiographs with ground truth",
    "prepare": "raw films -> checked, cropped, masked, packed set",
    "split": "grouped split and label draw of a manifest, printed and saved",
    "run": "(prepare ->) pretext -> centres -> fine-tuning -> score -> evaluate -> report",
    "pretrain": "first stage of run: split and contrastive pre-training",
    "finetune": "second stage of run: centres and fine-tuning, writes the model",
    "score": "score a run's images, or any images with a trained model",
    "evaluate": "AUROC and the other figures of a run or of any scores.csv",
    "report": "report.html and MODEL_CARD.md of a run",
    "compare": "runs on the same test images: one table, paired differences of AUROC, a page",
    "maps": "films with the heat of their scores, on one scale for all films of a model",
    "calibrate": "threshold for a wished false-alarm rate on a site's own films -> new model",
    "monitor": "what changed since: scores, embeddings and headers of a week's films, alarms",
    "look": "a page to look at films and label them, and POST /score",
    "export": "a model as one ONNX or torch.export file, films in, scores out",
    "verify": "whether an exported file is unaltered and scores here as where it was written",
    "serve": "POST /score of an exported model, without torch",
    "dicom": "score a folder of DICOM studies; results as DICOM reports and captures",
    "listen": "take films from an archive over the network, send results back",
    "log": "mirror a run into MLflow or Weights & Biases",
    "table1": "every system of the paper's Table 1 on the same images, and the table",
    "bench": "run a benchmark of the source tree",
    "doctor": "versions, devices, backends with reasons, optional parts",
}

WRONG_PATH = (
    errno.ENOENT,
    errno.ENOTDIR,
    errno.EISDIR,
    errno.EACCES,
    errno.EEXIST,
    errno.ENAMETOOLONG,
)

HELP = """usage: selftaught COMMAND [options]

Finds abnormal radiographs with almost no labels. Start with `selftaught demo`; with images of
your own: selftaught run --data.manifest images.csv --out my-run

{commands}

selftaught COMMAND --help lists a command's options. Every training command runs unchanged under
torchrun. Exit codes: 0 done, 2 the input is wrong, 3 the machine failed (start again: the run
continues), 4 done, and `monitor` raises an alarm, 130 or 143 stopped by a signal after saving."""


def usage() -> str:
    """The text of `selftaught --help`."""
    width = max(map(len, COMMANDS))
    lines = [f"  {name:<{width}}  {text}" for name, text in COMMANDS.items()]
    return HELP.format(commands="\n".join(lines))


def complain(text: str) -> None:
    """One line on standard error."""
    print("selftaught: " + " ".join(text.split()), file=sys.stderr)


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command.

    Args:
        argv: arguments without the program's name; the process's own by default.

    Returns:
        The exit code.
    """
    open_streams()
    try:
        code = _command(argv)
        sys.stdout.flush()
        return code
    except BrokenPipeError:
        sys.stdout = open(os.devnull, "w")  # what is left in the old one has no reader
        complain("nobody reads the output any more; what was done is saved")
        return 3


def _command(argv: Sequence[str] | None) -> int:
    arguments = launched_as(list(sys.argv[1:] if argv is None else argv))
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(usage())
        return 0 if arguments else 2
    if arguments[0] == "--version":
        print(__version__)
        return 0
    name, rest = arguments[0], arguments[1:]
    if name not in COMMANDS:
        complain(f"unknown command {name!r}; allowed: {', '.join(COMMANDS)}")
        return 2
    return guarded(name, rest)


def one_line(message: Warning | str, *_: object) -> str:
    """A warning as the person at the terminal needs it: what, not where in our code."""
    return "selftaught: warning: " + " ".join(str(message).split()) + "\n"


def launched_as(arguments: list[str]) -> list[str]:
    """The arguments without the --local_rank=N that DeepSpeed's launcher puts before them."""
    if not arguments or not re.fullmatch(r"--local[-_]rank=\d+", arguments[0]):
        return arguments
    os.environ.setdefault("LOCAL_RANK", arguments[0].partition("=")[2])
    return arguments[1:]


def open_streams() -> None:
    """Open closed descriptors 0 to 2 on the null device, so that no file of ours takes one."""
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest number that is free
            os.set_inheritable(number, True)
        if getattr(sys, name) is None:
            setattr(sys, name, open(number, "w" if number else "r", closefd=False))
    if getattr(sys.stdout, "errors", "") == "strict" and hasattr(sys.stdout, "reconfigure"):
        # A name that this terminal cannot show is no reason to end.
        sys.stdout.reconfigure(errors="backslashreplace")


@contextmanager
def early_signals() -> Iterator[None]:
    """TERM and USR1 where nothing else takes them, as while torch is imported: 143, one line."""
    from selftaught.training.stop import EXIT_CODES, StopRun

    def stop(number: int, _: FrameType | None) -> None:
        advice = "what was written is whole, start the same command again"
        raise StopRun(EXIT_CODES[signal.Signals(number)], advice)

    numbers = [one for one in EXIT_CODES if signal.getsignal(one) is signal.SIG_DFL]
    if threading.current_thread() is not threading.main_thread():
        numbers = []
    for number in numbers:
        signal.signal(number, stop)
    try:
        yield
    finally:
        for number in numbers:
            if signal.getsignal(number) is stop:
                signal.signal(number, signal.SIG_DFL)


def guarded(name: str, arguments: list[str]) -> int:
    """Run one command's `main(arguments)` and translate what it raises."""
    from selftaught.training.stop import StopRun

    warnings.formatwarning = one_line  # type: ignore[assignment]
    try:
        with early_signals():
            return int(importlib.import_module(f"selftaught.cli.{name}").main(arguments) or 0)
    except InputError as error:
        complain(str(error))
        return 2
    except MachineError as error:
        complain(str(error))
        return 3
    except StopRun as stop:
        complain(f"stopped by a signal; {stop.outcome}")
        return stop.code
    except KeyboardInterrupt:
        complain("interrupted; the same command goes on from the last checkpoint")
        return 130
    except UnicodeEncodeError as error:
        complain(
            f"{ascii(error.object)} cannot be a file's name in this locale ({error.encoding}); "
            "allowed: a UTF-8 locale, such as LC_ALL=C.UTF-8"
        )
        return 2
    except OSError as error:
        if error.errno in FULL_DISK or error.errno == errno.EIO:
            complain(f"{error.filename or 'disk'}: {error.strerror}; the last checkpoint is intact")
            return 3
        if error.errno in WRONG_PATH:
            where = f"{error.filename}: " if error.filename else ""  # none: it names them itself
            complain(f"{where}{error.strerror}; allowed: a path that can be used")
            return 2
        raise
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("selftaught"):
            raise
        extra = {"starlette": "serve", "uvicorn": "serve", "onnxruntime": "serve"}
        extra |= {"pynetdicom": "dicom", "highdicom": "dicom"}
        extra |= {"onnx": "export", "onnxscript": "export"}
        complain(
            f"the package {error.name} is missing; install it by: pip install "
            f"selftaught[{extra.get(error.name or '', 'train')}]"
        )
        return 2
    except (RuntimeError, MemoryError) as error:
        if not (reason := of_machine(error)):
            raise
        complain(f"{reason}; what was saved is intact, the same command goes on from there")
        return 3


def of_machine(error: RuntimeError | MemoryError) -> str:
    """What failed, where it was memory or a device; "" for a fault of the program."""
    message = (str(*error.args[:1]).strip() or "no more memory").splitlines()[0]
    if isinstance(error, MemoryError):
        return f"out of memory: {message}"
    if "DefaultCPUAllocator" in message:
        return f"out of memory: {message.partition('DefaultCPUAllocator: ')[2] or message}"
    torch = sys.modules.get("torch")
    if torch and isinstance(error, torch.OutOfMemoryError):
        return f"the device is out of memory: {message}"
    if torch and isinstance(error, torch.AcceleratorError):
        return f"the device failed: {message}"
    return ""
