"""Tables, letter by letter."""

from mlg_jax._tables import padded_table, table, table_head, table_row


def test_words_are_left_and_numbers_right():
    expected = "| layer | kind | KB |\n|---|---|--:|\n| stem | conv | 1.50 |\n| head | fc | 0.25 |"
    rows = [("stem", "conv", "1.50"), ("head", "fc", "0.25")]
    assert table(("layer", "kind", "KB"), rows, "llr") == expected


def test_the_last_alignment_serves_all_further_columns():
    assert table_head(("a", "b", "c")).splitlines()[1] == "|---|--:|--:|"
    assert table_head(("a", "b", "c", "d"), "rlr").splitlines()[1] == "|--:|---|--:|--:|"
    assert table_head(("a",), "llr").splitlines()[1] == "|---|"


def test_bars_are_escaped_and_empty_cells_stay_cells():
    assert table_row(("a|b", "", "c")) == r"| a\|b |  | c |"
    assert table_head(("", "KB")) == "| | KB |\n|---|--:|"


def test_a_padded_table_is_legible_as_text():
    rows = [("teacher", "1,234.5"), ("student", "9.0")]
    assert padded_table(("network", "MiB"), rows) == (
        "| network |     MiB |\n| ------- | ------: |\n| teacher | 1,234.5 |\n| student |     9.0 |"
    )
