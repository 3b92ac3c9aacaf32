"""The numbers in docs/search.md are the ones the code prints."""

import doctest
from pathlib import Path

PAGE = Path(__file__).resolve().parents[2] / "docs" / "search.md"


def test_examples_print_what_the_page_says():
    result = doctest.testfile(str(PAGE), module_relative=False)
    assert result.attempted >= 6 and result.failed == 0
