"""The anatomy of a phantom patient: one slice at a height z, in Hounsfield units, with whatever disease fills the lungs.

Organs are soft-edged ellipses warped by smooth noise, vessels a branching tree. All but vessels and grain is drawn at half
resolution.

Coordinates: x to the right of the picture (the patient's left) and y to the back, -1..1; z from the apex, 0, to the base, 1.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from raymed.data.image import WINDOWS, apply_window

AIR, LUNG, FAT, SOFT, BONE = -1000.0, -860.0, -105.0, 45.0, 420.0  # Hounsfield units
HEIGHT = 1.6  # of the lungs, z 0..1, in units of x and y


@dataclass
class Plane:
    """One slice at half resolution: coordinates, lung mask, depth under the pleura, and height z."""

    x: np.ndarray
    y: np.ndarray
    z: float
    lung: np.ndarray
    depth: np.ndarray
    texture: np.ndarray


# share of a lung voxel that disease fills (0..1) and that open airways or cysts keep free (0..1), at half resolution
Finding = Callable[[Plane], tuple[np.ndarray, np.ndarray]]


class Body:
    """One patient's anatomy."""

    def __init__(self, rng: np.random.Generator, size: int, hard: float) -> None:
        self.size, self.inner = size, size // 2
        axis = np.linspace(-1, 1, self.inner, dtype=np.float32)
        self.warps = rng.standard_normal((8, 7, 7)).astype(np.float32)
        fine, coarse = (rng.standard_normal((10, grain, grain)).astype(np.float32) for grain in (110, 28))
        self.textures = 0.65 * fine + 0.65 * np.stack([_enlarge(plane, 110) for plane in coarse])
        tilt, shift = rng.normal(0, 0.04), rng.normal(0, 0.02, 2)
        x, y = axis[None, :] - shift[0], axis[:, None] - shift[1]
        self.x, self.y = x * np.cos(tilt) - y * np.sin(tilt), x * np.sin(tilt) + y * np.cos(tilt)
        self.upright = np.broadcast_to(axis[:, None], self.x.shape), np.broadcast_to(axis[None, :], self.x.shape)
        self.width = rng.uniform(0.88, 0.97)
        self.height = self.width * rng.uniform(0.74, 0.84)
        self.cage = self.width * rng.uniform(0.84, 0.92), self.height * rng.uniform(0.82, 0.88)
        self.heart = rng.uniform(0.85, 1.15)
        self.dome = rng.uniform(0.66, 0.8)
        self.ribs = rng.uniform(0, 2 * np.pi), rng.uniform(6.5, 8.5)
        self.lung = LUNG + rng.normal(0, 25)
        self.noise = rng.uniform(0.7, 1.3) * (18 + 45 * hard)
        grain = rng.standard_normal((size + 64, size + 64)).astype(np.float32)
        self.grain = (grain + np.roll(grain, 1, 0) + np.roll(grain, 1, 1) + np.roll(grain, (1, 1), (0, 1))) / 2
        self.vessels = np.concatenate([vessel_tree(rng, side) for side in (-1, 1)])

    def slice(self, z: float, findings: Sequence[Finding], rng: np.random.Generator) -> np.ndarray:
        """One slice in the lung window: uint8 [size, size]."""
        return apply_window(self.hounsfield(z, findings, rng), *WINDOWS["lung"])

    def hounsfield(self, z: float, findings: Sequence[Finding], rng: np.random.Generator) -> np.ndarray:
        """One slice in Hounsfield units: float32 [size, size]."""
        hu, plane = self._anatomy(z)
        filled, free = (np.maximum.reduce(shares) for shares in zip(*(finding(plane) for finding in findings), strict=True))
        filled = filled * plane.lung
        hu = hu + (SOFT - hu) * filled
        hu = hu + (AIR - hu) * (free * plane.lung)
        full = _enlarge(hu, self.size)
        vessels = self._draw_vessels(z) * _enlarge(plane.lung, self.size)
        full += vessels * (SOFT - full)
        top, left = rng.integers(0, 64, 2)
        full += self.grain[top : top + self.size, left : left + self.size] * self.noise * (0.35 + 0.65 * (full > -950))
        return full

    def plane(self, z: float) -> Plane:
        """Where the lungs are at height z."""
        return self._anatomy(z)[1]

    def _anatomy(self, z: float) -> tuple[np.ndarray, Plane]:
        """Hounsfield units without disease and vessels, and the plane, at half resolution."""
        warp_x, warp_y = (_at_height(self.warps[row : row + 4], z, self.inner) for row in (0, 4))
        x, y = self.x + 0.02 * warp_x, self.y + 0.02 * warp_y
        texture = _at_height(self.textures, z, self.inner)
        hu = np.full_like(x, AIR)
        shoulders = 1 + 0.12 * max(0.0, 0.25 - z) / 0.25
        _paint(hu, (1 - _radius(x, y, 0, 0, self.width * shoulders, self.height, power=2.5)) * 0.8, FAT)
        width, height = self.cage
        grow = 0.45 + 0.55 * np.sqrt(1 - (1 - min(z / 0.45, 1.0)) ** 2)
        cage = _radius(x, y, 0, 0.04 * (1 - grow), width * grow, height * (0.4 + 0.6 * grow), power=2.3)
        _paint(hu, (1.13 - cage + 0.04 * warp_x) * 0.6, SOFT)
        angle = np.arctan2(y, x)
        phase, count = self.ribs
        along = np.cos(count * np.abs(angle - np.pi / 2) + phase + 14 * z)
        _paint(hu, np.minimum(0.028 - np.abs(cage - 1.0), 0.10 * (along - 0.1)), BONE)
        _paint(hu, _ellipse(x, y, 0, -height * grow * 1.03, 0.13, 0.035), BONE)

        lateral = (0.95 - cage) * 0.6 * height
        back = 0.78 * height
        walls = [
            lateral,
            np.abs(x) - np.where(y < -0.05, 0.035, 0.085),
            -_ellipse(x, y, 0, back, 0.16, 0.2),  # spine
            -_ellipse(x, y, 0.1, back - 0.19, 0.085, 0.085),  # descending aorta
        ]
        vessels = np.clip(1 - np.abs(z - 0.33) / 0.22, 0, 1) ** 0.5
        heart = self.heart * np.sqrt(np.clip(1 - ((z - 0.68) / 0.3) ** 2, 0, 1))
        if vessels > 0:
            walls.append(-_ellipse(x, y, 0.02, -0.08, 0.2 * vessels, 0.22 * vessels + 0.02))
        if heart > 0:
            walls.append(-_ellipse(x, y, 0.11, -0.14, 0.33 * heart, 0.3 * heart))
        for side, start, reach in ((-1, self.dome, 1.0), (1, self.dome + 0.07, 0.85)):
            if z > start:
                risen = reach * np.sqrt((z - start) / (1 - start))
                walls.append(-_ellipse(x, y, side * 0.38, -0.14, 0.46 * risen, 0.46 * risen))
        inside = np.minimum.reduce(walls)
        soft = _paint(hu, np.minimum(lateral, 0.02 + 0 * x), -30.0)  # fat between the organs
        for wall in walls[3:]:
            _paint(hu, -wall - 0.012, SOFT)
        air = np.clip(inside * self.inner / 2.2 + 0.5, 0, 1)
        hu += (self.lung + 45 * (y + 0.1) + 14 * texture - hu) * air * (soft > 0)
        _paint(hu, _ellipse(x, y, 0, back, 0.125, 0.115), BONE - 150)
        _paint(hu, _ellipse(x, y, 0, back + 0.15, 0.05, 0.045), SOFT)
        _paint(
            hu, np.minimum(_ellipse(x, y, 0, back + 0.16, 0.16, 0.12), -_ellipse(x, y, 0, back + 0.15, 0.06, 0.055)), BONE
        )
        apart = 0.0 if z < 0.4 else min(0.16, (z - 0.4) * 1.6)
        if z < 0.52:
            for side in {0} if apart == 0 else {-1, 1}:
                _paint(hu, _ellipse(x, y, side * apart, 0.03, 0.05 - 0.1 * apart, 0.052 - 0.12 * apart), AIR)
        upright_y, upright_x = self.upright
        bed = upright_y - self.height - 0.06 + 0.22 * upright_x**2
        _paint(hu, 0.012 - np.abs(bed - 0.01), -150.0)
        _paint(hu, 0.008 - np.abs(bed - 0.13), 100.0)
        return hu, Plane(x, y, z, air, np.maximum(lateral, 0), texture)

    def _draw_vessels(self, z: float) -> np.ndarray:
        """Vessels that cross a thin slab around z: 0..1, [size, size]."""
        picture = Image.new("L", (self.size, self.size))
        draw = ImageDraw.Draw(picture)
        start, end, radius = self.vessels[:, :3], self.vessels[:, 3:6], self.vessels[:, 6]
        thick = 0.006
        rise = end[:, 2] - start[:, 2]
        rise = np.where(np.abs(rise) < 1e-4, 1e-4, rise)
        cuts = np.sort(np.stack([(z - thick - start[:, 2]) / rise, (z + thick - start[:, 2]) / rise]), axis=0)
        first, last = np.clip(cuts, 0, 1)
        crossing = last > first
        scale = self.size / 2
        for a, b, low, high, r in zip(
            start[crossing], end[crossing], first[crossing], last[crossing], radius[crossing], strict=True
        ):
            (x0, y0), (x1, y1) = ((a + (b - a) * at)[:2] * scale + scale for at in (low, high))
            pixels = r * scale
            shade = int(255 * min(1.0, 0.25 + pixels / 3))
            draw.line((x0, y0, x1, y1), fill=shade, width=max(1, round(2 * pixels)))
            pixels = max(pixels, 0.6)
            draw.ellipse((x1 - pixels, y1 - pixels, x1 + pixels, y1 + pixels), fill=shade)
        return np.asarray(picture.filter(ImageFilter.BoxBlur(0.6)), np.float32) / 255


def vessel_tree(rng: np.random.Generator, side: int) -> np.ndarray:
    """Branching vessels of one lung: rows of start (x, y, z), end (x, y, z), radius."""
    trunks = 30
    start = np.tile([side * 0.17, 0.03, 0.45], (trunks, 1)) + rng.normal(0, [0.01, 0.04, 0.08], (trunks, 3))
    # spread evenly over the half sphere that looks away from the other lung: a golden spiral
    turn, out = np.arange(trunks) * 2.39996 + rng.uniform(0, 6.28), (np.arange(trunks) + 0.5) / trunks
    around = np.sqrt(1 - out**2)
    direction = np.stack([side * out, around * np.cos(turn), around * np.sin(turn)], axis=1)
    length, radius = 0.21, 0.021
    rows = []
    for _ in range(6):
        direction /= np.linalg.norm(direction, axis=1, keepdims=True)
        reach = length * rng.uniform(0.6, 1.3, (len(start), 1))
        end = start + direction * reach * [1, 1, 1 / HEIGHT]
        rows.append(np.hstack([start, end, np.full((len(start), 1), radius)]))
        start, direction = np.repeat(end, 2, axis=0), np.repeat(direction, 2, axis=0)
        direction = direction + rng.normal(0, 0.4, direction.shape)
        length, radius = length * 0.82, radius * 0.73
    return np.concatenate(rows)


def _radius(x: np.ndarray, y: np.ndarray, centre_x: float, centre_y: float, a: float, b: float, power: float) -> np.ndarray:
    """Superellipse: 1 on its line, 0 at its centre."""
    return (np.abs((x - centre_x) / a) ** power + np.abs((y - centre_y) / b) ** power) ** (1 / power)


def _ellipse(x: np.ndarray, y: np.ndarray, centre_x: float, centre_y: float, a: float, b: float) -> np.ndarray:
    """About the distance to an ellipse's line, positive inside."""
    return (1 - np.sqrt(((x - centre_x) / a) ** 2 + ((y - centre_y) / b) ** 2)) * min(a, b)


def _paint(hu: np.ndarray, distance: np.ndarray, value: float) -> np.ndarray:
    """Set `hu` to a value where a distance is positive, with an edge about one pixel wide; the share painted, 0..1."""
    share = np.clip(distance * (len(hu) / 2.2) + 0.5, 0, 1)
    hu += (value - hu) * share
    return share


def _at_height(fields: np.ndarray, z: float, size: int) -> np.ndarray:
    """Smooth noise at height z: coarse noise planes, mixed between neighbours and enlarged: [size, size]."""
    at = z * (len(fields) - 1)
    low = min(int(at), len(fields) - 2)
    mixed = fields[low] * np.cos((at - low) * np.pi / 2) + fields[low + 1] * np.sin((at - low) * np.pi / 2)
    return _enlarge(mixed.astype(np.float32), size)


def _enlarge(plane: np.ndarray, size: int) -> np.ndarray:
    return np.asarray(Image.fromarray(plane.astype(np.float32)).resize((size, size), Image.Resampling.BICUBIC)).copy()
