"""Pages are written whatever the names in them."""

from pathlib import Path

from deepres.report import Page, Table


def test_names_that_are_not_text_do_not_keep_a_page_from_being_written(tmp_path: Path) -> None:
    """The bytes of a file's name need not be UTF-8; Python then has lone surrogates in their place."""
    name = b"caf\xe9".decode("utf-8", "surrogateescape")
    page = Page(f"What the depth of {name} does", "Measured.", "Made by a test.")
    page.table(Table("by class", ["class", "site"], [[name, "1"]]))
    page.gallery([("data:image/png;base64,", name)])
    html = page.write(tmp_path / "report.html").read_text(encoding="utf-8")
    assert "What the depth of caf? does" in html and html.count("caf?") >= 3
    assert [path.name for path in tmp_path.iterdir()] == ["report.html"]
