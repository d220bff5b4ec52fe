"""What may be shown of a text that may have a password in it. No error text is made here."""

from __future__ import annotations

import re

_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*:/+")
_USER = re.compile(r"[^\s:@'\"/]*:(?!/)")
_PARAMETERS = re.compile(r"(?<=[?#&;]).+", re.DOTALL)
_NO_PORT = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*:/+[^/:@\s]*:)(?!\d+(?:/|\s|$)).*", re.DOTALL)
_SETTING = re.compile(
    r"((?:pass|pwd|secret|token|key|auth|sig|cred)\w*\s*=).*", re.DOTALL | re.IGNORECASE
)
_OF_A_SERVER = re.compile(
    r"\s*[A-Za-z][A-Za-z0-9+.-]+:/"  # a scheme; one letter is a drive
    r"|[^/:@]+:.*@"  # user:password@host
    r"|\s*\w+\s*=.*(?:pass|pwd)\w*\s*=",  # host=... password=...
    re.DOTALL | re.IGNORECASE,
)


def without_password(text: str) -> str:
    """The text without the names, passwords and parameters of the URLs in it.

    It hides rather too much than too little, as a password may have any character unescaped.
    """
    shown = _without_credentials(text)
    shown = _NO_PORT.sub(r"\1***", shown)  # user:password without a host
    shown = _PARAMETERS.sub("***", shown)
    return _SETTING.sub(r"\1***", shown)  # host=... password=...


def _without_credentials(text: str) -> str:
    """The text without all that stands between a scheme, or a user, and the last @."""
    before, at, after = text.rpartition("@")
    scheme, user = _SCHEME.search(before), _USER.search(before)
    starts = [scheme.end()] if scheme else []
    if user and not (scheme and scheme.start() < user.start()):
        starts.append(user.start())
    if not at or not starts:
        return text
    start = min(starts)
    hidden = f"{before[start:]}@"
    if _PARAMETERS.search(hidden) or _SETTING.search(hidden):
        return f"{text[:start]}***"  # the @ may be of a parameter, or the mark of a password
    return f"{text[:start]}***@{after}"


def names_a_server(text: str) -> bool:
    """Whether the text is, by its form, no path but a URL or the settings of a connection."""
    return _OF_A_SERVER.match(text) is not None
