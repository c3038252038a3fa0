"""The README's picture."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import matplotlib.image
import numpy as np
import pytest

from rlforget.errors import MissingExtraError, OutputError, ReportError
from rlforget.report import save_picture
from tests.report.made_results import made_results


def test_png_is_wide_and_on_white(results: dict[str, Any], tmp_path: Path) -> None:
    save_picture(results, tmp_path / "picture.png")
    pixels = matplotlib.image.imread(tmp_path / "picture.png")
    height, width = pixels.shape[:2]
    assert width >= 1800
    assert width / height == pytest.approx(2.2, abs=0.01)
    edge = np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]])
    assert (edge == 1.0).all()  # white, opaque, and nothing cut off


def test_svg_is_xml_and_the_same_every_time(results: dict[str, Any], tmp_path: Path) -> None:
    for name in ("one.svg", "two.SVG"):
        save_picture(results, tmp_path / name)
    assert (tmp_path / "one.svg").read_bytes() == (tmp_path / "two.SVG").read_bytes()
    root = ElementTree.parse(tmp_path / "one.svg").getroot()
    width, height = (float(root.attrib[key].removesuffix("pt")) for key in ("width", "height"))
    assert width / height == pytest.approx(2.2, abs=0.01)


def test_names_are_drawn_as_they_are(tmp_path: Path) -> None:
    text = json.dumps(made_results(seeds=1)).replace('"qa"', r'"_$\\frac{<b>\u0000\ud800"')
    save_picture(json.loads(text), tmp_path / "picture.svg")
    ElementTree.parse(tmp_path / "picture.svg")


@pytest.mark.parametrize("part", ["stages", "repairs"])
def test_a_picture_needs_rewards_and_repairs(results: dict[str, Any], tmp_path: Path, part: str) -> None:
    for run in results["runs"]:
        del run[part]
    with pytest.raises(ReportError, match=r"no (rewards|repairs)"):
        save_picture(results, tmp_path / "picture.svg")


def test_repairs_without_a_number_are_drawn_as_a_dash(results: dict[str, Any], tmp_path: Path) -> None:
    for run in results["runs"]:
        for repair in run["repairs"]:
            repair["kept"] = None
    save_picture(results, tmp_path / "picture.svg")
    assert "–" in (tmp_path / "picture.svg").read_text(encoding="utf-8")


def test_faults_leave_no_file(results: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("picture.jpg", "picture"):
        with pytest.raises(OutputError, match=r"\.svg or \.png"):
            save_picture(results, tmp_path / name)
    with pytest.raises(ReportError):
        save_picture({"format": "other"}, tmp_path / "picture.svg")
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(MissingExtraError, match=r"rlforget\[report\]"):
        save_picture(results, tmp_path / "picture.svg")
    assert not list(tmp_path.iterdir())


def test_a_picture_is_not_overwritten_without_force(results: dict[str, Any], tmp_path: Path) -> None:
    path = tmp_path / "picture.svg"
    path.write_text("precious")
    with pytest.raises(OutputError):
        save_picture(results, path)
    assert path.read_text() == "precious"
    save_picture(results, path, force=True)
    assert path.read_text() != "precious"
