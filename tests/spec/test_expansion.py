"""Words of a Dockerfile."""

import pytest

from farcall.errors import InvalidError
from farcall.spec.expansion import expand, expand_text

VARIABLES = {"A": "apple", "EMPTY": "", "FILE": "archive.tar.gz", "SPACED": "a b", "A_1": "one"}


@pytest.mark.parametrize(
    ("word", "expected"),
    [
        ("plain", "plain"),
        ("$A", "apple"),
        ("${A}s", "apples"),
        ("$As", ""),
        ("$A_1-$A", "one-apple"),
        ("$UNSET|", "|"),
        ("'$A'", "$A"),
        ('"$A"', "apple"),
        ('"$SPACED"', "a b"),
        (r"\$A", "$A"),
        (r"\${A}", "${A}"),
        (r'"\$A \" \\ \n"', '$A " \\ \\n'),
        (r"a\ b", "a b"),
        ("'it''s'", "its"),
        ("a$", "a$"),
        ("$%", "$%"),
        ("${A:-x}", "apple"),
        ("${EMPTY:-x}", "x"),
        ("${EMPTY-x}", ""),
        ("${UNSET-x}", "x"),
        ("${UNSET:-${A}s}", "apples"),
        ("${UNSET:-'a b'}", "a b"),
        ("${UNSET:-}", ""),
        ("${A:+x}", "x"),
        ("${EMPTY:+x}", ""),
        ("${EMPTY+x}", "x"),
        ("${UNSET+x}", ""),
        ("${A:?missing}", "apple"),
        ("${EMPTY?missing}", ""),
        ("${FILE#*.}", "tar.gz"),
        ("${FILE##*.}", "gz"),
        ("${FILE%.*}", "archive.tar"),
        ("${FILE%%.*}", "archive"),
        ("${FILE#nothing}", "archive.tar.gz"),
        ("${FILE%nothing}", "archive.tar.gz"),
        ("${FILE%?}", "archive.tar.g"),
        ("${FILE/a/A}", "Archive.tar.gz"),
        ("${FILE//a/A}", "Archive.tAr.gz"),
        ("${FILE//./-}", "archive-tar-gz"),
        ("${FILE/.tar}", "archive.gz"),
        ("${FILE/.*/}", "archive"),
    ],
)
def test_expansion(word: str, expected: str) -> None:
    assert expand(word, VARIABLES) == expected


def test_the_other_escape_character() -> None:
    assert expand(r"C:\$A `$A `` ", VARIABLES, "`") == "C:\\apple $A ` "


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("'open", "quote ' is not closed"),
        ('"open', 'quote " is not closed'),
        ("${A", "not closed"),
        ("${A:-x", "there is no }"),
        ("${}", "no name of a variable"),
        ("${A:=x}", "modified in an unknown way"),
        ("${UNSET:?give one}", "UNSET: give one"),
        ("${UNSET?}", "UNSET: is not set"),
        ("${EMPTY:?x}", "EMPTY: x"),
    ],
)
def test_what_is_no_word(word: str, message: str) -> None:
    with pytest.raises(InvalidError) as caught:
        expand(word, VARIABLES)
    assert message in str(caught.value)


def test_here_documents_keep_quotes() -> None:
    assert expand_text("""say "it's $A" \\$A \\n\n""", VARIABLES) == """say "it's apple" $A \\n\n"""
