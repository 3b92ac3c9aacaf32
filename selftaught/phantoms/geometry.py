"""Polygons and rigid movements in the plane."""

from dataclasses import replace

import numpy as np

from selftaught.phantoms.shapes import Array, Bone, Soft


def rounded(corners: Array, rounds: int = 3) -> Array:
    """Cut the corners of a closed polygon `rounds` times (quadratic spline), (N, 2) -> (M, 2)."""
    for _ in range(rounds):
        following = np.roll(corners, -1, axis=0)
        corners = np.stack(
            (0.75 * corners + 0.25 * following, 0.25 * corners + 0.75 * following), axis=1
        ).reshape(-1, 2)
    return corners


def rotation(angle: float) -> Array:
    """(2, 2) matrix that turns column vectors by `angle` radians."""
    cosine, sine = np.cos(angle), np.sin(angle)
    return np.array([[cosine, -sine], [sine, cosine]])


def moved(points: Array, pivot: Array, angle: float, shift: Array) -> Array:
    """Turn (N, 2) points around `pivot`, then shift them."""
    return (points - pivot) @ rotation(angle).T + pivot + shift


def moved_bone(bone: Bone, pivot: Array, angle: float, shift: Array) -> Bone:
    """A bone turned and shifted as a rigid body."""
    return replace(
        bone,
        outline=moved(bone.outline, pivot, angle, shift),
        axis=moved(bone.axis, pivot, angle, shift),
        clips=tuple(moved(clip, pivot, angle, shift) for clip in bone.clips),
    )


def moved_soft(soft: Soft, pivot: Array, angle: float, shift: Array) -> Soft:
    """Soft tissue turned and shifted as a rigid body."""
    start, end = moved(np.stack((soft.start, soft.end)), pivot, angle, shift)
    return replace(soft, start=start, end=end)


def strip(points: Array, half_width: float) -> Array:
    """Outline (2N, 2) of a band of constant width along a polyline (N, 2), mm."""
    along = np.gradient(points, axis=0)
    along /= np.maximum(np.linalg.norm(along, axis=1, keepdims=True), 1e-9)
    across = np.stack((-along[:, 1], along[:, 0]), axis=1) * half_width
    return np.concatenate((points + across, (points - across)[::-1]))


def disc(center: Array, radius: float, corners: int = 20) -> Array:
    """Outline (corners, 2) of a disc, mm."""
    turns = np.linspace(0, 2 * np.pi, corners, endpoint=False)
    return center + radius * np.stack((np.cos(turns), np.sin(turns)), axis=1)
