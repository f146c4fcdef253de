"""The page as a whole: well-formed, complete, self-contained, and true to the results."""

from __future__ import annotations

import itertools
import re
from pathlib import Path

import attrs
import pytest
from permllm_report.page import environment_rows, render, write_page

from permllm import UserError
from permllm.reporting import read_record, sentence

SECTIONS = ("comparison", "cost", "learning", "runs", "setup")
HOSTILE = "<script>alert(1)</script> & \"x\" 'y' {{ 7 * 7 }}"


def cells(row) -> list[str]:
    return [cell.text for cell in row.all() if cell.tag in ("th", "td")]


def test_every_section_is_there_and_linked(study, page, tmp_path: Path) -> None:
    study(tmp_path)
    root = page(render(read_record(tmp_path)))
    targets = [a.attributes["href"] for a in root.one("nav").all("a")]
    assert targets == [f"#{name}" for name in SECTIONS]
    assert [section.attributes["id"] for section in root.all("section")] == list(SECTIONS)
    ids = [e.attributes["id"] for e in root.all() if "id" in e.attributes]
    assert len(ids) == len(set(ids))
    for link in root.all("a"):
        assert root.id(str(link.attributes["href"]).removeprefix("#"))


def test_nothing_comes_from_elsewhere(study, page, tmp_path: Path) -> None:
    study(tmp_path)
    html = render(read_record(tmp_path))
    assert not re.search(r"https?:|//[a-z]|@import|url\((?!#)|<script|javascript:", html)
    for element in page(html).all():
        assert not {"src", "srcset", "onload", "onclick"} & set(element.attributes)
        if "href" in element.attributes:
            assert str(element.attributes["href"]).startswith(("#", "data:,"))


def test_figures_are_those_of_the_results(study, page, expected, tmp_path: Path) -> None:
    results = study(tmp_path)
    root = page(render(read_record(tmp_path)))
    assert root.one("p", "sentence").text == sentence(results)
    head, *rows = root.one("table", "figures").all("tr")
    wanted_head, *wanted = expected(results)
    assert cells(head) == wanted_head
    assert [cells(row)[1:] for row in rows] == [row[1:] for row in wanted]
    labels = ["dense", "none", "cp", "lcp"]
    assert [row.one("th").text for row in rows] == [f"{n}{x}" for n, x in enumerate(labels, 1)]
    assert cells(rows[3])[1] == "50.00"


def test_heat_maps_show_the_reports(study, page, tmp_path: Path) -> None:
    results = study(tmp_path)
    root = page(render(read_record(tmp_path)))
    for index, run in enumerate(results.runs[1:], start=1):
        found = {
            figure.one("caption").text.partition(" (")[0]: cells_by_place(figure)
            for figure in root.id(f"run-{index}").all("figure", "heat")
        }
        wanted = {
            "Retained score": {r.linear: f"{100 * r.retained:.1f}" for r in run.layers},
            "Gained by the order": {
                r.linear: f"{100 * (r.retained - r.retained_before):.1f}" for r in run.layers
            },
            "Output error": {r.linear: f"{100 * r.error:.1f}" for r in run.layers},
        }
        if run.label == "none":
            del wanted["Gained by the order"]
        assert found == wanted


def cells_by_place(figure) -> dict[str, str]:
    """A heat map's cells by the full name of their linear."""
    folders, names = figure.one("thead").all("tr")
    heads = [
        head.text for head in folders.all("th")[1:] for _ in range(int(head.attributes["colspan"]))
    ]
    columns = [f"{head}.{name}" for head, name in zip(heads, cells(names), strict=True)]
    return {
        f"model.layers.{layer}.{column}": said
        for layer, *row in (cells(row) for row in figure.one("tbody").all("tr"))
        for column, said in zip(columns, row, strict=True)
    }


def test_labels_are_text_wherever_they_stand(study, made, page, tmp_path: Path) -> None:
    endless = made(f"{HOSTILE} 2", perplexity=float("inf"))
    study(tmp_path, [made(HOSTILE, steps=3), endless, made("other")])
    root = page(render(read_record(tmp_path)))
    assert not root.all("script")
    where = [e.tag for e in root.all() if any(HOSTILE in c for c in e.children if type(c) is str)]
    # In the sentence, the table, the loss curve, the section's heading, what is not drawn.
    assert {"p", "a", "h3", "figcaption"} <= set(where)
    said = [str(e.attributes["aria-label"]) for e in root.all("svg") if "role" in e.attributes]
    assert any(HOSTILE in label for label in said)


def test_pictures_and_tables_can_be_read_aloud(study, page, tmp_path: Path) -> None:
    study(tmp_path)
    root = page(render(read_record(tmp_path)))
    assert root.one("html").attributes["lang"] == "en"
    pictures = root.all("svg")
    assert len(pictures) > 10
    for picture in pictures:
        named = picture.attributes.get("role") == "img" and picture.attributes.get("aria-label")
        assert named or picture.attributes.get("aria-hidden") == "true"
    for table in root.all("table"):
        assert all(head.attributes["scope"] for head in table.all("th"))
        assert table.all("th")
    levels = [int(e.tag[1]) for e in root.all() if re.fullmatch(r"h[1-6]", e.tag)]
    assert levels[0] == 1
    assert all(later - earlier <= 1 for earlier, later in itertools.pairwise(levels))


def test_one_failed_run_is_shown_as_failed(study, made, page, tmp_path: Path) -> None:
    broken = made("lcp", error="RunFailed: NaN in <layer 3>", windows=0)
    study(tmp_path, [made("none", order="same"), broken])
    root = page(render(read_record(tmp_path)))
    head, *_, row = root.one("table", "figures").all("tr")
    assert cells(row) == ["3lcp", "failed RunFailed: NaN in <layer 3>"]
    assert row.one("td").attributes["colspan"] == str(len(head.all("th")) - 1)
    section = root.id("run-2")
    assert "failed RunFailed: NaN in <layer 3>" in section.text
    assert "Not all runs have ended" not in root.text


def test_repeats_are_one_mark_with_their_numbers(study, made, page, tmp_path: Path) -> None:
    runs = [
        made("cp", perplexity=80, seconds=10),
        made("cp #2", perplexity=84, seconds=12, setting="cp", repeat=1),
        made("lcp", perplexity=50, seconds=100),
    ]
    study(tmp_path, runs)
    chart = page(render(read_record(tmp_path))).id("cost").one("svg", "wide")
    assert "cp 82.00 after 11 s; lcp 50.00 after 1 min 40 s" in chart.attributes["aria-label"]
    texts = [e.text for e in chart.all("text")]
    assert "a repeat; marks are means" in texts
    assert (texts.count("cp"), texts.count("lcp")) == (1, 1)


def test_repeats_share_a_row(study, made, page, tmp_path: Path) -> None:
    runs = [
        made("cp"),
        made("cp #2", setting="cp", repeat=1),
        made("cp #3", setting="cp", repeat=2, error="RunFailed: x", windows=0),
    ]
    study(tmp_path, runs)
    *_, row = page(render(read_record(tmp_path))).one("table", "figures").all("tr")
    assert row.one("th").text == "2cp 1 of 3 failed"
    assert cells(row)[1:3] == ["2 of 3", "40.00 ± 0.00"]


def test_the_setup_is_in_words() -> None:
    environment = {
        "versions": {"torch": "2.13.0"},
        "plugins": {"permllm": "0.1.0", "permllm-report": "0.1.0"},
        "plugin_files": {},
        "command": ["permllm", "run", "a b.yaml"],
        "cuda_device": None,
        "threads": 2,
    }
    assert environment_rows(environment) == [
        ("plugins", "permllm 0.1.0, permllm-report 0.1.0"),
        ("command", "permllm run 'a b.yaml'"),
        ("threads", "2"),
    ]


def test_many_settings_are_numbered(study, made, page, tmp_path: Path) -> None:
    runs = [made(f"run {n}", perplexity=50 + n, seconds=1 + n, windows=0) for n in range(14)]
    study(tmp_path, runs)
    root = page(render(read_record(tmp_path)))
    texts = {e.text for e in root.id("cost").one("svg", "wide").all("text")}
    assert {str(number) for number in range(2, 16)} <= texts
    assert "the numbers are those of the table" in root.id("cost").text
    assert not any("open" in e.attributes for e in root.id("runs").all("details"))


def test_an_unfinished_study_shows_what_there_is(study, made, page, tmp_path: Path) -> None:
    runs = [
        made("none", order="same"),
        made("cp", result=False, windows=2),
        made("lcp", result=False, windows=0),
    ]
    study(tmp_path, runs, finished=False, failure=("cp", "KeyboardInterrupt"))
    root = page(render(read_record(tmp_path)))
    notes = [item.text for item in root.one("header").one("div", "note").all("li")]
    assert notes == ["cp: interrupted, 2 windows finished", "lcp: not begun"]
    labels = [row.one("th").text for row in root.one("table", "figures").all("tr")[1:]]
    assert labels == ["1dense", "2none"]
    assert len(root.id("run-2").one("table", "pairs").all("tr")) == 1
    maps = root.id("run-2").all("figure", "heat")
    assert [len(figure.one("tbody").all("tr")) for figure in maps] == [2, 2, 2]
    assert "No layer is pruned yet." in root.id("run-3").text


def test_a_folder_with_nothing_but_a_pipeline(page, tmp_path: Path) -> None:
    (tmp_path / "pipeline.yaml").write_text("permllm: 1\n")
    root = page(render(read_record(tmp_path)))
    assert root.one("p", "sentence").text == "Nothing has been measured yet."
    assert "permllm: 1" in root.id("setup").one("pre").text


def test_windows_that_were_deleted(study, page, tmp_path: Path) -> None:
    study(tmp_path)
    for path in tmp_path.glob("runs/*/windows/*"):
        path.unlink()
    root = page(render(read_record(tmp_path)))
    assert len(root.id("run-2").all("figure", "heat")) == 3
    assert "The windows are no longer in the folder" in root.id("run-2").text


def test_chosen_layers(study, page, tmp_path: Path) -> None:
    study(tmp_path)
    record = read_record(tmp_path)
    titles = [e.text for e in page(render(record, (1, 0))).id("run-2").all("h5")]
    assert titles == [
        f"Layer {layer}, {place}"
        for layer in (1, 0)
        for place in ("self_attn.q_proj, k_proj", "mlp.down_proj")
    ]
    with pytest.raises(UserError, match="no pruned decoder layer 4: they are 0 to 3"):
        render(record, (4,))


def test_the_file_appears_whole_or_not_at_all(study, tmp_path: Path) -> None:
    study(tmp_path / "run")
    record = read_record(tmp_path / "run")
    path = tmp_path / "new" / "page.html"
    write_page(record, path)
    before = path.read_text(encoding="utf-8")
    write_page(record, path)
    assert path.read_text(encoding="utf-8") == before
    with pytest.raises(UserError):
        write_page(record, path, (99,))
    assert [p.name for p in path.parent.iterdir()] == ["page.html"]
    assert path.read_text(encoding="utf-8") == before


def test_a_large_study_stays_small(study, made, tmp_path: Path) -> None:
    runs = [made(f"run {n}", perplexity=50 + n, steps=2000) for n in range(4)]
    results = study(tmp_path, runs, layers=3, channels=4096)
    record = read_record(tmp_path, results)
    # Forty runs from four: the same windows, events and reports under other labels.
    dense, *pruned = record.runs
    many = [
        attrs.evolve(run, result=attrs.evolve(run.result, label=f"{n}", setting=f"{n}"))
        for n, run in enumerate(pruned * 10)
    ]
    html = render(attrs.evolve(record, runs=(dense, *many)))
    assert html.count("<h5>") == 40 * 6
    assert len(html) < 3_500_000
