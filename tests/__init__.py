import pytest

# Show the values in failed assertions of the support modules, too.
pytest.register_assert_rewrite("tests.support", "tests.soak")
