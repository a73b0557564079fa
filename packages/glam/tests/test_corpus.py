"""Manual pages lose their markup, and documents their places on one side."""

import polars as pl

from chapbook.glam.corpus import HELD_OUT, LONGEST, SHORTEST, _apart, _cut, _share, plain

PAGE = r"""'\" t
.\" A comment
.TH LS 1
.SH NAME
ls \- list "contents"
.SH "SEE ALSO"
.TS
hidden
.TE
The \fB\-a\fP option of
.BR dir (1)
shows \fIall\fP files.
.PP
It\(aqs done.
"""


def test_a_manual_page_is_plain_text():
    assert plain(PAGE) == (
        'NAME\nls - list "contents"\n\nSEE ALSO\nThe -a option of\ndir(1)\nshows all files.\n\n'
        "It's done."
    )


def test_long_texts_are_cut_at_empty_lines_and_short_ones_left_out():
    paragraphs = [f"{n} " + "x" * 9_000 for n in range(10)]
    found = list(_cut("\n\n".join(paragraphs)))
    assert "\n\n".join(found).split("\n\n") == paragraphs
    assert len(found) == 3
    assert all(SHORTEST <= len(each) <= LONGEST for each in found)
    assert list(_cut("x" * (SHORTEST // 2))) == []


def test_a_page_and_its_marked_up_form_are_on_one_side():
    assert _share("doc/a/ls.html") == _share("man/man1/ls.1.gz")
    shares = [_share(f"doc/{n}.txt") for n in range(4000)]
    # A deviation of a share of 4,000 is 0.0034.
    assert abs(sum(share < HELD_OUT for share in shares) / 4000 - HELD_OUT) < 3 * 0.0034


def test_what_is_trained_on_shares_no_run_of_words_with_what_is_held_out():
    def words(start: int, count: int) -> str:
        return " ".join(f"word{n}" for n in range(start, start + count))

    held = words(0, 400)
    texts = {
        "held": held,
        "repeats a paragraph": words(1000, 200)
        + "\n\n"
        + words(20, 15)
        + "\n\n"
        + words(2000, 200),
        "repeats across paragraphs": words(3000, 200) + " " + words(50, 7) + "\n\n" + words(57, 7),
        "alone": words(4000, 200) + "\n\n" + words(0, 12),
        "all of it": held,
    }
    rows = [(name, "s", "good", name == "held", text) for name, text in texts.items()]
    table = pl.DataFrame(rows, schema=["id", "source", "kind", "held", "text"], orient="row")
    found = dict(_apart(table).select("id", "text").iter_rows())
    assert found == {
        "held": held,
        "repeats a paragraph": words(1000, 200) + "\n\n" + words(2000, 200),
        "alone": texts["alone"],
    }
