"""A short version of the rows of `make chaos` for which there is no test elsewhere."""

import pytest
from rows import ROWS


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name, (_, _, tries) in ROWS.items() if tries])
def test_what_is_broken_on_purpose_is_survived(name, tmp_path):
    row, _, tries = ROWS[name]
    row(tries, 0, tmp_path)
