"""Which image trains, validates or tests, and which labels training may know.

Symbols: f `train_fraction`, a `known_normal`, b `known_abnormal`, p `pollution`. A group is normal
if all its labelled images are normal, abnormal if all are abnormal, else mixed; one without labels
is blank. Groups never cross train, val and test. `semi_label` is +1 known normal, -1 known
abnormal, 0 unknown. The result depends on the rows as a set and on the settings, not on their
order.

**Scheme `default`** counts labelled images. Each kind of group has one order of draw, a hash of
(seed, group); every draw is the prefix of groups whose images come nearest to a target.

1. Of M labelled images, n in normal groups, P = min(f M, (1 - (1 - f)/4) n) stay for training: the
   nominal size, while evaluation keeps at least a quarter of its fair share of normals. Of the
   images in abnormal groups, the share f stays for training. Everything else, and every mixed
   group, is halved into val and test, kind by kind. Nothing here depends on a, b or p, so val and
   test are the same for every label budget.
2. With u images in blank groups and w = 1 - b - p (1 - a - b), the training set has nominal size
   S = P + u/w: w P normal images, the u blank ones, b S known abnormal and p (1 - a - b) S unknown
   abnormal ones. Of the normals, a S are known. So b, a and p are shares of what is trained on.
3. Known normals and known abnormals are prefixes of the order of draw, hence nested over budgets;
   pollution comes from the far end of the abnormal order. A larger b or p takes normals off the end
   of the order only. What is kept for training but not drawn is `unused`.

From 1 on, `known_abnormal` is a number of images that come on top of the P normals: b is 0 in the
formulas, and the known abnormals are as many. With `labels` all, all abnormals kept for training
are known, whatever b; the rest is as with b.

Too few abnormals for b: all are known, with a warning. Too few for p: an error. No abnormal group:
b counts as 0. A `semi_label` column replaces steps 2 and 3: groups with known images come first in
the order, normals kept for training all train, of the abnormals those with a known image; outside
train it is 0.

**Scheme `paper`** (Spahr et al. 2021) counts groups of (patient, body part); T have a label. Each
draw uses a fresh legacy NumPy generator over sorted groups. int((1 - b) f T) normal and
int(b f T) abnormal groups train; the rest of each kind and the mixed groups are halved, val
rounding down. In train int(a f T) normal groups are known and all abnormal ones; val and test are
labelled alike with nominal size (1 - f)/2 T, which nothing in evaluation uses. The test set
depends on b.

**A manifest with a `split`** (any cell filled) keeps it under both schemes. Blank cells become
`unused`. Without val rows, the share `val_fraction` of the labelled training groups of each kind
becomes val, with a warning; groups with a given semi label other than 0 are spared. With W normal
and blank-label training images, S = W/w as above: a S normals and b S abnormals become known,
p (1 - a - b) S abnormals stay as unknown, the others become `unused` (scheme `paper`: the same in
groups). Given `semi_label` cells are kept as they are, blank ones being 0, and then no abnormal
image is taken out.

**Folds** (`folds` above 0, scheme `default`) leave the test set of the usual split `unused`,
whether manifest or `seed` names it, and what the manifest leaves without a set. Of the rest,
groups of each kind are dealt, in an order of their own, to the fold that has the fewest labelled
images of the kind; `fold` is val, the others train. Labels are drawn as in a manifest with a
split, in an order of draw of the fold's own. So every labelled image of the rest is in val once,
and groups without any label train in each fold.

**A blank label** is never counted as normal. Such an image follows its group; in train it is
unknown (`unlabelled="train"`), unknown and seen by pre-training alone (`"pretext"`, right where
many of them may be abnormal), or `unused`; in val and test it is left out of evaluation.
"""

import warnings

import numpy as np
import pandas as pd

from selftaught.data.manifest import Manifest
from selftaught.data.manifest.check import SETS, near_name
from selftaught.data.split.config import SplitConfig, SplitWarning
from selftaught.data.split.default import draw_default
from selftaught.data.split.folds import draw_fold
from selftaught.data.split.given import keep_split
from selftaught.data.split.groups import TRAIN, UNUSED, group_images, truth_of
from selftaught.data.split.paper import draw_paper
from selftaught.data.split.table import FIRST, format_table, read_split, split_table, write_split
from selftaught.errors import InputError
from selftaught.semi_labels import UNKNOWN

__all__ = [
    "SplitConfig",
    "SplitWarning",
    "check_classes",
    "format_table",
    "make_split",
    "read_split",
    "split_table",
    "write_split",
]


def make_split(manifest: Manifest, config: SplitConfig) -> pd.DataFrame:
    """Divide the images of a manifest and draw the labels that training may know.

    Args:
        manifest: from `read_manifest`.
        config: the settings.

    Returns:
        The manifest's rows in their order with columns `path`, `split` (train, val, test, unused),
        `semi_label` (int8), `label` (Int8), `group`, then the manifest's others.

    Raises:
        InputError: no image has a label, a set would be without normal images, a group crosses
            given sets, or the manifest has too few groups for what is asked.
    """
    table = manifest.table
    if table["label"].isna().all():
        raise InputError(
            f'{manifest.name}: no image has a label; allowed: a column "label" with 0 normal, '
            f"1 abnormal, blank unknown{near_name('label', table.columns)}"
        )
    groups = group_images(manifest, config)
    truth = truth_of(table)
    given = None
    if table["semi_label"].notna().any():
        given = table["semi_label"].fillna(UNKNOWN).to_numpy(np.int8)
        if config.labels == "all":
            raise InputError(
                f"split.labels is 'all'; allowed: budget, as {manifest.name} gives semi_label"
            )
        if config.pollution:
            raise InputError(
                f"split.pollution is {config.pollution:g}; allowed: 0, as {manifest.name} gives "
                "semi_label"
            )
    if config.folds:
        if given is not None:
            raise InputError(
                f"split.folds is {config.folds}; allowed: 0, as {manifest.name} gives semi_label "
                "and each fold draws its own"
            )
        sets, semi = draw_fold(manifest, groups, truth, config)
    elif (table["split"] != "").any():
        sets, semi = keep_split(manifest, groups, truth, given, config)
    else:
        draw = draw_paper if config.scheme == "paper" else draw_default
        sets, semi = draw(groups, truth, given, config)
        if config.unlabelled == "unused":
            sets[(sets == TRAIN) & (truth < 0)] = UNUSED
    frame = table.assign(
        split=pd.Series(np.array(SETS, object)[sets], dtype="str"),
        semi_label=semi,
        group=pd.Series(groups.names[groups.codes], dtype="str"),
    )
    frame = frame[[*FIRST, *(column for column in frame.columns if column not in FIRST)]]
    check_classes(frame, manifest.name, config)
    return frame


def check_classes(frame: pd.DataFrame, name: str, config: SplitConfig) -> None:
    """Warn about sets without abnormal images.

    Args:
        frame: a split.
        name: the manifest, as the user calls it.
        config: its settings.

    Raises:
        InputError: a set has no normal image.
    """
    table = split_table(frame)
    if table.loc["train", ["normal", "unlabelled"]].sum() == 0:
        raise InputError(f"{name}: train has no normal image; allowed: at least one")
    for which in config.evaluated:
        if table.loc[which, "normal"] == 0:
            raise InputError(f"{name}: {which} has no image labelled 0; allowed: at least one")
    lacking = [which for which in config.evaluated if table.loc[which, "abnormal"] == 0]
    if lacking:
        warnings.warn(
            f"{name}: {' and '.join(lacking)} without abnormal images: AUROC is undefined there",
            SplitWarning,
            stacklevel=3,
        )
    if table.loc["train", "known_abnormal"] == 0:
        warnings.warn(
            f"{name}: training knows no abnormal image: it only learns what is normal",
            SplitWarning,
            stacklevel=3,
        )
