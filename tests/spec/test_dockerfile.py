"""From the text of a Dockerfile to its instructions."""

import pytest

from farcall.errors import InvalidError
from farcall.spec.dockerfile import INSTRUCTIONS, Heredoc, Instruction, parse, split


def only(text: str) -> Instruction:
    (found,) = parse(text)
    return found


def shown(text: str) -> list[tuple[int, str, str]]:
    return [(one.line, one.name, one.text) for one in parse(text)]


def test_lines_comments_and_case() -> None:
    text = "\ufeff# about\n\nfrom debian AS base\n   # indented\n\tRun echo a # b\n\n"
    assert shown(text) == [(3, "FROM", "debian AS base"), (5, "RUN", "echo a # b")]


def test_continued_lines() -> None:
    text = "FROM a\nRUN one && \\\n    two && \\  \n# a comment between\n\n    three\nRUN four\\\nfive\r\nRUN \\\n  six"
    assert shown(text) == [
        (1, "FROM", "a"),
        (2, "RUN", "one &&     two &&     three"),
        (7, "RUN", "fourfive"),
        (9, "RUN", "six"),
    ]
    assert parse(text)[1].original.startswith("RUN one && \\\n")


def test_another_escape_character() -> None:
    text = "# syntax=docker/dockerfile:1\n# Escape = `\nFROM a\nRUN dir C:\\ `\n  /x\n"
    assert shown(text) == [(3, "FROM", "a"), (4, "RUN", "dir C:\\   /x")]
    assert parse(text)[0].escape == "`"


def test_a_directive_after_a_comment_is_a_comment() -> None:
    assert parse("# hello\n# escape=`\nRUN a \\\nb")[0].escape == "\\"


def test_flags() -> None:
    found = only("COPY --from=base --chown=a:b --link --parents a b /c/")
    assert found.flags == (("from", "base"), ("chown", "a:b"), ("link", "true"), ("parents", "true"))
    assert found.text == "a b /c/"
    assert only("RUN --mount=type=cache,target=/c --mount=type=tmpfs,target=/t x --y").text == "x --y"


def test_lists_and_words() -> None:
    assert only('RUN ["a", "b c"]').as_list() == ("a", "b c")
    assert only("RUN [ -f x ] && y").as_list() is None
    assert only("RUN ['a']").as_list() is None
    assert only("RUN [1]").as_list() is None
    assert only("CMD").text == ""
    assert split(r"""a "b c" 'd "e' f\ g "h\"i" $x""") == ["a", '"b c"', "'d \"e'", r"f\ g", r'"h\"i"', "$x"]


def test_pairs() -> None:
    assert only("ENV A=1 B=\"2 3\" C='x' D=").pairs() == {"A": "1", "B": '"2 3"', "C": "'x'", "D": ""}
    assert only("ENV A  1 2  3").pairs() == {"A": "1 2  3"}
    assert only("LABEL a.b=c=d").pairs() == {"a.b": "c=d"}


def test_here_documents() -> None:
    text = (
        "FROM a\nRUN <<EOF\necho 1\n# kept\nEOF\nCOPY <<'A' <<-B /x/\n$a\nA\n\t\tb\n\tB\n"
        'RUN python3 <<"P" | cat\nprint(1)\nP'
    )
    _, run, copy, piped = parse(text)
    assert run.heredocs == (Heredoc("EOF", "echo 1\n# kept\n", True),)
    assert (run.line, copy.line, piped.line) == (2, 6, 11)
    assert copy.heredocs == (Heredoc("A", "$a\n", False), Heredoc("B", "b\n", True, True))
    assert piped.heredocs == (Heredoc("P", "print(1)\n", False),)
    assert piped.text == 'python3 <<"P" | cat'


def test_what_only_looks_like_a_here_document() -> None:
    for command in ("echo $((1<<3))", "echo '<<EOF'", 'echo "a <<EOF b"', "cat <<< word", "echo a << b"):
        assert only(f"RUN {command}").heredocs == ()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("FROM a\n\nCOPPY a b", "Dockerfile, line 3: there is no instruction COPPY; did you mean COPY?\n    COPPY a b"),
        ("XYZ", "there are ADD, ARG"),
        ("ONBUILD RUN x", "line 1: ONBUILD is not supported"),
        ("FROM", "FROM has no argument"),
        ("RUN <<EOF\necho\nEOG", "<<EOF does not end"),
        ("# escape=x\nFROM a", "line 1: the escape character"),
        ("COPY --=3 a b", "'--=3' is no flag"),
        ("FROM a\nRUN " + "x" * 200 + "\nNO " + "y" * 200, "    NO " + "y" * 74 + "..."),
    ],
)
def test_what_is_wrong_is_named(text: str, message: str) -> None:
    with pytest.raises(InvalidError) as caught:
        parse(text)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("ENV A", "ENV A has no value: write A=value"),
        ("ENV A=1 B", "'B' is not name=value; a value with blanks needs quotes"),
        ("ENV A=1 =2", "'=2' has no name"),
        ("ENV A='1", "the quote ' is not closed"),
    ],
)
def test_wrong_pairs(text: str, message: str) -> None:
    with pytest.raises(InvalidError) as caught:
        only(text).pairs()
    assert message in str(caught.value)


def test_every_instruction_is_read() -> None:
    for name in INSTRUCTIONS:
        assert only(f"{name.lower()} x").name == name
