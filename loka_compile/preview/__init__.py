"""loka.preview: what a GPU would run, found out on a machine without one. See docs/preview.md.

    api.py            preview(model, inputs): asks workers, gathers what they say
    worker.py         a fresh process: one GPU that is not there, one model, one side after the other
    shim.py           teaches libtorch, before it is imported, that there is a CUDA device
    absent_gpu.py     one context in which torch, triton and Inductor believe so too
    torch_patches.py  every private name that this replaces, in one table; torch_calls.py: those it only calls
    record.py         the launches, in order
    model.py          what they would take: a roofline
    report.py         tables; timeline.py: pictures
    calibration.py    on a real GPU: measured beside modelled

This module imports nothing: the worker starts with it, before torch.
"""
