"""A stream's features say nothing of what is to come."""

from __future__ import annotations

import torch

from examples.lattice.zipper import problems

ROWS = 80


def criteo(path, later: int):
    """A click a day, every other converts after ten days; integers grow, and from half of the log on by `later`."""
    lines = []
    for row in range(ROWS):
        clicked = 86_400 * row
        integers = [row % 7 + (later if row >= ROWS // 2 else 0)] * 8
        converted = clicked + 864_000 if row % 2 else ""
        lines.append("\t".join(map(str, (clicked, converted, *integers, *"abcdefghi"))))
    path.write_text("\n".join(lines))
    return path


def test_criteos_integers_are_scaled_by_what_lies_before_the_stream(tmp_path):
    small, large = (problems.criteo_log(criteo(tmp_path / f"{later}.txt", later)) for later in (0, 50_000))
    assert small.start == 24
    assert torch.equal(small.ids[: ROWS // 2], large.ids[: ROWS // 2])  # whatever comes later
    first = torch.log1p(torch.arange(24) % 7)
    deviation, mean = torch.std_mean(first)
    expected = (((torch.log1p(torch.arange(ROWS) % 7) - mean) / deviation).clamp(-3, 3) * 4 + 13).long()
    assert torch.equal(small.ids[:, -8:], expected[:, None].expand(-1, 8))
    assert large.ids[ROWS // 2 :, -1].unique().tolist() == [25]  # the last bucket
