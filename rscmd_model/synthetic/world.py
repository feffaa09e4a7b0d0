"""A drawn street, seen by a visible and a thermal camera at once.

A scene is made of flat parts, each with a reflectance (what the visible camera sees, once lit), a glow (lamps, lit
windows) and a temperature (what the thermal camera sees, as a grey level 0..255). Both pictures come from the same
geometry, so they are aligned to the pixel. Static cameras look at moving objects for a few frames: one sequence.

Unit of length in the object shapes: the height of a standing person is 1, the ground is y = 0 and y points up.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt

from rscmd_model.config import other_modality
from rscmd_model.synthetic import shapes

Array = npt.NDArray[np.uint8]
CLASS_NAMES: dict[int, str] = {0: "person", 1: "car", 2: "bicycle"}
PERSON, CAR, BICYCLE = 0, 1, 2
FRAME_SECONDS = 0.1  # one step of the world; a bag played at 10 Hz shows natural speeds
SUPERSAMPLE = 2  # parts are drawn at this multiple of the picture's size and averaged down
MIN_SHOWN = 0.3  # an object of which less is in view is not labelled
MIN_SIDE = 4.0  # px; a box smaller than this on either side is not labelled
# The highest values of the dials: far above what makes sense, and low enough to be drawn in bounded time and memory.
_MOST = {"noise": 1000.0, "blur": 100.0, "decoys": 200.0, "objects": 200.0, "sequence": 1000}


@dataclass(frozen=True)
class WorldConfig:
    """The dials of the world.

    Attributes:
        night: share of the sequences that play at night, 0 to 1.
        hidden_in_visible: share of the objects that the visible camera hardly sees, 0 to 1.
        hidden_in_thermal: share of the objects that the thermal camera hardly sees, 0 to 1.
        visible_noise: standard deviation in grey levels by day; at night twice that.
        thermal_noise: standard deviation in grey levels.
        visible_blur: sigma in px.
        thermal_blur: sigma in px.
        visible_decoys: mean number per scene of cold things without a label: bins, bushes, posters.
        thermal_decoys: mean number per scene of hot things without a label: lamps, vents, manholes.
        objects: mean number of objects per scene.
        train_sequence: frames per sequence in the train split; few, since variety teaches more.
        val_sequence: frames per sequence in the val split; many, so that a bag of it shows motion.

    Raises:
        ValueError: a value is out of range.
    """

    night: float = 0.5  # share of the sequences that play at night
    hidden_in_visible: float = 0.18  # share of objects the visible camera hardly sees
    hidden_in_thermal: float = 0.18  # share of objects the thermal camera hardly sees
    visible_noise: float = 4.0  # by day; at night twice that
    thermal_noise: float = 5.0
    visible_blur: float = 0.3
    thermal_blur: float = 1.0
    visible_decoys: float = 2.0  # mean number per scene of cold things with no label: bins, bushes, posters
    thermal_decoys: float = 2.0  # mean number per scene of hot things with no label: lamps, vents, manholes
    objects: float = 4.5  # mean number of objects per scene
    train_sequence: int = 2  # frames per sequence in the train split: short, since variety teaches more
    val_sequence: int = 12  # and in the val split, where a bag shall play as motion

    def __post_init__(self) -> None:
        for name in ("night", "hidden_in_visible", "hidden_in_thermal"):
            if not 0.0 <= getattr(self, name) <= 1.0:
                raise ValueError(f"{name} is a share and must be within 0..1, got {getattr(self, name)}")
        if self.hidden_in_visible + self.hidden_in_thermal > 1.0:
            raise ValueError("hidden_in_visible + hidden_in_thermal must be at most 1: no object may be hidden in both")
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if not math.isfinite(value) or value < 0:
                raise ValueError(f"{field.name} must be zero or more, got {value}")
            most = _MOST.get(field.name.rpartition("_")[2])
            if most is not None and value > most:
                raise ValueError(f"{field.name} must be at most {most:g}, got {value}")
        if self.train_sequence < 1 or self.val_sequence < 1:
            raise ValueError("a sequence has at least 1 frame")

    def weaken(self, modality: str, *, weak: float = 0.0, noisy: float = 0.0, misleading: float = 0.0) -> WorldConfig:
        """The same world with one camera made worse: the dial for imbalance.

        Args:
            modality: "visible" or "thermal", the camera that gets worse.
            weak: 0..1, from this world's share of objects it hardly sees to 0.7 of them; by the same part fewer are
                hidden from the other camera.
            noisy: 0..1, up to five times the noise, and blur up to 1.5 px more.
            misleading: 0..1, up to five more things per scene that look like something to this camera alone.

        Raises:
            ValueError: an unknown modality, or a dial outside 0..1.
        """
        if modality not in ("visible", "thermal"):
            raise ValueError(f"the weaker camera is visible or thermal, not {modality!r}")
        for name, dial in (("weak", weak), ("noisy", noisy), ("misleading", misleading)):
            if not 0.0 <= dial <= 1.0:
                raise ValueError(f"{name} is a dial from 0 to 1, got {dial}")
        other = other_modality(modality)
        hidden = getattr(self, f"hidden_in_{modality}")
        changes = {
            f"hidden_in_{modality}": hidden + max(0.7 - hidden, 0.0) * weak,
            f"hidden_in_{other}": getattr(self, f"hidden_in_{other}") * (1 - weak),
            f"{modality}_noise": getattr(self, f"{modality}_noise") * (1 + 4 * noisy),
            f"{modality}_blur": getattr(self, f"{modality}_blur") + 1.5 * noisy,
            f"{modality}_decoys": getattr(self, f"{modality}_decoys") + 5 * misleading,
        }
        return dataclasses.replace(self, **changes)


@dataclass(frozen=True)
class WorldFrame:
    """One instant.

    Attributes:
        visible: (H, W, 3) uint8 BGR.
        thermal: (H, W) uint8.
        labels: (N, 5) float64 class, cx, cy, w, h as fractions of the picture.
    """

    visible: Array
    thermal: Array
    labels: npt.NDArray[np.float64]


@dataclass(frozen=True)
class _Thing:
    """Something that stands in the street.

    Attributes:
        shape: makes its parts.
        label: class, or -1 for what has none.
        x: px of the picture at time 0.
        y: px at time 0 where it touches the ground; decides its size and what it covers.
        vx: person heights per second.
        vy: towards the camera, share of the ground's depth per second.
        in_visible: contrast with what is behind it in the visible image, 0 to 1.
        in_thermal: the same in the thermal image.
        lamp: strength of its headlights on the road at night.
    """

    shape: shapes.Shape
    label: int  # class, or -1 for what has none
    x: float
    y: float  # where it touches the ground; decides its size and what it covers
    vx: float = 0.0  # person heights per second
    vy: float = 0.0  # towards the camera, share of the ground's depth per second
    in_visible: float = 1.0  # contrast with what is behind it
    in_thermal: float = 1.0
    lamp: float = 0.0  # headlight strength on the road at night


class Sequence:
    """One scene and what moves in it.

    Args:
        seed: integers; the same ones give the same pictures.
        width: of the pictures, px, at least 64.
        height: of the pictures, px, at least 64.
        night: whether it plays at night.
        config: the dials of the world.
        frames: of the sequence; things stand at their drawn places in the middle of it.
    """

    def __init__(self, seed: tuple[int, ...], width: int, height: int, night: bool, config: WorldConfig, frames: int):
        self._seed, self._width, self._height, self._night, self._config = seed, width, height, night, config
        self._middle = 0.5 * (frames - 1) * FRAME_SECONDS
        rng = np.random.default_rng((*seed, 0))
        self._horizon = height * rng.uniform(0.28, 0.38)
        self._ambient = rng.uniform(55, 85) if night else rng.uniform(95, 130)  # grey level of the road, thermal
        self._light = rng.uniform(0.13, 0.22) if night else rng.uniform(0.85, 1.1)
        self._tint = np.array([1.1, 1.0, 0.92]) if night else np.array([0.96, 1.0, 1.02])
        self._lamps = self._place_lamps(rng)
        self._background = shapes.street(rng, width, height, self._horizon, SUPERSAMPLE, night, self._ambient)
        self._things = sorted(self._place_things(rng), key=lambda thing: thing.y)

    def _scale(self, y: float) -> float:
        """Height in pixels of a person whose feet are at row y."""
        return 0.72 * (y - self._horizon)

    def _place_lamps(self, rng: np.random.Generator) -> list[tuple[float, float]]:
        count = int(rng.integers(1, 3))
        return [
            ((i + rng.uniform(0.2, 0.8)) * self._width / count, self._horizon + self._height * rng.uniform(0.1, 0.18))
            for i in range(count)
        ]

    def _place_things(self, rng: np.random.Generator) -> list[_Thing]:
        things = self._place_objects(rng)
        config, width, height = self._config, self._width, self._height
        for _ in range(int(rng.poisson(config.visible_decoys))):
            y = self._horizon + height * rng.uniform(0.14, 0.5)
            shape = shapes.clutter(rng, self._ambient)
            things.append(_Thing(shape, -1, rng.uniform(0, width), y, in_thermal=rng.uniform(0.2, 0.6)))
        for _ in range(int(rng.poisson(config.thermal_decoys))):
            y = self._horizon + height * rng.uniform(0.02, 0.6)
            shape = shapes.hot_spot(rng, self._ambient)
            things.append(_Thing(shape, -1, rng.uniform(0, width), y, in_visible=rng.uniform(0.3, 0.8)))
        for x, y in self._lamps:
            things.append(_Thing(shapes.street_lamp(self._night, self._ambient), -1, x, y))
        return things

    def _place_objects(self, rng: np.random.Generator) -> list[_Thing]:
        """Objects spread so that they may cover each other in part, but start with a place of their own."""
        things: list[_Thing] = []
        taken: list[tuple[float, float]] = []
        for _ in range(max(1, int(rng.poisson(self._config.objects)))):
            kind = int(rng.choice(3, p=[0.4, 0.3, 0.3]))
            for _attempt in range(20):
                depth = rng.uniform(0.3, 0.6) if kind == CAR else rng.uniform(0.32, 0.78)
                y = self._horizon + depth * (self._height - self._horizon) * 1.25
                x = self._width * rng.uniform(0.06, 0.94)
                reach = self._scale(y) * (1.2 if kind == CAR else 0.55)
                if all(abs(x - other) > 0.75 * (reach + room) for other, room in taken):
                    taken.append((x, reach))
                    things.extend(self._make_object(rng, kind, x, y))
                    break
        return things

    def _make_object(self, rng: np.random.Generator, kind: int, x: float, y: float) -> list[_Thing]:
        """One object, two where a bicycle carries its rider; placed so that it is at (x, y) mid-sequence."""
        in_visible, in_thermal = 1.0, 1.0
        draw = rng.uniform()
        hidden_visible = draw < self._config.hidden_in_visible
        hidden_thermal = not hidden_visible and draw < self._config.hidden_in_visible + self._config.hidden_in_thermal
        if kind == PERSON and self._night:
            hidden_thermal = False  # people are warm; only a hot day hides them
        if hidden_visible:
            in_visible = rng.uniform(0.03, 0.12) if self._night else rng.uniform(0.05, 0.15)
        if hidden_thermal:
            in_thermal = rng.uniform(0.03, 0.12)
        facing = int(rng.choice([-1, 1]))
        still = hidden_thermal or rng.uniform() < 0.3  # what is cold stands still: a parked car, a leaning bicycle
        look = shapes.Look(self._ambient, self._night, facing, warm=not still, dark=hidden_visible)
        lights = 0.0
        vx, vy = 0.0, 0.0
        made: list[tuple[shapes.Shape, int]]
        if kind == PERSON:
            made = [(shapes.person(rng, look, walking=not still), PERSON)]
            vx = 0.0 if still else facing * rng.uniform(0.4, 0.9)
        elif kind == BICYCLE:
            made = [(shapes.bicycle(rng, look), BICYCLE)]
            if not still:
                made.append((shapes.rider(rng, look), PERSON))
                vx = facing * rng.uniform(0.8, 1.8)
        else:
            lit = self._night and not still and not hidden_visible
            lights = 0.8 if lit else 0.0
            if rng.uniform() < 0.35:
                made = [(shapes.car_front(rng, look, lit), CAR)]
                vy = 0.0 if still else rng.uniform(-0.06, 0.1)
            else:
                made = [(shapes.car_side(rng, look, lit), CAR)]
                vx = 0.0 if still else facing * rng.uniform(1.2, 3.0)
        start_x = x - vx * self._scale(y) * self._middle
        start_y = y - vy * (self._height - self._horizon) * self._middle
        return [
            _Thing(shape, label, start_x, start_y + 0.01 * i, vx, vy, in_visible, in_thermal, lights)
            for i, (shape, label) in enumerate(made)
        ]

    def render(self, index: int) -> WorldFrame:
        """The picture pair and its labels at step `index`, counted from 0."""
        t = index * FRAME_SECONDS
        albedo, glow, heat = (layer.copy() for layer in self._background)
        owner = np.full(heat.shape, -1, np.int16)
        full = np.zeros(len(self._things))
        light = self._night_light(t) if self._night else np.full((self._height, self._width, 1), self._light)
        for number, thing in enumerate(self._things):
            x, y, scale = self._where(thing, t)
            if scale <= 0:
                continue  # in a long sequence it may drive away beyond the horizon
            parts = thing.shape(t)
            full[number] = _stamp(parts, x, y, scale, thing, number, (albedo, glow, heat, owner), self._background)
        size = (self._width, self._height)
        albedo_small = cv2.resize(albedo, size, interpolation=cv2.INTER_AREA).astype(np.float64)
        glow_small = cv2.resize(glow, size, interpolation=cv2.INTER_AREA).astype(np.float64)
        heat_small = cv2.resize(heat, size, interpolation=cv2.INTER_AREA).astype(np.float64)
        rng = np.random.default_rng((*self._seed, 1, index))
        visible = self._expose_visible(albedo_small * light * self._tint + glow_small, rng)
        return WorldFrame(visible, self._expose_thermal(heat_small, rng), self._labels(owner, full))

    def _where(self, thing: _Thing, t: float) -> tuple[float, float, float]:
        y = thing.y + thing.vy * (self._height - self._horizon) * t
        return thing.x + thing.vx * self._scale(y) * t, y, self._scale(y)

    def _night_light(self, t: float) -> npt.NDArray[np.float64]:
        rows, columns = np.mgrid[0 : self._height, 0 : self._width]
        light = np.full((self._height, self._width), self._light)
        pools = [(x, y, 0.22 * self._width, 0.55) for x, y in self._lamps]
        for thing in self._things:
            if thing.lamp > 0:
                x, y, scale = self._where(thing, t)
                if scale <= 0:
                    continue
                facing = 0.0 if thing.vx == 0 else math.copysign(1.0, thing.vx)
                pools.append((x + facing * 1.3 * scale, y, 0.7 * scale, thing.lamp))
        for x, y, radius, strength in pools:
            light += strength * np.exp(-(((columns - x) / radius) ** 2) - ((rows - y) / (0.7 * radius)) ** 2)
        return light[:, :, None]

    def _expose_visible(self, picture: npt.NDArray[np.float64], rng: np.random.Generator) -> Array:
        picture = _blur(picture, self._config.visible_blur)
        noise = self._config.visible_noise * (2.0 if self._night else 1.0)
        return _to_bytes(picture + rng.normal(0.0, 1.0, picture.shape) * noise)

    def _expose_thermal(self, heat: npt.NDArray[np.float64], rng: np.random.Generator) -> Array:
        """Blur of the lens and the slow pixels, grain, and the column pattern of an uncooled sensor."""
        heat = _blur(heat, self._config.thermal_blur)
        columns = np.random.default_rng((*self._seed, 2)).normal(0.0, 0.4, (1, self._width))  # the same every frame
        grain = rng.normal(0.0, 1.0, heat.shape)
        return _to_bytes(heat + (grain + columns) * self._config.thermal_noise)

    def _labels(self, owner: npt.NDArray[np.int16], full: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        """Boxes around what is in view of each object, in drawing order (far to near)."""
        rows: list[tuple[float, ...]] = []
        height, width = owner.shape
        for number, thing in enumerate(self._things):
            if thing.label < 0 or full[number] <= 0:
                continue
            ys, xs = np.nonzero(owner == number)
            if len(xs) < MIN_SHOWN * full[number]:
                continue
            x0, x1, y0, y1 = int(xs.min()), int(xs.max()) + 1, int(ys.min()), int(ys.max()) + 1
            if min(x1 - x0, y1 - y0) < MIN_SIDE * SUPERSAMPLE:
                continue
            box = ((x0 + x1) / 2 / width, (y0 + y1) / 2 / height, (x1 - x0) / width, (y1 - y0) / height)
            rows.append((float(thing.label), *box))
        return np.array(rows, np.float64).reshape(-1, 5)


def _stamp(
    parts: list[shapes.Part],
    x: float,
    y: float,
    scale: float,
    thing: _Thing,
    number: int,
    layers: tuple[Array, Array, Array, npt.NDArray[np.int16]],
    background: tuple[Array, Array, Array],
) -> float:
    """Draw parts into the layers with their foot at (x, y) px; returns the whole area in drawn pixels, unclipped.

    What a camera hardly sees has nearly the look of the empty street behind it, and covers other things all the same.
    """
    unit = scale * SUPERSAMPLE
    corners = np.concatenate([contour for part in parts for contour in part.contours])
    low, high = corners.min(axis=0), corners.max(axis=0)
    left = math.floor(x * SUPERSAMPLE + low[0] * unit) - 1
    top = math.floor(y * SUPERSAMPLE - high[1] * unit) - 1
    w = math.ceil((high[0] - low[0]) * unit) + 4
    h = math.ceil((high[1] - low[1]) * unit) + 4
    albedo, glow = np.zeros((h, w, 3), np.uint8), np.zeros((h, w, 3), np.uint8)
    heat, mask = np.zeros((h, w), np.uint8), np.zeros((h, w), np.uint8)
    origin = np.array([x * SUPERSAMPLE - left, y * SUPERSAMPLE - top])
    for part in parts:
        # Contours of one part are filled by the even-odd rule, so a ring is two circles.
        points = [np.rint(origin + contour * (unit, -unit)).astype(np.int32) for contour in part.contours]
        for layer, value in ((albedo, part.albedo), (glow, part.glow), (heat, (part.heat,)), (mask, (1,))):
            cv2.fillPoly(layer, points, [float(v) for v in value])
    area = float(mask.sum())
    rows, columns = layers[3].shape
    x0, y0, x1, y1 = max(left, 0), max(top, 0), min(left + w, columns), min(top + h, rows)
    if x0 >= x1 or y0 >= y1:
        return area
    inside = (slice(y0 - top, y1 - top), slice(x0 - left, x1 - left))
    onto = (slice(y0, y1), slice(x0, x1))
    drawn = mask[inside] > 0
    strengths = (thing.in_visible, thing.in_visible, thing.in_thermal)
    for layer, empty, patch, strength in zip(layers[:3], background, (albedo, glow, heat), strengths, strict=True):
        mixed = (1.0 - strength) * empty[onto][drawn] + strength * patch[inside][drawn]
        layer[onto][drawn] = np.rint(mixed).astype(np.uint8)
    layers[3][onto][drawn] = number
    return area


def _blur(picture: npt.NDArray[np.float64], sigma: float) -> npt.NDArray[np.float64]:
    return np.asarray(cv2.GaussianBlur(picture, (0, 0), sigma), np.float64) if sigma > 0 else picture


def _to_bytes(picture: npt.NDArray[np.float64]) -> Array:
    return np.clip(np.rint(picture), 0, 255).astype(np.uint8)


def generate(
    seed: int, split: int, count: int, width: int, height: int, config: WorldConfig, sequence_length: int
) -> Iterator[tuple[str, WorldFrame]]:
    """Draw the frames of one split.

    The first frames of a longer run are those of a shorter one.

    Args:
        seed: of the world.
        split: number that keeps the scenes of two splits apart.
        count: frames.
        width: of the pictures, px.
        height: of the pictures, px.
        config: the dials of the world.
        sequence_length: frames per sequence.

    Yields:
        (stem, frame) in playing order, which is also the order of the stems.
    """
    digits = max(2, len(str(sequence_length - 1)))
    for start in range(0, count, sequence_length):
        number = start // sequence_length
        # Evenly spread rather than drawn, so that a small split too has its share of nights.
        night = math.floor((number + 1) * config.night) > math.floor(number * config.night)
        scene = Sequence((seed, split, number), width, height, night, config, sequence_length)
        for index in range(min(sequence_length, count - start)):
            yield f"{number:06d}_{index:0{digits}d}", scene.render(index)
