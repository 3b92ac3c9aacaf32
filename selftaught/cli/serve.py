"""`selftaught serve`: scores over HTTP from an exported model, with onnxruntime and no torch."""

from collections.abc import Sequence
from pathlib import Path

from selftaught.cli.parser import build_parser, parse


def main(arguments: Sequence[str]) -> None:
    """Answer POST /score, /healthz and /metrics on this machine until a signal comes."""
    parser = build_parser("serve", "Scores of films over HTTP, on this machine alone.")
    parser.add_argument("model", type=str, help="FILE.onnx of `selftaught export`")
    parser.add_argument("--port", type=int, default=8017, help="0 = any that is free")
    options = parse(parser, arguments)
    from starlette.applications import Starlette

    from selftaught.export.runtime import Exported
    from selftaught.web.exported import scorer_of
    from selftaught.web.scoring import Service
    from selftaught.web.server import ADDRESS, Guard, listen, serve

    model = Exported.load(Path(options.model))
    service = Service(scorer_of(model), model.facts["model"])
    open_ = listen(options.port)
    port = open_.getsockname()[1]
    print(f"POST a film's bytes to http://{ADDRESS}:{port}/score", flush=True)
    try:
        serve(Guard(Starlette(routes=service.routes), port), open_)
    except KeyboardInterrupt:
        print("stopped")
