"""The names of our tables and functions in a database, put into SQL that is written without them.

SQL in this folder names a table or function of ours as ``{item}``; ``Names`` puts the quoted name
with its schema and prefix there. Nothing else is ever put into a statement.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache

from session_middleware.errors import InvalidOption

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_PREFIX = re.compile(r"[A-Za-z0-9_]*")
_PLACE = re.compile(r"\{([a-z_]+)\}")
_LONGEST_NAME = 63  # PostgreSQL cuts longer ones
_LONGEST_OF_OURS = 23


@dataclass(frozen=True, slots=True)
class Names:
    """Where our tables are: a schema, and what their names begin with.

    Raises:
        InvalidOption: the schema or the prefix has other characters than letters, digits and
            underscores, or is too long.
    """

    schema: str = "public"
    prefix: str = "session_middleware_"

    def __post_init__(self) -> None:
        if not isinstance(self.schema, str) or not _NAME.fullmatch(self.schema):
            raise InvalidOption(
                f"schema must be a name of letters, digits and _, got {self.schema!r}"
            )
        if not isinstance(self.prefix, str) or not _PREFIX.fullmatch(self.prefix):
            raise InvalidOption(f"table_prefix must be letters, digits and _, got {self.prefix!r}")
        for option, text, most in (
            ("schema", self.schema, _LONGEST_NAME),
            ("table_prefix", self.prefix, _LONGEST_NAME - _LONGEST_OF_OURS),
        ):
            if len(text) > most:
                raise InvalidOption(
                    f"{option} must have at most {most} characters, got {len(text)}"
                )

    def fill(self, statement: str) -> str:
        """The statement with the names of this place in it."""
        return _filled(self, statement)

    def of(self, name: str) -> str:
        """The quoted name of one of our tables or functions.

        ``schema`` is the schema itself, ``channel`` what NOTIFY names; an index (``..._name``) is
        named without the schema, as PostgreSQL asks for.
        """
        if name == "schema":
            return f'"{self.schema}"'
        if name == "channel":
            return f"{self.prefix}turn_ended"
        if name.endswith("_name"):
            return f'"{self.prefix}{name.removesuffix("_name")}"'
        return f'"{self.schema}"."{self.prefix}{name}"'


@lru_cache(maxsize=1024)
def _filled(names: Names, statement: str) -> str:
    return _PLACE.sub(lambda place: names.of(place[1]), statement)
