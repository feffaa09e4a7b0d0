"""The methods: what is fused, which answers bear a loss, and what each loss teaches. One file for each method.

This room may import the ground (`config`, `errors`) and torch. `base.Method` is the interface; docs/ARCHITECTURE.md
lists the steps to add a method. The table below names classes instead of importing them, so that a command line and the
header of an exported model are read without torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from rscmd_model.config import ModelConfig
from rscmd_model.errors import UserError, did_you_mean, quoted

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
}
"""The class of each method, as module:name, by its name on the command line and in model files."""


def method_class(name: str) -> type[Method]:
    """The class of a method by its name. Raises `UserError` when there is none."""
    if name not in METHODS:
        raise UserError(f"method {quoted(name)} is not one of {', '.join(METHODS)}")
    module, _, of = METHODS[name].partition(":")
    kind: type[Method] = getattr(importlib.import_module(module), of)
    return kind


def method_config(method: str, *, scale: str | None = None, family: str | None = None, **settings: Any) -> ModelConfig:
    """The configuration of a model of one method.

    Args:
        method: a key of `METHODS`.
        scale: n, s, m, l or x; None means n.
        family: a key of `config.FAMILIES`; None means yolov8.
        settings: of the method's `Settings`; None leaves one at its default.

    Raises:
        UserError: no such method, scale, family or setting, a value out of range, or a combination that makes no sense.
    """
    given = {name: value for name, value in settings.items() if value is not None}
    return _config(method, scale or ModelConfig.scale, family or ModelConfig.family, given)


def parse_method(text: str, *, scale: str | None = None, family: str | None = None) -> ModelConfig:
    """The configuration that a command line names, as "rscmd" or "rsc+rsc=shared+lambda_visible=2".

    Args:
        text: name of a method, then settings of it, each after a "+".
        scale, family: as for `method_config`.

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
    return _config(method, scale or ModelConfig.scale, family or ModelConfig.family, given)


def _config(method: str, scale: str, family: str, given: dict[str, Any]) -> ModelConfig:
    kind = method_class(method)
    known = kind.Settings.__dataclass_fields__
    for name in given:
        if name not in known:
            hint = did_you_mean(name, known, f"it has {', '.join(known) or 'none'}")
            raise UserError(f"method {method} has no setting {quoted(name)}{hint}")
    chosen = kind.Settings(**given)
    return ModelConfig(
        scale=scale,
        family=family,
        method=method,
        settings=chosen.written(),
        modalities=kind.modalities,
        answers=kind.shipped(chosen),
    )
