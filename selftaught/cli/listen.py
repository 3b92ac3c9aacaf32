"""`selftaught listen`: films come from an archive by C-STORE, results go back the same way."""

from collections.abc import Sequence
from pathlib import Path

from selftaught.cli.dicom import add_captures
from selftaught.cli.parser import build_parser, parse
from selftaught.errors import InputError


def main(arguments: Sequence[str]) -> None:
    """Listen until TERM or INT."""
    parser = build_parser("listen", "Take films by C-STORE, score them, send reports back.")
    parser.add_argument("model", type=str, help="model folder, or run folder with one")
    parser.add_argument("--to", type=str, default="", help="archive for results: AET@host:port")
    parser.add_argument("--aet", type=str, default="SELFTAUGHT", help="own AE title")
    parser.add_argument("--host", type=str, default="127.0.0.1", help="address to listen on")
    parser.add_argument("--port", type=int, default=11112, help="port to listen on")
    parser.add_argument(
        "--from",
        type=str,
        default="",
        help="AE titles that may call, by commas; default: that of --to",
    )
    parser.add_argument(
        "--quiet", type=float, default=30.0, help="seconds without a film that end a study"
    )
    parser.add_argument(
        "--spool", type=str, default="selftaught-spool", help="folder for what is on its way"
    )
    add_captures(parser)
    options = parse(parser, arguments)
    from selftaught.dicom.folder import keep_quiet
    from selftaught.dicom.network import Address, Listener, Sender, title
    from selftaught.dicom.scorer import Scorer
    from selftaught.dicom.service import serve
    from selftaught.dicom.spool import Spool
    from selftaught.training.stop import Stopper

    if not options.to:
        raise InputError("to is missing; allowed: AET@host:port of the archive for results")
    to, aet = Address.of(options.to), title("aet", options.aet)
    senders = [title("from", one) for one in (options["from"] or to.aet).split(",")]
    if not (0 <= options.port < 2**16 and 0 <= options.quiet < 2**20):
        raise InputError(
            f"port, quiet are {options.port}, {options.quiet}; allowed: a port; 0 or more seconds"
        )
    stopper = Stopper().install()
    scorer = Scorer(Path(options.model), captures=options.captures)
    keep_quiet()
    spool = Spool(Path(options.spool), scorer.model.digest)
    listener = Listener(spool, aet, options.host, options.port, senders)
    sender = Sender(spool, aet, to, report)
    serve(
        scorer,
        spool,
        listener,
        sender,
        quiet=options.quiet,
        stopped=lambda: bool(stopper.code),
        report=report,
    )
    raise stopper.exit("what was taken is in the spool, the same command goes on with it")


def report(line: str) -> None:
    """A line of the log."""
    print(line, flush=True)
