"""Real reports of Wukong and Kunlun, small; and the pictures of docs/report.md.

    python -m tests.report.pictures docs/img [report.json ...]

Where the JSON of reports is given, nothing is compiled: NAME.json is what is otherwise made as NAME.
"""

from __future__ import annotations

import functools
import json
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

import loka_compile as loka
from examples.models.wukong import Wukong
from loka_compile.report.api import document_of
from loka_compile.report.compare import compared
from loka_compile.report.page import as_json, html
from tests.report.browser import Page, browsing

FIELDS = (50, 60, 70, 80)


def wukong() -> tuple[torch.nn.Module, tuple[torch.Tensor, ...]]:
    torch.manual_seed(0)
    model = Wukong(FIELDS, 40, width=32, layers=2, tokens=8, k=8, hidden=(256,), head=(256,), dropout=0.0).eval()
    return model, (torch.randint(0, 50, (1024, 4)), torch.randint(0, 40, (1024, 6)))


def kunlun() -> tuple[torch.nn.Module, dict[str, torch.Tensor]]:
    from examples.kunlun import data, train
    from examples.kunlun.sizes import SIZES

    torch.manual_seed(0)
    found = data.load()
    batch = found.batch(found.test[:256], 32, pad_to=32)
    return train.kunlun(found, SIZES["tiny"]).eval(), batch.inputs


def compiled(make: Callable[[], Any], title: str) -> dict[str, Any]:
    model, inputs = make()
    args, kwargs = (inputs, {}) if isinstance(inputs, tuple) else ((), inputs)
    torch._dynamo.reset()
    with torch.no_grad():
        with loka.probe(model) as probe:
            model(*args, **kwargs)
        run = torch.compile(model, backend="loka", options={"profile": probe.profile})
        run(*args, **kwargs)
        return document_of(run, title)


@functools.cache
def for_an_h100() -> loka.Plan:
    model, inputs = wukong()
    with loka.probe(model) as probe, torch.no_grad():
        model(*inputs)
    return loka.dispatch(probe.profile, target="h100")


def previewed() -> dict[str, Any]:
    model, inputs = wukong()
    return document_of(loka.preview(model, inputs, "h100", sides=["inductor", "loka"], plan=for_an_h100()))


def drifting() -> dict[str, Any]:
    """A session that is planned, then sees other numbers, and demotes."""
    torch.manual_seed(0)
    torch._dynamo.reset()
    model = torch.nn.Sequential(torch.nn.Linear(64, 128), torch.nn.ReLU(), torch.nn.Linear(128, 128)).eval()
    options = {"target": "h100", "min_speedup": 0, "recipes": ("fp8_tensorwise",), "max_probe_overhead": 1.0}
    run = torch.compile(model, backend="loka", options=options)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for call in range(2200):
            x = torch.randn(64, 64)
            x[0, 0] *= 1.01 ** max(0, call - 500)
            run(x)
        return document_of(run, "a session that drifts")


MADE: Mapping[str, Callable[[], dict[str, Any]]] = {
    "wukong": lambda: compiled(wukong, "Wukong, small, on this CPU"),
    "kunlun": lambda: compiled(kunlun, "Kunlun, tiny, on this CPU"),
    "wukong_h100": lambda: document_of(for_an_h100(), "Wukong, small, planned for an H100"),
    "online": drifting,
    "wukong_preview": previewed,
}
GRAPH = "document.querySelector('.panel:nth-child({}) .unit[data-name=\"{}\"]')"


def views(reports: Mapping[str, dict[str, Any]]) -> Iterator[tuple[str, dict[str, Any], list[str]]]:
    """The name of a picture, the report, and the scripts that lead to its view."""
    for name in ("wukong", "kunlun"):
        report = reports[name]
        lowered = [site for site in report["sites"] if site["outcome"] == "lowered"] or report["sites"]
        most = max(lowered, key=lambda site: site["time_before_us"] or 0)["key"]
        yield f"{name}_verdict", report, []
        yield f"{name}_site", report, ["L.open('sites')", f"L.revealSite({most!r})"]
        yield f"{name}_graph", report, [f"L.openSite({most!r})"]
        done = [stage["name"] for stage in report["stages"] if stage["rewrites"] and stage["diff"]]
        last = f"document.querySelector('[data-pass={done[-1]}].did').click()" if done else ""
        yield f"{name}_passes", report, ["L.open('passes')", last]
    yield "wukong_compare", compared(reports["wukong"], reports["wukong_h100"]), []
    opened = "document.querySelectorAll('#view-preview summary')[1].click()"
    yield "wukong_preview", reports["wukong_preview"], [opened]
    yield "online", reports["online"], ["L.open('online')"]


def take(folder: Path, reports: Mapping[str, dict[str, Any]]) -> list[Path]:
    """One picture a view; raises where a page complains or asks for a network."""
    folder.mkdir(parents=True, exist_ok=True)
    taken = []
    with browsing() as browser, tempfile.TemporaryDirectory() as scratch:
        for name, report, scripts in views(reports):
            path = Path(scratch) / f"{name}.html"
            path.write_text(html(report))
            opened = Page(browser, path)
            for script in filter(None, scripts):
                opened.page.evaluate(script)
            opened.page.wait_for_timeout(200)
            taken.append(folder / f"report_{name}.png")
            opened.page.screenshot(path=taken[-1])
            assert opened.complaints == [] and opened.outside() == [], (name, opened.complaints, opened.outside())
            opened.page.close()
    return taken


def main(folder: str, *given: str) -> None:
    known = {Path(path).stem: json.loads(Path(path).read_text()) for path in given}
    reports = {}
    for name, make in MADE.items():
        reports[name] = known[name] if name in known else make()
        if name not in known:
            Path(tempfile.gettempdir(), f"{name}.json").write_text(as_json(reports[name]))
    print("written:", *take(Path(folder), reports))


if __name__ == "__main__":
    main(*sys.argv[1:])
