"""How many pairs of a set are near-duplicates: our hash of 255 bits, and one of 64 as is usual.

python -m benchmarks.near_duplicates MANIFEST

Compares all images of a manifest with each other, whatever their sets, and once more with one of
the two mirrored. With patients it also counts the pairs of one patient, and those of them that are
near.
The hash of 64 bits compares the 8 x 8 lowest frequencies with their median.
"""

import argparse
from pathlib import Path

import cv2
import numpy as np

from selftaught.data.images.decode import read_grey
from selftaught.data.manifest import read_manifest
from selftaught.data.split.duplicates import BITS, NEAR, SIDE, mirror, near_codes
from selftaught.data.survey import survey

FAR = 60  # bits; pairs up to there are listed to see where the next ones begin


def usual_hash(grey: np.ndarray) -> np.ndarray:
    """(8,) uint8: the 8 x 8 lowest frequencies above their median."""
    small = cv2.resize(grey.astype(np.float32), (SIDE, SIDE), interpolation=cv2.INTER_AREA)
    lowest = cv2.dct(small)[:8, :8]
    return np.packbits(lowest > np.median(lowest))


def pairs(first: np.ndarray, second: np.ndarray, most: int) -> np.ndarray:
    """(P, 3) int64 rows, first < second, and differing bits, of pairs with at most `most` bits."""
    found = [np.stack(block, 1)[block[0] < block[1]] for block in near_codes(first, second, most)]
    return np.concatenate(found)


def told(distance: np.ndarray) -> str:
    """What the distances say."""
    near, far = distance[distance <= NEAR], distance[distance > NEAR]
    nearest = f"the next pair differs in {far.min()}" if len(far) else f"none up to {FAR}"
    return f"{len(near)} near, {(near == 0).sum()} of them equal; {nearest}"


def main() -> None:
    """Print the counts."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("manifest", type=Path)
    manifest = read_manifest(parser.parse_args().manifest)
    files = [manifest.root / path for path in manifest.table["path"]]
    checked = survey(files, hashes=True)
    rows = np.flatnonzero(checked.hashed)
    hashes, count = checked.hashes[rows], len(rows)
    print(
        f"{count} images, {count * (count - 1) // 2:,} pairs, near: {NEAR} of {BITS} bits or fewer"
    )
    found = pairs(hashes, hashes, FAR)
    print(f"as they are: {told(found[:, 2])}")
    print(f"one mirrored: {told(pairs(hashes, mirror(hashes), FAR)[:, 2])}")
    patients = manifest.table["patient"].to_numpy(object)[rows]
    sizes = [int((patients == name).sum()) for name in set(patients) - {""}]
    near = found[found[:, 2] <= NEAR]
    same = patients[near[:, 0]] == patients[near[:, 1]]
    same &= patients[near[:, 0]] != ""
    print(f"pairs of one patient: {sum(n * (n - 1) // 2 for n in sizes)}, near: {same.sum()}")
    codes = np.stack([usual_hash(read_grey(files[row])) for row in rows])
    most = NEAR * 64 // BITS  # the same share
    print(f"64 bits: {len(pairs(codes, codes, most)):,} pairs differ in {most} or fewer")


if __name__ == "__main__":
    main()
