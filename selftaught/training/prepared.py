"""Before the split: raw films become a packed set, and the run goes on with that set."""

import dataclasses
from pathlib import Path

from selftaught import distributed
from selftaught.data.manifest.mura import is_mura
from selftaught.errors import InputError
from selftaught.training.config import Config
from selftaught.training.stop import Stopper, first_rank_alone

FOLDER = "prepared"


def use_prepared(config: Config, place: Path, stopper: Stopper) -> Config:
    """Prepare what `data.manifest` names, where that is asked for and not done yet.

    A prepared set is complete once it has its manifest; until then the same command goes on with
    it, whenever it was killed. The first rank prepares, in `prepare.workers` processes.

    Args:
        config: settings as the user gave them.
        place: the run folder, already claimed.
        stopper: asked between shards.

    Returns:
        The settings with the prepared set's manifest in `data.manifest`, or `config` itself.

    Raises:
        InputError: the source, or the folder in `data.pack`, cannot be used.
        MachineError: the disk is full, or a worker was killed.
        StopRun: a signal arrived; finished shards are kept.
    """
    if not _wanted(config):
        return config
    if config.data.image_size > config.prepare.size:
        raise InputError(
            f"prepare.size is {config.prepare.size}; allowed: data.image_size, which is "
            f"{config.data.image_size}, or more; or data.prepare never"
        )
    out = (Path(config.data.pack) if config.data.pack else place / FOLDER).absolute()
    manifest = out / "manifest.csv"
    first_rank_alone(lambda: _prepare(config, out), stopper)
    distributed.barrier()
    if not manifest.is_file():
        raise InputError(
            f"{manifest}: not found; allowed: a folder for data.pack or out that all ranks share"
        )
    data = dataclasses.replace(config.data, manifest=str(manifest))
    return dataclasses.replace(config, data=data)


def _wanted(config: Config) -> bool:
    from selftaught.data.prepare.job import CLAIM

    data, source = config.data, Path(config.data.manifest)
    if not data.manifest or data.prepare == "never":
        return False
    folder = source if source.is_dir() else source.parent
    if (folder / CLAIM).is_file():
        return False  # It is a prepared set.
    return data.prepare == "always" or bool(data.pack) or (source.is_dir() and is_mura(source))


def _prepare(config: Config, out: Path) -> None:
    from selftaught.data.prepare.job import prepare

    outside = config.prepare.allow_outside or config.data.allow_outside
    settings = dataclasses.replace(config.prepare, allow_outside=outside)
    begun = not (out / "manifest.csv").is_file()
    summary = prepare(Path(config.data.manifest), out, settings)
    if begun:
        print(summary, flush=True)
    summary.check(settings.bad_limit, "prepare.bad_limit")
