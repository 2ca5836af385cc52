"""Synthetic lung CT patients: the data that raymed tries itself on where there are no others.

A patient is drawn in Hounsfield units, slice by slice from the apex to the base of the lungs: body, ribs, spine, heart and
liver as soft-edged ellipses warped by smooth noise, vessels as a branching tree, disease as weights that fill the lungs.
Shown in the lung window. The four classes differ as their textbook patterns do: bacterial pneumonia fills a part of one lobe
and leaves the airways open, viral pneumonia is ground glass in several places under the pleura, pneumocystis is ground
glass around both hila with cysts. They are no model of any real disease.

Coordinates: x to the right of the picture (the patient's left) and y to the back, -1..1; z from the apex, 0, to the base, 1.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from raymed.data.image import WINDOWS, apply_window
from raymed.errors import UserError

CLASSES = ("normal", "bacterial", "viral", "pneumocystis")
MARKER = ".phantoms.json"
VERSION = 1  # of the drawing: other pictures for the same settings need another number

AIR, LUNG, FAT, SOFT, BONE = -1000.0, -860.0, -105.0, 45.0, 420.0  # Hounsfield units
HEIGHT = 1.6  # of the lungs, z 0..1, in units of x and y


@dataclass(frozen=True)
class PhantomSettings:
    """The synthetic patients.

    Attributes:
        patients: how many, over all four classes in turn.
        size: side of a slice, in pixels.
        slices: fewest and most slices of a patient.
        difficulty: 0 (plain to see) to 1 (faint, small, alike, noisy).
        seed: other seeds are other patients.
    """

    patients: int = 48
    size: int = 512
    slices: tuple[int, int] = (30, 35)
    difficulty: float = 0.5
    seed: int = 0

    def __post_init__(self) -> None:
        if self.patients < 1 or self.size < 32 or not 1 <= self.slices[0] <= self.slices[1]:
            raise UserError(f"{self}: needs patients >= 1, size >= 32 and slices as fewest,most")
        if not 0 <= self.difficulty <= 1:
            raise UserError(f"difficulty {self.difficulty}: must be from 0 to 1")


def phantom_patient(settings: PhantomSettings, number: int) -> tuple[str, list[np.ndarray]]:
    """Class name and slices, uint8 [size, size], of patient `number`. A function of the settings but `patients`."""
    label = CLASSES[number % len(CLASSES)]
    rng = np.random.default_rng((settings.seed, number))
    body = _Body(rng, settings)
    disease = _DISEASES[label](rng, body, settings.difficulty)
    count = int(rng.integers(settings.slices[0], settings.slices[1] + 1))
    return label, [body.slice(float(z), disease, rng) for z in np.linspace(0.03, 0.97, count)]


def write_phantoms(folder: Path, settings: PhantomSettings) -> None:
    """Write ``<class>/<patient>/<slice>.png`` for all patients, unless they are there already.

    Raises:
        UserError: the folder holds other phantoms or other files.
    """
    marker = folder / MARKER
    described = json.dumps({"version": VERSION, **asdict(settings)})
    if marker.exists():
        if marker.read_text() == described:
            return
        raise UserError(f"{folder} holds phantoms of other settings; remove it or choose another folder")
    folder.mkdir(parents=True, exist_ok=True)
    others = sorted(item.name for item in folder.iterdir() if item.name not in CLASSES)
    if others:
        raise UserError(f"{folder} holds other files ({', '.join(others[:3])}); choose an empty folder")
    # numpy and PIL let go of the interpreter lock while they work
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(partial(_write_patient, folder, settings), range(settings.patients)))
    marker.write_text(described)


def _write_patient(folder: Path, settings: PhantomSettings, number: int) -> None:
    label, slices = phantom_patient(settings, number)
    target = folder / label / f"phantom_{number:04d}"
    target.mkdir(parents=True, exist_ok=True)
    for position, pixels in enumerate(slices, start=1):
        Image.fromarray(pixels).save(target / f"slice_{position:02d}.png", compress_level=1)


@dataclass
class _Plane:
    """One slice at half resolution: coordinates, lung mask, depth under the pleura, and height z."""

    x: np.ndarray
    y: np.ndarray
    z: float
    lung: np.ndarray
    depth: np.ndarray
    texture: np.ndarray


# share of a lung voxel that disease fills (0..1) and that open airways or cysts keep free (0..1), at half resolution
_Disease = Callable[[_Plane], tuple[np.ndarray, np.ndarray]]


class _Body:
    """One patient's anatomy."""

    def __init__(self, rng: np.random.Generator, settings: PhantomSettings) -> None:
        self.size, self.inner = settings.size, settings.size // 2
        hard = settings.difficulty
        axis = np.linspace(-1, 1, self.inner, dtype=np.float32)
        self.fields = rng.standard_normal((9, 14, 14)).astype(np.float32)
        self.texture_fields = rng.standard_normal((12, 40, 40)).astype(np.float32)
        tilt, shift = rng.normal(0, 0.04), rng.normal(0, 0.03, 2)
        x, y = axis[None, :] - shift[0], axis[:, None] - shift[1]
        self.x, self.y = x * np.cos(tilt) - y * np.sin(tilt), x * np.sin(tilt) + y * np.cos(tilt)
        self.upright = np.broadcast_to(axis[:, None], self.x.shape), np.broadcast_to(axis[None, :], self.x.shape)
        self.width = rng.uniform(0.8, 0.93)
        self.height = self.width * rng.uniform(0.7, 0.82)
        self.cage = self.width * rng.uniform(0.76, 0.86), self.height * rng.uniform(0.76, 0.84)
        self.heart = rng.uniform(0.85, 1.15)
        self.dome = rng.uniform(0.66, 0.8)
        self.ribs = rng.uniform(0, 2 * np.pi), rng.uniform(6.5, 8.5)
        self.lung = LUNG + rng.normal(0, 25)
        self.noise = rng.uniform(0.7, 1.3) * (18 + 45 * hard)
        grain = rng.standard_normal((settings.size + 64, settings.size + 64)).astype(np.float32)
        self.grain = (grain + np.roll(grain, 1, 0) + np.roll(grain, 1, 1) + np.roll(grain, (1, 1), (0, 1))) / 2
        self.vessels = np.concatenate([_tree(rng, side) for side in (-1, 1)])
        self.findings = _findings(rng, hard)

    def slice(self, z: float, disease: _Disease, rng: np.random.Generator) -> np.ndarray:
        """One slice in the lung window: uint8 [size, size]."""
        hu, plane = self._anatomy(z)
        filled, free = disease(plane)
        for finding in self.findings:
            more, _ = finding(plane)
            filled = np.maximum(filled, more)
        filled = filled * plane.lung
        hu = hu + (SOFT - hu) * filled
        hu = hu + (AIR - hu) * (free * plane.lung)
        full = _enlarge(hu, self.size)
        vessels = self._draw_vessels(z) * _enlarge(plane.lung, self.size)
        full += vessels * (SOFT - full)
        top, left = rng.integers(0, 64, 2)
        full += self.grain[top : top + self.size, left : left + self.size] * self.noise * (0.35 + 0.65 * (full > -950))
        return apply_window(full, *WINDOWS["lung"])

    def _anatomy(self, z: float) -> tuple[np.ndarray, _Plane]:
        """Hounsfield units without disease and vessels, and the plane, at half resolution."""
        warp_x, warp_y = (_at_height(self.fields[row : row + 4], z, self.inner) for row in (0, 4))
        x, y = self.x + 0.022 * warp_x, self.y + 0.022 * warp_y
        texture = _at_height(self.texture_fields, z, self.inner)
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
        back = 0.62 * height + 0.12
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
        for side, start, reach in ((-1, self.dome, 1.0), (1, self.dome + 0.07, 0.9)):
            if z > start:
                risen = reach * np.sqrt((z - start) / (1 - start))
                walls.append(-_ellipse(x, y, side * 0.34, -0.12, 0.44 * risen, 0.44 * risen))
        inside = np.minimum.reduce(walls)
        soft = _paint(hu, np.minimum(lateral, 0.02 + 0 * x), -30.0)  # fat between the organs
        for wall in walls[3:]:
            _paint(hu, -wall - 0.012, SOFT)
        air = np.clip(inside * self.inner / 2.2 + 0.5, 0, 1)
        hu += (self.lung + 45 * (y + 0.1) + 14 * texture - hu) * air * (soft > 0)
        _paint(hu, _ellipse(x, y, 0, back, 0.125, 0.115), BONE - 150)
        _paint(hu, _ellipse(x, y, 0, back + 0.15, 0.05, 0.045), SOFT)
        _paint(hu, np.minimum(_ellipse(x, y, 0, back + 0.16, 0.16, 0.12), -_ellipse(x, y, 0, back + 0.15, 0.06, 0.055)), BONE)
        apart = 0.0 if z < 0.4 else min(0.16, (z - 0.4) * 1.6)
        if z < 0.52:
            for side in {0} if apart == 0 else {-1, 1}:
                _paint(hu, _ellipse(x, y, side * apart, 0.03, 0.05 - 0.1 * apart, 0.052 - 0.12 * apart), AIR)
        upright_y, upright_x = self.upright
        bed = upright_y - self.height - 0.06 + 0.22 * upright_x**2
        _paint(hu, 0.012 - np.abs(bed - 0.01), -150.0)
        _paint(hu, 0.008 - np.abs(bed - 0.13), 100.0)
        return hu, _Plane(x, y, z, air, np.maximum(lateral, 0), texture)

    def _draw_vessels(self, z: float) -> np.ndarray:
        """Vessels that cross a thin slab around z: 0..1, [size, size]."""
        picture = Image.new("L", (self.size, self.size))
        draw = ImageDraw.Draw(picture)
        start, end, radius = self.vessels[:, :3], self.vessels[:, 3:6], self.vessels[:, 6]
        thick = 0.007
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
            shade = int(255 * min(1.0, 0.35 + pixels / 2.5))
            draw.line((x0, y0, x1, y1), fill=shade, width=max(1, round(2 * pixels)))
            pixels = max(pixels, 0.6)
            draw.ellipse((x1 - pixels, y1 - pixels, x1 + pixels, y1 + pixels), fill=shade)
        return np.asarray(picture.filter(ImageFilter.BoxBlur(0.6)), np.float32) / 255


def _tree(rng: np.random.Generator, side: int) -> np.ndarray:
    """Branching vessels of one lung: rows of start (x, y, z), end (x, y, z), radius."""
    trunks = 11
    start = np.tile([side * 0.16, 0.02, 0.47], (trunks, 1)) + rng.normal(0, [0.01, 0.03, 0.05], (trunks, 3))
    direction = rng.normal(0, 1, (trunks, 3)) * [0.5, 1.0, 1.1] + [side * 0.6, 0, 0.25]
    length, radius = 0.17, 0.021
    rows = []
    for _ in range(7):
        direction /= np.linalg.norm(direction, axis=1, keepdims=True)
        reach = length * rng.uniform(0.6, 1.3, (len(start), 1))
        end = start + direction * reach * [1, 1, 1 / HEIGHT]
        rows.append(np.hstack([start, end, np.full((len(start), 1), radius)]))
        start, direction = np.repeat(end, 2, axis=0), np.repeat(direction, 2, axis=0)
        direction = direction + rng.normal(0, 0.45, direction.shape)
        length, radius = length * 0.8, radius * 0.74
    return np.concatenate(rows)


def _ball(plane: _Plane, centre: np.ndarray, radii: tuple[float, float, float]) -> np.ndarray:
    """Distance from a centre in units of the radii (x, y, z)."""
    deep = (plane.z - centre[2]) / radii[2]
    return np.sqrt(((plane.x - centre[0]) / radii[0]) ** 2 + ((plane.y - centre[1]) / radii[1]) ** 2 + deep**2)


def _findings(rng: np.random.Generator, hard: float) -> list[_Disease]:
    """What healthy lungs may show too: denser dependent parts, a band of collapse, scars."""
    found: list[_Disease] = []
    if rng.random() < 0.2 + 0.7 * hard:
        strength, level = rng.uniform(0.15, 0.5), rng.uniform(0.22, 0.36)
        found.append(
            lambda plane: (strength * np.clip((plane.y - level) / 0.15, 0, 1) * (0.7 + 0.3 * plane.texture), plane.lung)
        )
    for _ in range(rng.poisson(2.0 * hard)):
        centre = np.array([rng.choice([-1, 1]) * rng.uniform(0.25, 0.6), rng.uniform(-0.3, 0.4), rng.uniform(0.2, 0.9)])
        radii = (rng.uniform(0.02, 0.16), rng.uniform(0.015, 0.06), rng.uniform(0.02, 0.06))
        share = rng.uniform(0.3, 0.8)
        found.append(partial(_patch, centre=centre, radii=radii, share=share))
    return found


def _patch(
    plane: _Plane, centre: np.ndarray, radii: tuple[float, float, float], share: float
) -> tuple[np.ndarray, np.ndarray]:
    """One ragged opacity."""
    if abs(plane.z - centre[2]) > 1.4 * radii[2]:
        return np.zeros_like(plane.x), np.zeros_like(plane.x)
    ragged = 1 - _ball(plane, centre, radii) + 0.22 * plane.texture
    return share * np.clip(2.2 * ragged, 0, 1) * (0.85 + 0.15 * plane.texture), np.zeros_like(plane.x)


def _normal(rng: np.random.Generator, body: _Body, hard: float) -> _Disease:
    return lambda plane: (np.zeros_like(plane.x), np.zeros_like(plane.x))


def _bacterial(rng: np.random.Generator, body: _Body, hard: float) -> _Disease:
    """Consolidation of a part of one lobe, up to the fissure, with open airways in it."""
    extent, contrast = _severity(rng, hard)
    side, lower = rng.choice([-1, 1]), rng.random() < 0.6
    z = rng.uniform(0.55, 0.75) if lower else rng.uniform(0.25, 0.45)
    y = rng.uniform(0.15, 0.35) if lower else rng.uniform(-0.25, 0.0)
    centre = np.array([side * rng.uniform(0.3, 0.5), y, z])
    radii = tuple(extent * rng.uniform(0.7, 1.2, 3) * (0.26, 0.26, 0.2))
    share = 0.35 + 0.6 * contrast
    airways = _tree(rng, int(side))[:700]
    satellites = _blobs(rng, body, int(rng.poisson(2.5 * hard)), extent, 0.5 * contrast)

    def disease(plane: _Plane) -> tuple[np.ndarray, np.ndarray]:
        fissure = (plane.y - 0.42 + 0.95 * plane.z) * (1 if lower else -1)
        ragged = np.minimum(1 - _ball(plane, centre, radii) + 0.14 * plane.texture, 12 * (fissure + 0.02))
        dense = share * np.clip(4 * ragged, 0, 1)
        dense = np.maximum(dense, 0.3 * share * np.clip(2 * ragged + 0.7, 0, 1) * (fissure > 0))
        near = airways[np.abs(airways[:, 2] - plane.z) < 0.025]
        bronchi = np.zeros_like(plane.x)
        for x, y, _, _, _, _, radius in near:
            bronchi = np.maximum(bronchi, np.clip(1.6 - np.hypot(plane.x - x, plane.y - y) / (radius + 0.004), 0, 1))
        return np.maximum(dense, satellites(plane)), 0.85 * bronchi * (dense > 0.3)

    return disease


def _viral(rng: np.random.Generator, body: _Body, hard: float) -> _Disease:
    """Ground glass in several places under the pleura of both lungs."""
    extent, contrast = _severity(rng, hard)
    blobs = _blobs(rng, body, int(rng.integers(4, 10)), extent, 0.2 + 0.45 * contrast)
    middle = rng.random() < 0.4 * hard
    haze = _hilar(rng, extent, 0.25 * contrast)
    return lambda plane: (np.maximum(blobs(plane), haze(plane)) if middle else blobs(plane), np.zeros_like(plane.x))


def _pneumocystis(rng: np.random.Generator, body: _Body, hard: float) -> _Disease:
    """Ground glass around both hila that spares the rim, with cysts."""
    extent, contrast = _severity(rng, hard)
    haze = _hilar(rng, extent, 0.2 + 0.4 * contrast)
    patches = _blobs(rng, body, int(rng.poisson(3 * hard)), extent, 0.4 * contrast)
    count = int(rng.poisson(9 * (1 - 0.6 * hard)))
    cysts = [
        (np.array([rng.choice([-1, 1]) * rng.uniform(0.2, 0.55), rng.uniform(-0.3, 0.3), rng.uniform(0.15, 0.7)]), r)
        for r in rng.uniform(0.02, 0.055, count)
    ]

    def disease(plane: _Plane) -> tuple[np.ndarray, np.ndarray]:
        filled, free = np.maximum(haze(plane), patches(plane)), np.zeros_like(plane.x)
        for centre, radius in cysts:
            if abs(plane.z - centre[2]) < radius / HEIGHT * 2:
                away = _ball(plane, centre, (radius, radius, radius / HEIGHT * 2))
                filled = np.maximum(filled, 0.55 * np.clip(1 - 5 * np.abs(away - 1), 0, 1))
                free = np.maximum(free, np.clip(6 * (0.95 - away), 0, 1))
        return filled, free

    return disease


_DISEASES = {"normal": _normal, "bacterial": _bacterial, "viral": _viral, "pneumocystis": _pneumocystis}


def _severity(rng: np.random.Generator, hard: float) -> tuple[float, float]:
    """How far disease reaches, and how dense it is: about 1 where plain to see, smaller and more varied where hard."""
    spread = np.exp(rng.normal(0, 0.1 + 0.3 * hard, 2))
    return float(np.clip((1.1 - 0.5 * hard) * spread[0], 0.3, 1.6)), float(np.clip((1 - 0.6 * hard) * spread[1], 0.12, 1.1))


def _blobs(
    rng: np.random.Generator, body: _Body, count: int, extent: float, share: float
) -> Callable[[_Plane], np.ndarray]:
    """Ground glass at `count` places under the pleura, more of them at the back."""
    width, height = body.cage
    patches = []
    for _ in range(count):
        angle = rng.choice([-1, 1]) * rng.normal(0.5, 0.45) + (np.pi if rng.random() < 0.5 else 0.0)
        angle = np.arctan2(abs(np.sin(angle)) if rng.random() < 0.75 else -abs(np.sin(angle)), np.cos(angle))
        centre = np.array([0.86 * width * np.cos(angle), 0.82 * height * np.sin(angle), rng.uniform(0.25, 0.9)])
        across, deep = extent * rng.uniform(0.09, 0.2), extent * rng.uniform(0.05, 0.1)
        patches.append((centre, (across, across, deep), share * rng.uniform(0.7, 1.2)))

    def filled(plane: _Plane) -> np.ndarray:
        total = np.zeros_like(plane.x)
        for centre, radii, dense in patches:
            total = np.maximum(total, _patch(plane, centre, radii, dense)[0])
        return total

    return filled


def _hilar(rng: np.random.Generator, extent: float, share: float) -> Callable[[_Plane], np.ndarray]:
    """Ground glass around both hila, thinning out towards the pleura."""
    centres = [np.array([side * rng.uniform(0.28, 0.38), rng.uniform(-0.02, 0.12), rng.uniform(0.4, 0.6)]) for side in (-1, 1)]
    radii = tuple(extent * rng.uniform(0.85, 1.2, 3) * (0.34, 0.42, 0.38))

    def filled(plane: _Plane) -> np.ndarray:
        rim = np.clip(plane.depth / 0.12, 0, 1)
        total = np.maximum.reduce([np.clip(1.6 - 1.6 * _ball(plane, centre, radii), 0, 1) for centre in centres])
        return share * total * rim * np.clip(0.75 + 0.3 * plane.texture, 0.2, 1.3)

    return filled


def _radius(
    x: np.ndarray, y: np.ndarray, centre_x: float, centre_y: float, a: float, b: float, power: float
) -> np.ndarray:
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
