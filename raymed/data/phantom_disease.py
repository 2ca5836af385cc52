"""What fills the lungs of a phantom patient: the patterns of the four classes, and findings that healthy lungs show too.

The patterns are those of textbooks: bacterial pneumonia fills a part of one lobe up to the fissure and leaves the airways
open, viral pneumonia is ground glass in several places under the pleura, pneumocystis is ground glass around both hila with
cysts. They are no model of any real disease.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from raymed.data.phantom_anatomy import HEIGHT, Body, Finding, Plane, vessel_tree


def _ball(plane: Plane, centre: np.ndarray, radii: tuple[float, float, float]) -> np.ndarray:
    """Distance from a centre in units of the radii (x, y, z)."""
    deep = (plane.z - centre[2]) / radii[2]
    return np.sqrt(((plane.x - centre[0]) / radii[0]) ** 2 + ((plane.y - centre[1]) / radii[1]) ** 2 + deep**2)


def incidental(rng: np.random.Generator, hard: float) -> list[Finding]:
    """What healthy lungs may show too: denser dependent parts, scars."""
    found: list[Finding] = []
    if rng.random() < 0.1 + 0.6 * hard:
        strength, level = rng.uniform(0.1, 0.3), rng.uniform(0.22, 0.36)
        found.append(
            lambda plane: (strength * np.clip((plane.y - level) / 0.15, 0, 1) * (0.7 + 0.3 * plane.texture), 0 * plane.x)
        )
    for _ in range(rng.poisson(2.0 * hard)):
        centre = np.array([rng.choice([-1, 1]) * rng.uniform(0.25, 0.6), rng.uniform(-0.3, 0.4), rng.uniform(0.2, 0.9)])
        radii = (rng.uniform(0.02, 0.16), rng.uniform(0.015, 0.06), rng.uniform(0.02, 0.06))
        share = rng.uniform(0.3, 0.8)
        found.append(partial(_patch, centre=centre, radii=radii, share=share))
    return found


def _patch(
    plane: Plane, centre: np.ndarray, radii: tuple[float, float, float], share: float
) -> tuple[np.ndarray, np.ndarray]:
    """One ragged opacity."""
    if abs(plane.z - centre[2]) > 1.4 * radii[2]:
        return np.zeros_like(plane.x), np.zeros_like(plane.x)
    ragged = 1 - _ball(plane, centre, radii) + 0.22 * plane.texture
    return share * np.clip(2.2 * ragged, 0, 1) * (0.85 + 0.15 * plane.texture), np.zeros_like(plane.x)


def _normal(rng: np.random.Generator, body: Body, hard: float) -> Finding:
    return lambda plane: (np.zeros_like(plane.x), np.zeros_like(plane.x))


def _bacterial(rng: np.random.Generator, body: Body, hard: float) -> Finding:
    """Consolidation of a part of one lobe, up to the fissure, with open airways in it."""
    extent, contrast = _severity(rng, hard)
    side, lower = rng.choice([-1, 1]), rng.random() < 0.6
    z = rng.uniform(0.55, 0.75) if lower else rng.uniform(0.25, 0.45)
    y = rng.uniform(0.15, 0.35) if lower else rng.uniform(-0.25, 0.0)
    centre = np.array([side * rng.uniform(0.3, 0.5), y, z])
    radii = tuple(extent * rng.uniform(0.7, 1.2, 3) * (0.36, 0.36, 0.32))
    share = 0.35 + 0.6 * contrast
    airways = vessel_tree(rng, int(side))[:330]
    satellites = _blobs(rng, body, int(rng.poisson(2.5 * hard)), extent, 0.5 * contrast)

    def disease(plane: Plane) -> tuple[np.ndarray, np.ndarray]:
        fissure = (plane.y - 0.42 + 0.95 * plane.z) * (1 if lower else -1)
        ragged = np.minimum(1 - _ball(plane, centre, radii) + 0.07 * plane.texture, 12 * (fissure + 0.02))
        dense = share * np.clip(4 * ragged, 0, 1)
        dense = np.maximum(dense, 0.3 * share * np.clip(2 * ragged + 0.7, 0, 1) * (fissure > 0))
        near = airways[np.abs(airways[:, 2] - plane.z) < 0.02]
        picture = Image.new("L", plane.x.shape)
        draw, scale = ImageDraw.Draw(picture), len(plane.x) / 2
        for x0, y0, _, x1, y1, _, radius in near * [scale, scale, 1, scale, scale, 1, scale]:
            end = (x0 + 0.3 * (x1 - x0) + scale, y0 + 0.3 * (y1 - y0) + scale)
            draw.line((x0 + scale, y0 + scale, *end), fill=255, width=1 + round(2 * radius))
        bronchi = np.asarray(picture.filter(ImageFilter.BoxBlur(0.5)), np.float32) / 255
        return np.maximum(dense, satellites(plane)), 0.9 * bronchi * (dense > 0.3)

    return disease


def _viral(rng: np.random.Generator, body: Body, hard: float) -> Finding:
    """Ground glass in several places under the pleura of both lungs."""
    extent, contrast = _severity(rng, hard)
    blobs = _blobs(rng, body, int(rng.integers(5, 12)), extent, 0.25 + 0.45 * contrast)
    middle = rng.random() < 0.4 * hard
    haze = _hilar(rng, extent, 0.25 * contrast)
    return lambda plane: (np.maximum(blobs(plane), haze(plane)) if middle else blobs(plane), np.zeros_like(plane.x))


def _pneumocystis(rng: np.random.Generator, body: Body, hard: float) -> Finding:
    """Ground glass around both hila that spares the rim, with cysts."""
    extent, contrast = _severity(rng, hard)
    haze = _hilar(rng, extent, 0.25 + 0.4 * contrast)
    patches = _blobs(rng, body, int(rng.poisson(3 * hard)), extent, 0.4 * contrast)
    count = int(rng.poisson(9 * (1 - 0.6 * hard)))
    cysts = [
        (np.array([rng.choice([-1, 1]) * rng.uniform(0.2, 0.55), rng.uniform(-0.3, 0.3), rng.uniform(0.15, 0.7)]), r)
        for r in rng.uniform(0.02, 0.055, count)
    ]

    def disease(plane: Plane) -> tuple[np.ndarray, np.ndarray]:
        filled, free = np.maximum(haze(plane), patches(plane)), np.zeros_like(plane.x)
        for centre, radius in cysts:
            if abs(plane.z - centre[2]) < radius / HEIGHT * 2:
                away = _ball(plane, centre, (radius, radius, radius / HEIGHT * 2))
                filled = np.maximum(filled, 0.55 * np.clip(1 - 5 * np.abs(away - 1), 0, 1))
                free = np.maximum(free, np.clip(6 * (0.95 - away), 0, 1))
        return filled, free

    return disease


DISEASES: dict[str, Callable[[np.random.Generator, Body, float], Finding]] = {
    "normal": _normal,
    "bacterial": _bacterial,
    "viral": _viral,
    "pneumocystis": _pneumocystis,
}


def _severity(rng: np.random.Generator, hard: float) -> tuple[float, float]:
    """How far disease reaches, and how dense it is: about 1 where plain to see, smaller and more varied where hard."""
    spread = np.exp(rng.normal(0, 0.1 + 0.3 * hard, 2))
    return float(np.clip((1.1 - 0.5 * hard) * spread[0], 0.3, 1.6)), float(np.clip((1 - 0.6 * hard) * spread[1], 0.12, 1.1))


def _blobs(rng: np.random.Generator, body: Body, count: int, extent: float, share: float) -> Callable[[Plane], np.ndarray]:
    """Ground glass at `count` places under the pleura, more of them at the back."""
    width, height = body.cage
    patches = []
    for _ in range(count):
        angle = rng.choice([-1, 1]) * rng.normal(0.5, 0.45) + (np.pi if rng.random() < 0.5 else 0.0)
        angle = np.arctan2(abs(np.sin(angle)) if rng.random() < 0.75 else -abs(np.sin(angle)), np.cos(angle))
        centre = np.array([0.86 * width * np.cos(angle), 0.82 * height * np.sin(angle), rng.uniform(0.25, 0.9)])
        across, deep = extent * rng.uniform(0.15, 0.3), extent * rng.uniform(0.09, 0.18)
        patches.append((centre, (across, across, deep), share * rng.uniform(0.7, 1.2)))

    def filled(plane: Plane) -> np.ndarray:
        total = np.zeros_like(plane.x)
        for centre, radii, dense in patches:
            total = np.maximum(total, _patch(plane, centre, radii, dense)[0])
        return total

    return filled


def _hilar(rng: np.random.Generator, extent: float, share: float) -> Callable[[Plane], np.ndarray]:
    """Ground glass around both hila, thinning out towards the pleura."""
    centres = [
        np.array([side * rng.uniform(0.28, 0.38), rng.uniform(-0.02, 0.12), rng.uniform(0.4, 0.6)]) for side in (-1, 1)
    ]
    radii = tuple(extent * rng.uniform(0.85, 1.2, 3) * (0.4, 0.48, 0.46))

    def filled(plane: Plane) -> np.ndarray:
        rim = np.clip(plane.depth / 0.12, 0, 1)
        total = np.maximum.reduce([np.clip(1.6 - 1.6 * _ball(plane, centre, radii), 0, 1) for centre in centres])
        return share * total * rim * np.clip(0.75 + 0.3 * plane.texture, 0.2, 1.3)

    return filled
