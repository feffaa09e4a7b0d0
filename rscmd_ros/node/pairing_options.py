"""How frames are put together, by those of the node's parameters that say so: the same for a node and for a bag."""

from __future__ import annotations

from dataclasses import dataclass, fields

from rscmd_model.errors import UserError
from rscmd_ros.node.parameters import Settings, problem_with
from rscmd_ros.pairing.frames import Pairer
from rscmd_ros.pairing.nearest import make_pairer

_MS = 1_000_000


@dataclass(frozen=True)
class PairingOptions:
    """The node's parameters of pairing, under their own names and with their own defaults.

    Attributes:
        pairing_policy: one of `pairing.POLICIES`.
        slop_ms: largest time difference within a pair, ms.
        deadline_ms: longest wait for a nearer partner, ms.
        thermal_offset_ms: how late thermal stamps are, ms.
        reuse: whether a frame may be in several pairs.
        queue_size: frames of each stream that wait for a partner at most.

    Raises:
        UserError: one is out of range, or two do not go together; it names the parameter.
    """

    pairing_policy: str = Settings.pairing_policy
    slop_ms: float = Settings.slop_ms
    deadline_ms: float = Settings.deadline_ms
    thermal_offset_ms: float = Settings.thermal_offset_ms
    reuse: bool = Settings.reuse
    queue_size: int = Settings.queue_size

    def __post_init__(self) -> None:
        for name in ("slop_ms", "deadline_ms", "thermal_offset_ms"):
            if isinstance(whole := getattr(self, name), int):  # as the node takes 20 for 20.0
                object.__setattr__(self, name, float(whole))
        if problem := problem_with({**vars(Settings()), **vars(self)}):
            raise UserError(problem)

    @classmethod
    def of(cls, settings: Settings) -> PairingOptions:
        """Those of a node with these parameters."""
        return cls(**{option.name: getattr(settings, option.name) for option in fields(cls)})

    @property
    def slop(self) -> int:
        """`slop_ms` in ns."""
        return round(self.slop_ms * _MS)

    @property
    def deadline(self) -> int:
        """`deadline_ms` in ns."""
        return round(self.deadline_ms * _MS)

    @property
    def thermal_offset(self) -> int:
        """`thermal_offset_ms` in ns."""
        return round(self.thermal_offset_ms * _MS)

    def make_pairer(self, thermal_offset: int | None = None) -> Pairer:
        """A pairer that goes by these options.

        Args:
            thermal_offset: what is taken off thermal stamps in place of the option, ns.

        Raises:
            ValueError: the options do not go together.
            ImportError: the policy needs message_filters, which are not there.
        """
        return make_pairer(
            self.pairing_policy,
            slop=self.slop,
            thermal_offset=self.thermal_offset if thermal_offset is None else thermal_offset,
            deadline=self.deadline,
            reuse=self.reuse,
            capacity=self.queue_size,
        )
