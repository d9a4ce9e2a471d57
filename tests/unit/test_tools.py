"""The tools of `make check` and `make docs` find what they look for."""

from pathlib import Path

import pytest

from tools import generated, words


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("It is mended.", 1),
        ("first\n# It is told\n# by its name.", 2),
        ("def test_for_want_of_a_better_name", 1),
        ("MENDED", 1),
        ("a\nThe reason is\n    none.", 2),
    ],
)
def test_a_word_that_is_not_used_here_is_found(text: str, line: int) -> None:
    """In any case, in names, and across the end of a line."""
    assert [where for where, _, _ in words.found(text)] == [line]


@pytest.mark.parametrize(
    "text", ["We recommend amending it.", "if value is None:", "There is none.", "shall", "besides"]
)
def test_other_words_are_not_mistaken_for_it(text: str) -> None:
    """Words that merely contain one that is not used."""
    assert list(words.found(text)) == []


def test_the_marks_of_a_merge_conflict_are_found() -> None:
    """Of either side, and of the common ancestor, in any text; not a quoted shell operator."""
    text = "# Title\n<<<<<<< HEAD\nours\n||||||| base\n=======\ntheirs\n>>>>>>> main\n"
    assert [line for line, _, _ in words.found(text)] == [2, 4, 7]
    assert list(words.found("cat <<<<<<< x\n>>> print()\n")) == []


def test_a_generated_file_is_written_or_only_compared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With --check a difference is reported and the file stays as it is."""
    monkeypatch.setattr(generated, "ROOT", tmp_path)
    path = tmp_path / "table.md"
    for arguments, status, content in (
        (["--check"], 1, None),
        ([], 0, "new"),
        (["--check"], 0, "new"),
    ):
        monkeypatch.setattr("sys.argv", ["tool", *arguments])
        assert generated.write_or_check({path: "new"}) == status
        assert (path.read_text() if path.exists() else None) == content


def test_a_table_is_replaced_between_its_markers() -> None:
    """What is around it stays. Without the markers there is an error, not an unchanged document."""
    assert generated.replace_between("a <b> old <e> z", "<b>", "<e>", r"new \1") == "a <b>\n\nnew \\1\n\n<e> z"
    for text in ("a", "<b> <b> <e>", "<e> <b>", "<b> a"):
        with pytest.raises(ValueError, match="exactly once"):
            generated.replace_between(text, "<b>", "<e>", "new")
