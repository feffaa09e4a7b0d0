"""What stands in the drawn street, as flat parts with a colour, a glow and a temperature.

A `Shape` is a function of time in seconds that returns parts; time moves limbs and wheels. Coordinates: x to the right,
y up from the ground, the height of a standing person is 1. Colours are BGR, 0 to 255; heat is a thermal grey level, 0
to 255. The functions that make shapes draw their looks from the generator `rng`; `look` says what the scene makes of an
object, and `ambient` is the thermal grey level of the air.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt

Contour = npt.NDArray[np.float64]
Colour = tuple[float, float, float]
DARK: Colour = (0.0, 0.0, 0.0)
LAMP: Colour = (190.0, 230.0, 250.0)


@dataclass(frozen=True)
class Part:
    """One flat part of an object.

    Attributes:
        contours: (N, 2) each; filled together by the even-odd rule, so that a ring is two circles.
        albedo: share of the light that it reflects, as BGR, 0 to 255.
        heat: thermal grey level, 0 to 255.
        glow: light of its own, as BGR, 0 to 255.
    """

    contours: list[Contour]
    albedo: Colour
    heat: float
    glow: Colour = DARK


Shape = Callable[[float], list[Part]]


@dataclass(frozen=True)
class Look:
    """What the scene makes of an object.

    Attributes:
        ambient: thermal grey level of the air, 0 to 255.
        night: whether it is night.
        facing: 1 to the right, -1 to the left.
        warm: it runs, moves or lives.
        dark: it wears dark clothing or has no light on it.
    """

    ambient: float
    night: bool
    facing: int
    warm: bool
    dark: bool


def _clip(value: float) -> float:
    return float(min(max(value, 0.0), 255.0))


def _colour(rng: np.random.Generator, low: float = 40, high: float = 235) -> Colour:
    """A clearly coloured, never quite grey paint or cloth."""
    hue = np.uint8(rng.integers(0, 180))
    value, saturation = np.uint8(rng.uniform(low, high)), np.uint8(rng.uniform(60, 200))
    b, g, r = cv2.cvtColor(np.array([[[hue, saturation, value]]], np.uint8), cv2.COLOR_HSV2BGR)[0, 0]
    return (float(b), float(g), float(r))


def _shade(colour: Colour, factor: float) -> Colour:
    return (_clip(colour[0] * factor), _clip(colour[1] * factor), _clip(colour[2] * factor))


def _grey(value: float) -> Colour:
    return (value, value, value)


def _polygon(*points: tuple[float, float]) -> Contour:
    return np.array(points, np.float64)


def _box(x0: float, y0: float, x1: float, y1: float) -> Contour:
    return _polygon((x0, y0), (x1, y0), (x1, y1), (x0, y1))


def _disc(x: float, y: float, rx: float, ry: float | None = None, corners: int = 20) -> Contour:
    angle = np.arange(corners) * (2 * math.pi / corners)
    return np.stack([x + rx * np.cos(angle), y + (rx if ry is None else ry) * np.sin(angle)], axis=1)


def _bar(x0: float, y0: float, x1: float, y1: float, width: float) -> Contour:
    """A straight limb of the given width with cut ends."""
    length = math.hypot(x1 - x0, y1 - y0) or 1.0
    nx, ny = -(y1 - y0) / length * width / 2, (x1 - x0) / length * width / 2
    return _polygon((x0 + nx, y0 + ny), (x1 + nx, y1 + ny), (x1 - nx, y1 - ny), (x0 - nx, y0 - ny))


def _face(parts: list[Part], facing: int) -> list[Part]:
    if facing > 0:
        return parts
    return [Part([c * (-1.0, 1.0) for c in part.contours], part.albedo, part.heat, part.glow) for part in parts]


def person(rng: np.random.Generator, look: Look, walking: bool) -> Shape:
    """A standing or walking person, 1 high."""
    coat, trousers = _colour(rng, 60, 240), _colour(rng, 30, 140)
    if look.dark:
        coat, trousers = _shade(coat, 0.3), _shade(trousers, 0.3)
    skin = _shade((130.0, 165.0, 215.0), rng.uniform(0.5, 1.0))
    face = _clip(max(look.ambient + 80, 195) + rng.uniform(0, 30))
    torso = _clip(look.ambient + (face - look.ambient) * rng.uniform(0.6, 0.85))
    legs = _clip(look.ambient + (face - look.ambient) * rng.uniform(0.45, 0.65))
    pace, phase = rng.uniform(1.4, 2.0), rng.uniform(0, 2 * math.pi)
    build = rng.uniform(0.85, 1.2)

    def parts(t: float) -> list[Part]:
        swing = math.sin(phase + 2 * math.pi * pace * t) if walking else 0.25
        step, arm = 0.13 * swing, 0.15 * swing
        return _face(
            [
                Part([_bar(0, 0.50, -step - 0.02, 0.0, 0.10 * build)], _shade(trousers, 0.8), legs),
                Part([_bar(0, 0.50, step + 0.02, 0.0, 0.10 * build)], trousers, legs),
                Part([_bar(-0.02, 0.78, -0.03 + arm, 0.45, 0.07 * build)], _shade(coat, 0.75), torso),
                Part([_disc(0, 0.64, 0.115 * build, 0.215)], coat, torso),
                Part([_bar(0.02, 0.78, 0.03 - arm, 0.45, 0.07 * build)], _shade(coat, 0.85), torso),
                Part([_disc(0.01, 0.915, 0.07, 0.085)], skin, face),
            ],
            look.facing,
        )

    return parts


def rider(rng: np.random.Generator, look: Look) -> Shape:
    """A person on a bicycle, to be drawn over `bicycle` at the same place."""
    coat, trousers = _colour(rng, 70, 240), _colour(rng, 30, 140)
    if look.dark:
        coat, trousers = _shade(coat, 0.3), _shade(trousers, 0.3)
    face = _clip(max(look.ambient + 80, 200) + rng.uniform(0, 25))
    torso = _clip(look.ambient + (face - look.ambient) * 0.75)
    cadence = rng.uniform(0.8, 1.3)

    def parts(t: float) -> list[Part]:
        turn = 2 * math.pi * cadence * t
        foot = (0.02 + 0.08 * math.cos(turn), 0.24 + 0.08 * math.sin(turn))
        knee = (0.12 + 0.04 * math.cos(turn), 0.46 + 0.05 * math.sin(turn))
        return _face(
            [
                Part([_bar(-0.13, 0.60, *knee, 0.10)], trousers, torso - 15),
                Part([_bar(*knee, *foot, 0.08)], trousers, torso - 25),
                Part([_bar(-0.14, 0.58, 0.06, 0.92, 0.20)], coat, torso),
                Part([_bar(0.05, 0.85, 0.24, 0.62, 0.07)], _shade(coat, 0.8), torso - 10),
                Part([_disc(0.13, 1.02, 0.07, 0.085)], (110.0, 145.0, 190.0), face),
            ],
            look.facing,
        )

    return parts


def bicycle(rng: np.random.Generator, look: Look) -> Shape:
    """A bicycle from the side, about 1.05 long and 0.65 high."""
    paint = _colour(rng, 130, 250)
    tyre, chrome = _grey(28.0), _grey(170.0)
    if look.dark:
        paint, chrome = _shade(paint, 0.25), _grey(40.0)
    frame_heat = _clip(look.ambient + (30 if look.warm else rng.choice([-30.0, 32.0])))
    tyre_heat = _clip(look.ambient + (62 if look.warm else rng.choice([-38.0, 40.0])))

    def parts(t: float) -> list[Part]:
        turn = 6.0 * t if look.warm else 0.4
        made: list[Part] = []
        for x in (-0.31, 0.31):
            made.append(Part([_disc(x, 0.215, 0.215), _disc(x, 0.215, 0.15)], tyre, tyre_heat))
            spokes = [
                _bar(
                    x - 0.15 * math.cos(a + turn),
                    0.215 - 0.15 * math.sin(a + turn),
                    x + 0.15 * math.cos(a + turn),
                    0.215 + 0.15 * math.sin(a + turn),
                    0.018,
                )
                for a in (0.0, math.pi / 3, 2 * math.pi / 3)
            ]
            made.extend(Part([spoke], chrome, frame_heat) for spoke in spokes)
        tubes = [
            (-0.31, 0.215, -0.14, 0.50),
            (-0.31, 0.215, 0.0, 0.22),
            (0.0, 0.22, -0.14, 0.52),
            (-0.14, 0.50, 0.22, 0.52),
            (0.0, 0.22, 0.22, 0.52),
            (0.31, 0.215, 0.20, 0.60),
        ]
        made.extend(Part([_bar(*tube, 0.05)], paint, frame_heat) for tube in tubes)
        made.append(Part([_box(-0.24, 0.52, -0.06, 0.58)], tyre, frame_heat))
        made.append(Part([_bar(0.16, 0.62, 0.30, 0.60, 0.045)], chrome, frame_heat))
        return _face(made, look.facing)

    return parts


def _car_heats(rng: np.random.Generator, look: Look) -> tuple[float, float, float, float]:
    """Body, bonnet, wheels, glass. A parked car is a little off the road's temperature; its glass mirrors the sky."""
    if look.warm:
        return look.ambient + 38, _clip(look.ambient + 105), _clip(look.ambient + 90), max(look.ambient - 30, 5.0)
    body = look.ambient + rng.choice([-26.0, 24.0])
    return body, body + 4, body - 12, max(look.ambient - 42, 5.0)


def car_side(rng: np.random.Generator, look: Look, lit: bool) -> Shape:
    """A car from the side, 2.1 long and 0.78 high."""
    paint = _shade(_colour(rng, 90, 245), 0.3 if look.dark else 1.0)
    body, bonnet, wheel, glass = _car_heats(rng, look)
    pane = _grey(30.0) if look.dark else (120.0, 105.0, 90.0)
    front, back = (LAMP, (40.0, 40.0, 220.0)) if lit else (DARK, DARK)

    def parts(t: float) -> list[Part]:
        del t
        shell = _polygon((-1.05, 0.14), (-1.05, 0.46), (-0.98, 0.50), (0.98, 0.46), (1.05, 0.38), (1.05, 0.14))
        cabin = _polygon((-0.82, 0.48), (-0.58, 0.78), (0.24, 0.78), (0.56, 0.47))
        made = [
            Part([shell], paint, body),
            Part([cabin], _shade(paint, 0.92), body - 4),
            Part([_polygon((-0.70, 0.50), (-0.53, 0.73), (-0.16, 0.73), (-0.16, 0.50))], pane, glass),
            Part([_polygon((-0.10, 0.50), (-0.10, 0.73), (0.20, 0.73), (0.44, 0.50))], pane, glass),
            Part([_polygon((0.56, 0.20), (0.56, 0.47), (1.0, 0.44), (1.03, 0.20))], _shade(paint, 1.05), bonnet),
            Part([_box(0.97, 0.30, 1.05, 0.39)], _grey(220.0), bonnet, front),
            Part([_box(-1.05, 0.32, -0.98, 0.42)], (50.0, 50.0, 190.0), body, back),
        ]
        for x in (-0.64, 0.64):
            made.append(Part([_disc(x, 0.17, 0.17)], _grey(25.0), wheel))
            made.append(Part([_disc(x, 0.17, 0.08)], _grey(150.0 if not look.dark else 40.0), wheel - 15))
        return _face(made, look.facing)

    return parts


def car_front(rng: np.random.Generator, look: Look, lit: bool) -> Shape:
    """A car coming towards the camera, 0.95 wide and 0.78 high."""
    paint = _shade(_colour(rng, 90, 245), 0.3 if look.dark else 1.0)
    body, bonnet, wheel, glass = _car_heats(rng, look)
    pane = _grey(30.0) if look.dark else (120.0, 105.0, 90.0)

    def parts(t: float) -> list[Part]:
        del t
        made = [Part([_box(s * 0.34 - 0.09, 0.0, s * 0.34 + 0.09, 0.24)], _grey(25.0), wheel) for s in (-1, 1)]
        made += [
            Part([_polygon((-0.46, 0.12), (-0.47, 0.46), (0.47, 0.46), (0.46, 0.12))], paint, body),
            Part([_polygon((-0.42, 0.46), (-0.32, 0.78), (0.32, 0.78), (0.42, 0.46))], _shade(paint, 0.92), body - 4),
            Part([_polygon((-0.36, 0.48), (-0.28, 0.73), (0.28, 0.73), (0.36, 0.48))], pane, glass),
            Part([_box(-0.22, 0.18, 0.22, 0.36)], _grey(45.0), bonnet),
        ]
        for s in (-1, 1):
            made.append(Part([_disc(s * 0.35, 0.34, 0.075)], _grey(225.0), bonnet - 10, LAMP if lit else DARK))
        return made

    return parts


def street_lamp(night: bool, ambient: float) -> Shape:
    """A lamp post 2.3 high, its head hot and bright by night."""
    glow = LAMP if night else DARK
    heat = 245.0 if night else _clip(ambient + 15)

    def parts(t: float) -> list[Part]:
        del t
        return [
            Part([_box(-0.035, 0.0, 0.035, 2.2)], _grey(70.0), ambient - 8),
            Part([_box(-0.02, 2.15, 0.42, 2.2)], _grey(70.0), ambient - 8),
            Part([_disc(0.40, 2.15, 0.12, 0.06)], _grey(200.0), heat, glow),
        ]

    return parts


def hot_spot(rng: np.random.Generator, ambient: float) -> Shape:
    """Something hot with no label: a vent, a manhole, a heater as tall as a child."""
    heat, shade = _clip(ambient + rng.uniform(70, 150)), _grey(rng.uniform(50, 130))
    contour = [
        _disc(0, 0.05, rng.uniform(0.12, 0.25), 0.06),
        _box(-0.09, 0.0, 0.09, rng.uniform(0.3, 0.7)),
        _box(-0.3, 0.3, 0.3, 0.48),
    ][int(rng.integers(3))]
    return lambda t: [Part([contour], shade, heat)]


def clutter(rng: np.random.Generator, ambient: float) -> Shape:
    """Something that only the visible camera takes for more than it is: a bin, a bush, a poster of a person."""
    kind = int(rng.integers(3))
    paint = _colour(rng)
    if kind == 0:
        made = [
            Part([_polygon((-0.16, 0.0), (-0.2, 0.5), (0.2, 0.5), (0.16, 0.0))], paint, ambient),
            Part([_box(-0.22, 0.5, 0.22, 0.57)], _shade(paint, 0.6), ambient),
        ]
    elif kind == 1:
        leaves = [(rng.uniform(-0.3, 0.3), rng.uniform(0.12, 0.4), rng.uniform(0.12, 0.2)) for _ in range(6)]
        made = [
            Part([_disc(*leaf, corners=10)], (50.0, rng.uniform(80, 130), rng.uniform(50, 80)), ambient - 8)
            for leaf in leaves
        ]
    else:
        figure = person(rng, Look(ambient, False, 1, True, False), walking=False)(0.0)
        made = [
            Part([_box(-0.3, 0.2, 0.3, 1.15)], _grey(rng.uniform(150, 235)), ambient),
            Part([_box(-0.03, 0.0, 0.03, 0.2)], _grey(80.0), ambient),
        ]
        shrunk = [Part([c * 0.75 + (0, 0.3) for c in p.contours], p.albedo, ambient) for p in figure]
        made += shrunk
    return lambda t: made


def street(
    rng: np.random.Generator, width: int, height: int, horizon: float, sample: int, night: bool, ambient: float
) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8], npt.NDArray[np.uint8]]:
    """Draw the empty street.

    Args:
        rng: draws its looks.
        width: of the picture, px.
        height: of the picture, px.
        horizon: px from the top of the picture.
        sample: how many times larger than the picture the layers are.
        night: whether it is night.
        ambient: thermal grey level of the air, 0 to 255.

    Returns:
        albedo (H, W, 3), glow (H, W, 3) and heat (H, W), all uint8, at `sample` times the picture's size.
    """
    w, h, line = width * sample, height * sample, round(horizon * sample)
    albedo, glow = np.zeros((h, w, 3), np.uint8), np.zeros((h, w, 3), np.uint8)
    heat = np.zeros((h, w), np.uint8)
    sky = np.linspace(0.75, 1.0, line)[:, None, None] * np.array([235.0, 205.0, 175.0])
    albedo[:line] = np.rint(sky * (0.35 if night else 1.0))
    heat[:line] = round(ambient * 0.35)
    _houses(rng, albedo, glow, heat, line, night, ambient)
    road, walk = rng.uniform(75, 110), rng.uniform(120, 150)
    kerb = line + round((h - line) * rng.uniform(0.14, 0.24))
    albedo[line:kerb], heat[line:kerb] = _grey(walk), round(ambient - 6)
    albedo[kerb:], heat[kerb:] = _grey(road), round(ambient)
    cv2.line(albedo, (0, kerb), (w, kerb), _grey(walk + 25), max(1, sample))
    stripe_y = line + round((h - line) * rng.uniform(0.5, 0.75))
    stripe_h = max(2, round((h - line) * 0.03))
    step = w // 5
    for x in range(int(rng.integers(-step, 0)), w, step):
        cv2.rectangle(albedo, (x, stripe_y), (x + step // 2, stripe_y + stripe_h), _grey(200.0), -1)
    for layer, strength in ((albedo, 0.10), (heat, 0.05)):
        cloudy = 1.0 + strength * _cloud(rng, w, h, 12 * sample)
        layer[:] = np.clip(layer * (cloudy[:, :, None] if layer.ndim == 3 else cloudy), 0, 255).astype(np.uint8)
    return albedo, glow, heat


def _houses(
    rng: np.random.Generator,
    albedo: npt.NDArray[np.uint8],
    glow: npt.NDArray[np.uint8],
    heat: npt.NDArray[np.uint8],
    line: int,
    night: bool,
    ambient: float,
) -> None:
    w = albedo.shape[1]
    x = -int(rng.integers(0, w // 5))
    while x < w:
        span, top = int(rng.integers(w // 8, w // 3)), round(line * rng.uniform(0.0, 0.6))
        if rng.uniform() < 0.25:  # a gap with a tree
            centre, radius = (x + span // 2, round(line * 0.6)), round(line * rng.uniform(0.3, 0.45))
            cv2.rectangle(albedo, (centre[0] - 3, centre[1]), (centre[0] + 3, line), (45.0, 60.0, 75.0), -1)
            cv2.circle(albedo, centre, radius, (55.0, rng.uniform(85, 120), 65.0), -1)
            cv2.circle(heat, centre, radius, (ambient - 18,), -1)
        else:
            wall = _shade((165.0, 175.0, 190.0), rng.uniform(0.5, 1.0))
            warmth = ambient + rng.uniform(-15, 12)
            cv2.rectangle(albedo, (x, top), (x + span, line), wall, -1)
            cv2.rectangle(heat, (x, top), (x + span, line), (warmth,), -1)
            size = max(4, line // 7)
            for wy in range(top + size, line - size, 2 * size):
                for wx in range(x + size, x + span - size, 2 * size):
                    lit = night and rng.uniform() < 0.25
                    box = (wx, wy), (wx + size, wy + round(1.2 * size))
                    cv2.rectangle(albedo, *box, (95.0, 80.0, 70.0), -1)
                    cv2.rectangle(heat, *box, (warmth + (22 if rng.uniform() < 0.3 else -12),), -1)
                    if lit:
                        cv2.rectangle(glow, *box, (60.0, 130.0, 165.0), -1)
        x += span + int(rng.integers(0, w // 20))


def _cloud(rng: np.random.Generator, width: int, height: int, cell: int) -> npt.NDArray[np.float64]:
    """Smooth unevenness of mean 0 and a size of about 1, with finer grain on top."""
    total = np.zeros((height, width))
    for size, weight in ((cell, 0.7), (max(2, cell // 4), 0.5)):
        coarse = rng.normal(0.0, 1.0, (height // size + 2, width // size + 2))
        total += weight * cv2.resize(coarse, (width, height), interpolation=cv2.INTER_LINEAR)
    return total
