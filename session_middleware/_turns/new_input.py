"""The new input of one run: what is known of it before the SDK hands it over."""

from __future__ import annotations

from session_middleware import _sdk
from session_middleware._sdk import RunCall
from session_middleware._turns.held_session import HeldSession
from session_middleware._turns.repeated import may_repeat
from session_middleware.errors import InvalidItem
from session_middleware.history import digest
from session_middleware.options import Options
from session_middleware.stores.items import encode_items, require_dicts
from session_middleware.stores.protocol import STORE_WITH_ACQUIRE
from session_middleware.stores.records import RunItems


def input_digest(call: RunCall) -> str:
    """What two runs with the same new input have in common; worked out once for a call."""
    if call.digest is None:
        call.digest = digest(_sdk.new_items(call.input))
    return call.digest


class NewInput:
    """The new input of a run that is not resumed; of a resumed run, nothing.

    Args:
        wrapped: a session of the SDK's changes the items before they reach ours.

    Attributes:
        digest: what two runs with the same new input have in common.
        repeated: how many of its items, from the first on, the session has already.

    Raises:
        InvalidItem: an item of a list is no JSON object.
    """

    def __init__(self, call: RunCall, options: Options, *, wrapped: bool = False) -> None:
        self._call = call
        self._options = options
        self._wrapped = wrapped
        self._merges = _sdk.merges_input(call)
        if isinstance(call.input, list) and not self._merges:
            require_dicts(call.input)  # the SDK would turn a model into a list of its fields
        self.digest = "" if call.resumes else input_digest(call)
        self.may_repeat = may_repeat(call.input) and not (self._merges or wrapped)
        self.repeated = 0

    def early(self) -> RunItems | None:
        """The items as the SDK will hand them over, where that can be told before it does."""
        changed = self._options.redact is not None or self._merges or self._wrapped
        changed = changed or self.may_repeat
        if STORE_WITH_ACQUIRE not in self._options.capabilities or changed or self._call.resumes:
            return None
        try:
            texts = encode_items(_sdk.new_items(self._call.input))
        except InvalidItem:  # refused when it is handed over, if it still is that
            return None
        return RunItems(1, 0, texts, self.digest) if texts else None

    async def find_repeated(self, held: HeldSession) -> None:
        """See how much of the input is the history that the session holds already."""
        if self.may_repeat:
            self.repeated = await held.repeated(self._call.input)

    def leave_out_repeated(self) -> None:
        """Give the run no more than what is new of its input."""
        if self.repeated:
            self._call.replace_input(self._call.input[self.repeated :])
