"""The report is one self-contained file with the figures of its version."""

import re
from html.parser import HTMLParser

import pytest

from tests.support.paths import ROOT
from training.bundling import dump, make_bundle
from training.candidates import SIGNATURE
from training.fitting import Fitted, fit
from training.generator import generate
from training.reports.page import render
from transformer.bundle.format import Bundle


@pytest.fixture(scope="module")
def fitted() -> Fitted:
    return fit(generate(200), "logistic-regression")


@pytest.fixture(scope="module")
def bundle(fitted: Fitted) -> Bundle:
    return make_bundle(fitted, "placement", "v7", dump(fitted.model))


@pytest.fixture(scope="module")
def html(bundle: Bundle, fitted: Fitted) -> str:
    return render(bundle, fitted)


class _Outline(HTMLParser):
    VOID = ("meta",)

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: list[tuple[str, dict]] = []

    def handle_starttag(self, tag, attributes):
        self.seen.append((tag, dict(attributes)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.seen.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


@pytest.fixture(scope="module")
def outline(html: str) -> _Outline:
    parser = _Outline()
    parser.feed(html)
    return parser


def test_every_tag_is_closed(outline):
    assert outline.open == []


def test_the_report_loads_nothing_and_runs_no_script(html, outline):
    tags = {tag for tag, _ in outline.seen}
    assert not tags & {"script", "link", "img", "iframe", "object", "image"}
    assert not re.search(r"@import|url\((?!#)| src=| on\w+=", html)
    links = [value for _, attributes in outline.seen for name, value in attributes.items() if "href" in name]
    assert all(link.startswith("#") for link in links)


def test_every_chart_has_a_text_alternative(outline):
    charts = [attributes for tag, attributes in outline.seen if tag == "svg"]
    assert len(charts) >= 6 + len(SIGNATURE.fields)
    assert all(chart["role"] == "img" and len(chart["aria-label"]) > 10 for chart in charts)


def test_charts_have_distinct_ids_and_refer_to_their_own(html, outline):
    ids = [attributes["id"] for _, attributes in outline.seen if "id" in attributes]
    assert len(set(ids)) == len(ids)
    assert set(re.findall(r'(?:href="#|url\(#)([^")]+)', html)) <= set(ids)


def test_charts_use_the_colours_of_the_page(html):
    assert "prefers-color-scheme: dark" in html
    assert "a1b2c" not in html
    assert "stroke: var(--accent)" in html


def test_the_report_has_the_version_and_its_figures(html, bundle):
    for text in (
        "<title>placement v7: model report</title>",
        f"{bundle.metrics['accuracy']:.1%}",
        f"{bundle.metrics['roc_auc']:.3f}",
        bundle.model.sha256,
        "These candidates are generated",
    ):
        assert text in html


def test_text_from_outside_is_escaped(bundle, fitted):
    evil = bundle.training_data.model_copy(update={"source": "<script>alert(1)</script>.csv"})
    html = render(bundle.model_copy(update={"training_data": evil}), fitted)
    assert "<script>" not in html
    assert "&lt;script&gt;" in html


def test_training_does_not_use_pyplot():
    root = ROOT / "training"
    assert not [path.name for path in root.glob("*.py") if "import matplotlib.pyplot" in path.read_text()]
