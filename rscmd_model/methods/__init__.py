"""The methods: what is fused, which answers bear a loss, and what each loss teaches. One file for each method.

This room may import the ground (`config`, `errors`) and torch. `base.Method` is the interface; docs/ARCHITECTURE.md
lists the steps to add a method. The table below names classes instead of importing them, so that a command line and the
header of an exported model are read without torch.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from rscmd_model.config import ModelConfig
from rscmd_model.errors import UserError, did_you_mean, quoted, shown

if TYPE_CHECKING:
    from rscmd_model.methods.base import Method

METHODS = {
    "visible": "rscmd_model.methods.single:Visible",
    "thermal": "rscmd_model.methods.single:Thermal",
    "late": "rscmd_model.methods.late:Late",
    "sum": "rscmd_model.methods.sum:Sum",
    "aux": "rscmd_model.methods.auxiliary:Auxiliary",
    "rsc": "rscmd_model.methods.rsc:Rsc",
    "rscmd": "rscmd_model.methods.rscmd:RscMd",
    "dgl": "rscmd_model.methods.dgl:Dgl",
    "gmd": "rscmd_model.methods.gmd:Gmd",
    "mmpareto": "rscmd_model.methods.mmpareto:MmPareto",
    "ogm": "rscmd_model.methods.ogm:Ogm",
    "opm": "rscmd_model.methods.opm:Opm",
    "mwam": "rscmd_model.methods.mwam:Mwam",
    "smp": "rscmd_model.methods.smp:Smp",
    "g2d": "rscmd_model.methods.g2d:G2d",
    "frozen": "rscmd_model.methods.frozen:Frozen",
    "m2d": "rscmd_model.methods.m2d:M2d",
    "lif": "rscmd_model.methods.lif:Lif",
    "m2dlif": "rscmd_model.methods.m2dlif:M2dLif",
    "gate": "rscmd_model.methods.gate:Gate",
    "complement": "rscmd_model.methods.complement:Complement",
    "compensate": "rscmd_model.methods.compensate:Compensate",
    "instruct": "rscmd_model.methods.instruct:Instruct",
}
"""The class of each method, as module:name, by its name on the command line and in model files."""


def method_class(name: str) -> type[Method]:
    """The class of a method by its name. Raises `UserError` when there is none."""
    if name not in METHODS:
        raise UserError(f"method {quoted(name)} is not one of {', '.join(METHODS)}")
    module, _, of = METHODS[name].partition(":")
    kind: type[Method] = getattr(importlib.import_module(module), of)
    return kind


def needs_teachers(config: ModelConfig, goes_on: bool = False) -> bool:
    """Whether a model of this configuration learns from the two single-camera controls; or, where its training goes on
    from a finished model, whether it does so beyond its start."""
    kind = method_class(config.method)
    settings = kind.Settings.read(config.settings)
    return kind.asks_teachers(settings) if goes_on else kind.needs_teachers(settings)


def method_config(
    method: str, *, scale: str | None = None, family: str | None = None, head_classes: int = 0, **settings: Any
) -> ModelConfig:
    """The configuration of a model of one method.

    Args:
        method: a key of `METHODS`.
        scale: n, s, m, l or x; None means n.
        family: a key of `config.FAMILIES`; None means yolov8.
        head_classes: how many classes the plain detector has that the model is to start from; 0 means a random start.
            With one, the defaults of `Method.from_weights` hold.
        settings: of the method's `Settings`; None leaves one at its default. `preset` stands for those of
            `Method.presets`.

    Raises:
        UserError: no such method, scale, family, setting or preset, a value out of range, a combination that makes no
            sense, or a setting that contradicts the preset.
    """
    given = {name: value for name, value in settings.items() if value is not None}
    return _config(method, scale or ModelConfig.scale, family or ModelConfig.family, head_classes, given)


def parse_method(
    text: str, *, scale: str | None = None, family: str | None = None, head_classes: int = 0
) -> ModelConfig:
    """The configuration that a command line names, as "rscmd", "rsc+rsc=shared+lambda_visible=2", "rscmd+preset=paper".

    Args:
        text: name of a method, then settings of it, each after a "+".
        scale, family, head_classes: as for `method_config`.

    Raises:
        UserError: as `method_config`, or a setting without a value, or given twice.
    """
    method, *words = text.split("+")
    given: dict[str, Any] = {}
    kind = method_class(method)
    for word in words:
        name, equals, value = word.partition("=")
        if not equals:
            raise UserError(f"method {text!r}: expected setting=value after '+', as in rscmd+md=map, got {word!r}")
        if name in given:
            raise UserError(f"method {text!r}: {name} is given twice")
        given[name] = kind.Settings.parsed(name, value)
    return _config(method, scale or ModelConfig.scale, family or ModelConfig.family, head_classes, given)


def _config(method: str, scale: str, family: str, head_classes: int, given: dict[str, Any]) -> ModelConfig:
    kind = method_class(method)
    if "preset" in given:
        given = _expanded(method, kind.presets, given)
    known = kind.Settings.__dataclass_fields__
    for name in given:
        if name not in known:
            names = [*known, "preset"] if kind.presets else known
            hint = did_you_mean(name, names, f"it has {', '.join(names) or 'none'}")
            raise UserError(f"method {method} has no setting {quoted(name)}{hint}")
    chosen = kind.Settings(**{**(kind.from_weights if head_classes else {}), **given})
    return ModelConfig(
        scale=scale,
        family=family,
        method=method,
        settings=chosen.written(),
        modalities=kind.modalities,
        answers=kind.shipped(chosen),
        head_classes=head_classes,
    )


def _expanded(method: str, presets: Mapping[str, Mapping[str, Any]], given: dict[str, Any]) -> dict[str, Any]:
    """The settings given, with those that the preset stands for in its place. A model file never names a preset."""
    given = dict(given)
    word = given.pop("preset")
    if not presets:
        raise UserError(f"method {method} has no presets: leave preset={shown(word)} out")
    if word not in presets:
        raise UserError(f"preset {quoted(word)} of method {method} is not one of {', '.join(presets)}")
    for name, value in presets[word].items():
        if given.setdefault(name, value) != value:
            told = f"{name}={shown(given[name])} contradicts preset={word}, which means {name}={value}"
            raise UserError(f"{told}: leave one of them out")
    return given
