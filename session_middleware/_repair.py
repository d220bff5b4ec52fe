"""What makes a history one that a provider accepts: its faults, and their repair.

Part of ``session_middleware.history``, which hands on what is public. Pure functions on items,
without clock and random values: the same history is always repaired the same way, so that the
prompt a provider has cached stays the same.
"""

from __future__ import annotations

CALL_OUTPUTS = {
    "function_call": "function_call_output",
    "custom_tool_call": "custom_tool_call_output",
    "computer_call": "computer_call_output",
    "local_shell_call": "local_shell_call_output",
    "shell_call": "shell_call_output",
    "apply_patch_call": "apply_patch_call_output",
    "tool_search_call": "tool_search_output",
    "program": "program_output",
}
"""Each type of call that is answered by an item of its own, and the type of that item."""
