"""The page's colours, as people see them who lack a cone, and its texts against what is behind them."""

from __future__ import annotations

import math
import re
from importlib import resources
from itertools import combinations

import pytest

VIEW = resources.files("loka_compile.report") / "view"
# Machado, Oliveira, Fernandes 2009, severity 1: linear RGB to linear RGB.
SEEN_BY = {
    "all cones": ((1, 0, 0), (0, 1, 0), (0, 0, 1)),
    "no red": ((0.152286, 1.052583, -0.204868), (0.114503, 0.786281, 0.099216), (-0.003882, -0.048116, 1.051998)),
    "no green": ((0.367322, 0.860646, -0.227968), (0.280085, 0.672501, 0.047413), (-0.011820, 0.042940, 0.968881)),
    "no blue": ((1.255528, -0.076749, -0.178779), (-0.078411, 0.930809, 0.147602), (0.004733, 0.691367, 0.303900)),
}
XYZ = ((0.4124, 0.3576, 0.1805), (0.2126, 0.7152, 0.0722), (0.0193, 0.1192, 0.9505))


def times(matrix, vector):
    return [sum(a * b for a, b in zip(row, vector, strict=True)) for row in matrix]


def linear(colour):
    values = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    return [v / 12.92 if v <= 0.04045 else ((v + 0.055) / 1.055) ** 2.4 for v in values]


def lab(colour, cones):
    x, y, z = times(XYZ, [min(1, max(0, v)) for v in times(cones, linear(colour))])
    x, y, z = (t ** (1 / 3) if t > 0.008856 else 7.787 * t + 16 / 116 for t in (x / 0.9505, y, z / 1.089))
    return 116 * y - 16, 500 * (x - y), 200 * (y - z)


def contrast(a, b):
    """WCAG's, 1 to 21."""
    low, high = sorted(times(XYZ, linear(each))[1] for each in (a, b))
    return (high + 0.05) / (low + 0.05)


def palette():
    code = (VIEW / "format.js").read_text(encoding="utf-8")
    lists = re.search(r"L\.colours = \[(.*?)\]", code)[1] + re.search(r"L\.grey = (.*?);", code)[1]
    return re.findall(r"#[0-9a-f]{6}", lists)


def themes():
    blocks = re.findall(r":root(?:\[data-theme=\"dark\"\])? \{(.*?)\}", (VIEW / "base.css").read_text(), re.S)
    return [dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6})", block)) for block in blocks]


@pytest.mark.parametrize("cones", SEEN_BY)
def test_two_colours_of_the_palette_look_unlike(cones):
    seen = {colour: lab(colour, SEEN_BY[cones]) for colour in palette()}
    assert len(seen) == 9
    for a, b in combinations(seen, 2):
        assert math.dist(seen[a], seen[b]) > 15, (a, b)


def test_lines_stand_out_from_their_ground():
    for theme in themes():
        assert min(contrast(colour, theme["bg"]) for colour in palette()) > 1.9


def test_text_can_be_read_on_all_that_is_behind_it():
    light, dark = themes()
    for theme in (light, {**light, **dark}):
        for text in ("text", "soft", "accent", "good", "bad", "warn"):
            for ground in ("bg", "panel", "hover", "select", "add", "del"):
                assert contrast(theme[text], theme[ground]) >= 4.5, (text, ground)
