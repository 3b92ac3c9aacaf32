"""Tables for the split tests: random clinics and a MURA-like table of known group counts."""

from pathlib import Path

import numpy as np
import pandas as pd

from selftaught.data.manifest import Manifest

COLUMNS = ["path", "label", "patient", "study", "body_part", "mask", "split", "semi_label"]
TEXT = ("patient", "study", "body_part", "mask", "split")


def manifest_of(table: pd.DataFrame) -> Manifest:
    """A manifest from plain columns; absent ones are blank, as `read_manifest` leaves them."""
    table = table.reset_index(drop=True)
    for name in TEXT:
        if name not in table:
            table[name] = ""
    if "semi_label" not in table:
        table["semi_label"] = pd.NA
    others = [name for name in table if name not in COLUMNS]
    table = table[[*COLUMNS, *others]].astype(
        {"label": "Int8", "semi_label": "Int8", "path": "str", **dict.fromkeys(TEXT, "str")}
    )
    return Manifest(Path("."), table, "manifest.csv", np.arange(len(table)) + 2)


def random_clinic(seed: int, *, patients: int = 300, blank: float = 0.0) -> Manifest:
    """Patients with 1 to 9 images: all normal, all abnormal or mixed; some wholly unlabelled."""
    random = np.random.default_rng(seed)
    abnormal_share = random.uniform(0.15, 0.6)
    rows = []
    for patient in range(patients):
        kind = random.choice(["n", "a", "m"], p=[0.95 - abnormal_share, abnormal_share, 0.05])
        unlabelled = random.random() < blank
        for image in range(int(random.integers(1, 10))):
            label = {"n": 0, "a": 1, "m": int(random.integers(2))}[kind]
            hidden = unlabelled or random.random() < blank / 4
            rows.append(
                {
                    "path": f"p{patient}/{image}.png",
                    "label": pd.NA if hidden else label,
                    "patient": f"patient {patient}",
                    "body_part": str(random.choice(["hand", "elbow"])),
                    "site": str(random.integers(5)),
                }
            )
    return manifest_of(pd.DataFrame(rows))


def mura_like(normal: int = 8400, abnormal: int = 5350, mixed: int = 250) -> Manifest:
    """Groups of (patient, body part) in the numbers of the reference, 2.85 images a group."""
    random = np.random.default_rng(7)
    kinds = np.repeat(["n", "a", "m"], [normal, abnormal, mixed])
    random.shuffle(kinds)
    sizes = np.maximum(random.poisson(2.7, len(kinds)), np.where(kinds == "m", 2, 1))
    group = np.repeat(np.arange(len(kinds)), sizes)
    position = np.arange(len(group)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    kind = kinds[group]
    label = np.where(kind == "m", position % 2, kind == "a").astype(int)
    parts = np.array(["hand", "elbow", "wrist"])[group % 3]
    patient = np.char.add("patient", np.char.zfill((group // 3).astype(str), 5))
    path = [f"{p}/{b}/{i}.png" for p, b, i in zip(patient, parts, position, strict=True)]
    table = {"path": path, "label": label, "patient": patient, "body_part": parts}
    return manifest_of(pd.DataFrame(table))
