"""Two augmented views the way others make them: torchvision v2, and Pillow as published.

Each peer is a function (path, mask path or None) -> (2, S, S) float32 tensor. All do the steps of
`pretext_augment` with their own random numbers, and all read packs with our reader.
"""

import importlib.util
import random

import numpy as np
import torch

from selftaught.data.augment import pretext_augment
from selftaught.data.images.contrast import autocontrast
from selftaught.data.images.pack import locate
from selftaught.data.pipeline.sample import load

SIZE, CUTOFF = 512, 1.0
RECIPE = pretext_augment("default")


def read_with_opencv(path, mask):
    """Stretched (H, W) and mask (H, W) or None."""
    if locate(path) is not None:
        return load(path, mask, cutoff=CUTOFF)
    import cv2

    image = autocontrast(cv2.imread(str(path), cv2.IMREAD_GRAYSCALE), CUTOFF)
    return image, None if mask is None else cv2.imread(str(mask), cv2.IMREAD_GRAYSCALE)


def torchvision_v2():
    from torchvision import tv_tensors
    from torchvision.transforms import v2

    bilinear = v2.InterpolationMode.BILINEAR
    square = v2.Compose([v2.RandomHorizontalFlip(RECIPE.horizontal_flip)])
    geometry = [
        v2.RandomAffine(RECIPE.rotation, scale=RECIPE.scale, interpolation=bilinear),
        v2.RandomResizedCrop(SIZE, RECIPE.crop_area, RECIPE.crop_ratio, antialias=True),
    ]
    low, high = RECIPE.color_brightness
    jitter = v2.ColorJitter(brightness=(low, high), contrast=RECIPE.color_contrast)
    kernel = 2 * int(np.ceil(3 * RECIPE.blur_sigma[1])) + 1
    tone = [
        v2.RandomApply([jitter], RECIPE.color),
        v2.RandomApply([v2.GaussianBlur(kernel, RECIPE.blur_sigma)], RECIPE.blur),
    ]
    augment = v2.Compose([square, *geometry, *tone])

    def padded(array):
        height, width = array.shape
        left, top = (SIZE - width) // 2, (SIZE - height) // 2
        sides = [left, top, SIZE - width - left, SIZE - height - top]
        return v2.functional.pad(torch.from_numpy(array)[None], sides)

    def finish(image, mask):
        view = image.to(torch.float32)
        least, most = torch.aminmax(view)
        view = (view - least) / (most - least + 255e-6)
        return view[0] if mask is None else (view * (mask > 0))[0]

    def views(path, mask):
        image, region = read_with_opencv(path, mask)
        image = tv_tensors.Image(padded(np.ascontiguousarray(image)))
        if region is None:
            return torch.stack([finish(augment(image), None) for _ in range(2)])
        region = tv_tensors.Mask(padded(region))
        return torch.stack([finish(*augment(image, region)) for _ in range(2)])

    return views


def pillow_as_published():
    from PIL import Image, ImageEnhance, ImageFilter, ImageOps

    linear, between = Image.Resampling.BILINEAR, random.uniform

    def read(path, mask):
        if locate(path) is not None:
            image, region = load(path, mask, cutoff=CUTOFF)
            return Image.fromarray(image), None if region is None else Image.fromarray(region)
        image = ImageOps.autocontrast(Image.open(path).convert("L"), CUTOFF)
        return image, None if mask is None else Image.open(mask).convert("L")

    def square(image):
        ratio = SIZE / max(image.size)
        image = image.resize([round(side * ratio) for side in image.size], Image.Resampling.LANCZOS)
        left, top = (SIZE - image.width) // 2, (SIZE - image.height) // 2
        rest = (SIZE - image.width - left, SIZE - image.height - top)
        return ImageOps.expand(image, (left, top, *rest))

    def geometry():
        mirrored = random.random() < RECIPE.horizontal_flip
        factor, angle = between(*RECIPE.scale), random.randint(*map(int, RECIPE.rotation))
        area, ratio = between(*RECIPE.crop_area), between(*RECIPE.crop_ratio)
        width = min(SIZE, round(SIZE * (area * ratio) ** 0.5))
        height = min(SIZE, round(SIZE * (area / ratio) ** 0.5))
        left, top = random.randint(0, SIZE - width), random.randint(0, SIZE - height)

        def move(image):
            image = ImageOps.mirror(image) if mirrored else image
            matrix = (factor, 0, 0, 0, factor, 0)
            image = image.transform(image.size, Image.Transform.AFFINE, matrix, linear)
            image = square(image.rotate(angle, linear))
            return image.crop((left, top, left + width, top + height)).resize((SIZE, SIZE), linear)

        return move

    def tone(image):
        if random.random() < RECIPE.color:
            image = ImageEnhance.Brightness(image).enhance(between(*RECIPE.color_brightness))
            image = ImageEnhance.Contrast(image).enhance(between(*RECIPE.color_contrast))
        if random.random() < RECIPE.blur:
            image = image.filter(ImageFilter.GaussianBlur(between(*RECIPE.blur_sigma)))
        return image

    def view(image, region):
        move = geometry()
        levels = np.asarray(tone(move(image)), np.float32)
        levels = (levels - levels.min()) / (levels.max() - levels.min() + 255e-6)
        if region is not None:
            levels = levels * (np.asarray(move(region), np.float32) / 255)
        return torch.from_numpy(levels)

    def views(path, mask):
        image, region = read(path, mask)
        return torch.stack([view(image, region) for _ in range(2)])

    return views


def available():
    """Peers by name; one that is missing is left out by name."""
    peers = {
        "torchvision v2": ("torchvision", torchvision_v2),
        "Pillow, as published": ("PIL", pillow_as_published),
    }
    found = {}
    for name, (module, make) in peers.items():
        if importlib.util.find_spec(module) is None:
            print(f"{name}: not installed, left out")
        else:
            found[name] = make()
    return found
