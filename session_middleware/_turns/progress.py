"""How far one run has come: what it took over, and what can be made again if it fails."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from session_middleware._turns.runs import LeftRun


@dataclass(slots=True)
class RunProgress:
    """The progress of one run.

    Attributes:
        number: the run's number in its turn; None until it has begun.
        left: the earlier run that it makes again.
        adopted: how many items it took over from that; None until it did.
        position: how many items it has stored, those included.
        unsure: it may have stored some more, if it was interrupted now.
    """

    number: int | None = None
    left: LeftRun | None = None
    adopted: int | None = None
    position: int = 0
    unsure: bool = False

    @property
    def continues(self) -> bool:
        """Whether the run goes on from tool outputs that an earlier one left."""
        return bool(self.adopted)

    def take_over(self, items: int) -> None:
        """So many items of the earlier run are the run's own now."""
        self.adopted = self.position = items

    def leaves(self, input_digest: str) -> LeftRun | None:
        """What there is to be made again if the run fails here."""
        if self.number is None:
            return self.left
        if self.left is not None and self.adopted is None:
            mine = LeftRun(self.number, input_digest, also=self.left.also)
            return dataclasses.replace(self.left, also=mine)
        if self.position > 0 or self.unsure:
            return LeftRun(self.number, input_digest, items=self.position)
        return None
