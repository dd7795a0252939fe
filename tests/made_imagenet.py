"""A small made ImageNet in the layout of the real one: ILSVRC2012_val_*.JPEG and val_map.txt."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

# (width, height), mode: landscape, portrait, smaller than the crop, odd, and the real set's kinds of colour.
SHAPES = (
    ((500, 375), "RGB"),
    ((333, 500), "RGB"),
    ((200, 150), "RGB"),
    ((301, 257), "L"),
    ((400, 299), "CMYK"),
    ((256, 256), "RGB"),
)


def write(folder: Path, count: int, seed: int = 0) -> dict[str, Any]:
    """`count` photos with classes; returns the task's options."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    lines = []
    for i in range(count):
        name = f"ILSVRC2012_val_{i + 1:08d}.JPEG"
        size, mode = SHAPES[i % len(SHAPES)]
        picture(rng, size).convert(mode).save(folder / name, "JPEG", quality=90)
        lines.append(f"{name} {rng.integers(1000)}\n")
    (folder / "val_map.txt").write_text("".join(lines))
    return {"path": str(folder)}


def picture(rng: np.random.Generator, size: tuple[int, int]) -> Image.Image:
    """Coarse coloured noise, drawn large, with fine noise over it: edges and detail as a photo has."""
    width, height = size
    coarse = Image.fromarray(rng.integers(0, 256, (6, 8, 3), np.uint8)).resize(size, Image.Resampling.BICUBIC)
    fine = rng.integers(-20, 21, (height, width, 3))
    return Image.fromarray(np.clip(np.asarray(coarse, np.int64) + fine, 0, 255).astype(np.uint8))
