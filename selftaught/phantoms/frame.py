"""Everything about one radiograph that an anomaly does not change."""

import numpy as np

from selftaught.phantoms.anatomy import SCENES, UPWARDS
from selftaught.phantoms.anatomy.person import draw_person
from selftaught.phantoms.exposure import draw_exposure
from selftaught.phantoms.layout import Layout, clean_layout, cluttered_layout
from selftaught.phantoms.raster import Canvas, fine_for
from selftaught.phantoms.scene import Scene
from selftaught.phantoms.streams import stream
from selftaught.phantoms.texture import textures


class Frame:
    """Everything about one picture that an anomaly does not change."""

    def __init__(
        self, seed: int, index: int, size: int, part: str, clutter: bool, patient: int, study: int
    ) -> None:
        self.key = (seed, index)
        self.size = size
        self.part = part
        self.shape_key = (seed, "shape", patient, part)
        self.person = draw_person(stream(seed, "person", patient))
        self.mirrored = bool(stream(seed, "side", study, part).random() < 0.5)
        self.view = ""
        window = self.scene(0).window
        page = stream(seed, "page", index)
        extent = (window[2], window[3])
        letter = "L" if self.mirrored else "R"
        self.layout: Layout = (
            cluttered_layout(extent, size, letter, page) if clutter else clean_layout(extent, size)
        )
        self.exposure = draw_exposure(stream(seed, "exposure", index))

    def scene(self, part: int) -> Scene:
        """The healthy anatomy of one exposure."""
        pose = stream(*self.key, "pose", part)
        scene = SCENES[self.part](self.person, stream(*self.shape_key), pose)
        self.view = self.view or scene.view
        return scene

    def expose(self, part: int) -> tuple[Canvas, Scene]:
        """The pixel grid and the anatomy of one exposure."""
        scene, layout = self.scene(part), self.layout
        pose = stream(*self.key, "camera", part)
        angle = float(np.clip(pose.normal(0, 0.07), -0.2, 0.2))
        zoom = np.sqrt(self.person.size) * float(pose.uniform(0.97, 1.05))
        cosine, sine = np.cos(angle) * zoom, np.sin(angle) * zoom
        turn = np.array([[cosine, -sine], [sine, cosine]])
        turn = turn @ np.diag(
            [-1.0 if self.mirrored else 1.0, -1.0 if self.part in UPWARDS else 1.0]
        )
        center = np.array([0.0, 0.0])
        if layout.parts == 2:
            center[0] = (-0.25 if part == 0 else 0.25) * layout.film[0]
        linear = layout.matrix[:, :2] @ turn
        offset = layout.pixels(center[None])[0] - linear @ np.array(scene.window[:2])
        grain, fibres = textures(
            stream(*self.key, "texture", part), layout.height, layout.width, layout.scale
        )
        canvas = Canvas(
            height=layout.height,
            width=layout.width,
            matrix=np.column_stack((linear, offset)),
            fine=fine_for(self.size),
            grain=grain,
            fibres=fibres,
        )
        return canvas, scene
