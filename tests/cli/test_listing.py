"""Tables for people."""

from farcall.cli.listing import columns

HEADINGS = ("ID", "NAME", "STATE", "RUNNING")
ROWS = [
    ("ap-l8Pa0uPXOXoxmvST7J6hE91", "training-pipeline-with-a-long-name", "running", "12"),
    ("ap-0000000000000000000000", "short", "stopping", "3"),
]


def test_a_table_that_fits_is_left_as_it_is() -> None:
    whole = columns(HEADINGS, ROWS)
    assert whole[0] == f"{'ID':26}  {'NAME':34}  {'STATE':8}  RUNNING"
    assert columns(HEADINGS, ROWS, len(whole[1])) == whole


def test_names_are_cut_before_ids_and_numbers() -> None:
    for width in range(60, 80):
        lines = columns(HEADINGS, ROWS, width)
        assert {len(line) for line in lines} == {width}
        assert [line.split()[0] for line in lines[1:]] == [row[0] for row in ROWS]
        assert [line.split()[-1] for line in lines] == ["RUNNING", "12", "3"]
        assert "trainin" in lines[1] and "…" in lines[1] and "…" not in lines[2]


def test_a_table_in_too_narrow_a_terminal() -> None:
    assert [len(line) for line in columns(HEADINGS, ROWS, 20)] == [20, 20, 20]
    for line, row in zip(columns(HEADINGS, ROWS, 20, cut_lines=False)[1:], ROWS, strict=True):
        assert line.startswith(f"{row[0]}  ") and line.endswith(f"{row[2]}{row[3]:>{17 - len(row[2])}}")
    assert columns(HEADINGS, [], 80) == ["ID  NAME  STATE  RUNNING"]


def test_a_name_moves_no_cursor() -> None:
    """Nor does it set titles: what is not visible is shown as its escape, and counted as that."""
    assert columns(["NAME", "N"], [["a\x1b[2J\x07é", "1"], ["b\u202e", "2"]]) == [
        "NAME           N",
        "a\\x1b[2J\\x07é  1",
        "b\\u202e        2",
    ]
