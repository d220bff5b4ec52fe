"""Assertions of the suite that ships with the package explain themselves, as those of tests do."""

import pytest

pytest.register_assert_rewrite("session_middleware.conformance")
