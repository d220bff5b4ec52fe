"""``schema``: the SQL of a PostgreSQL memory's tables, for ``psql``."""

from __future__ import annotations

import sys

import click


@click.command()
@click.option("--schema", "schema_name", default="public", show_default=True, metavar="NAME")
@click.option("--table-prefix", default="session_middleware_", show_default=True, metavar="TEXT")
@click.option(
    "--from-version",
    type=click.IntRange(0),
    default=0,
    metavar="N",
    help="The version that the database has, in its table session_middleware_layout; 0: none.",
)
@click.option(
    "--partitions",
    type=click.IntRange(1),
    default=1,
    show_default=True,
    metavar="N",
    help="So many parts have the tables of sessions, by hash of the session.",
)
def schema(schema_name: str, table_prefix: str, from_version: int, partitions: int) -> None:
    """Print the SQL that makes the tables of a PostgreSQL memory.

    For psql, where the program itself may not make tables (migrate=False). It runs in one
    transaction.
    """
    from session_middleware.stores.postgres.names import Names
    from session_middleware.stores.postgres.schema import script

    sys.stdout.write(script(Names(schema_name, table_prefix), from_version, partitions))
