"""The report: one compilation as one HTML file that a person opens, keeps and attaches. Needs the extra `[report]`.

    document.py    what a report holds, as plain data (schema.json)
    sites.py, verdict.py, graphs.py, kernels.py, stages.py, previews.py
                   its parts
    files.py       the same from files: a plan, a profile, a preview, a report
    compare.py     two of them, side by side
    page.py        the data, the scripts and the styles of view/ as one HTML file
    model_explorer.py, chrome_trace.py
                   the same data for the tools people have

Nothing imports this but the command line and the public API.
"""
