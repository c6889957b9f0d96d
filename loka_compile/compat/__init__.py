"""Every private PyTorch API that loka uses, behind names of our own. Seen working with torch 2.13.0.

    inductor.py   compiling with Inductor, or with AOTAutograd alone, with our passes in it
    few_files.py, faster_draws.py, faster_masks.py
                  the C++ that Inductor generates: compiled together, and its scalar loops as vectors
    ahead.py      what aot_compile returns
    moved.py      what is spelled otherwise from version to version
    instead.py    an attribute of PyTorch's replaced for a while
    tracing.py    the compilation in progress, and Dynamo's graph
    root.py       the object whose method is compiled
    traces.py     torch's structured trace, which tlparse shows
    recording.py  the ATen operators that torch functions call
    draws.py      random numbers as generated code draws them
    fakes.py      fake tensors and symbolic sizes
    memory.py     weak references that let a tensor be swapped
    anew.py       compiling a Dynamo graph when it is called
    before_writes.py   what the backward needs of inputs that the forward writes
    compiled.py   what torch.compile returned
    errors.py     errors that leave a compilation as they were raised
    sharded.py    parameters under FSDP2
    starting.py   Inductor's own start, ahead of time

Nothing else in the project imports from `torch._inductor`, `torch._dynamo`, `torch._functorch`, `torch._guards` or
`torch._subclasses` (tests/test_layers.py holds this), so a new torch version breaks here or nowhere. Heavy modules
are imported inside the functions: importing this package costs nothing.
"""

from loka_compile.compat.anew import Anew, Holds, compiling_anew, unknown_sizes
from loka_compile.compat.before_writes import save_from_before
from loka_compile.compat.compiled import (
    backend_name,
    compile_apart,
    compile_calls,
    is_compiled,
    original_of,
    user_options,
)
from loka_compile.compat.draws import cuda_devices, draw_like_inductor
from loka_compile.compat.errors import raise_plainly
from loka_compile.compat.fakes import (
    UNKNOWN,
    concrete,
    fake_mode_of,
    guard_free,
    guard_sizes,
    has_fresh_symbols,
    has_value,
    hides_its_memory,
    hint_of,
    in_one_mode,
    is_fake,
    running_fakes,
    stands_for_others,
    tracing_fakes,
)
from loka_compile.compat.few_files import compiling_side_by_side
from loka_compile.compat.inductor import (
    capture,
    compile_inductor,
    compile_together,
    decomposition_table,
    faster_norms,
    graph_pass,
    inductor_config_keys,
    mode_patches,
)
from loka_compile.compat.memory import Memory, is_memory_of, memory_of
from loka_compile.compat.moved import cpu_int_mm_takes_uint8, cpu_scaled_mm_takes_rows, say_if_untested, tag_of_out
from loka_compile.compat.recording import AtenCall, Region, inside, recording, region_here
from loka_compile.compat.root import name_root
from loka_compile.compat.sharded import parameters_at_calls
from loka_compile.compat.starting import compiler_started, start_compiler
from loka_compile.compat.traces import is_tracing, trace_artifact
from loka_compile.compat.tracing import (
    calls_graphs,
    checkpoint_region,
    copy_dynamo_graph,
    copy_graph,
    forward_only,
    gradients_of_outputs,
    graph_break_after,
    has_effect,
    inside_compilation,
    is_ahead_of_time,
    is_compiled_autograd,
    is_compiling_frame,
    is_parameter_or_buffer,
    is_whole,
    leaves_functorch,
    name_of_parameter,
    outside_compilation,
    saved_tensors_are_hooked,
    specialize,
    static_inputs,
    switches_functorch,
)

__all__ = [
    "UNKNOWN",
    "Anew",
    "AtenCall",
    "Holds",
    "Memory",
    "Region",
    "backend_name",
    "calls_graphs",
    "capture",
    "checkpoint_region",
    "compile_apart",
    "compile_calls",
    "compile_inductor",
    "compile_together",
    "compiler_started",
    "compiling_anew",
    "compiling_side_by_side",
    "concrete",
    "copy_dynamo_graph",
    "copy_graph",
    "cpu_int_mm_takes_uint8",
    "cpu_scaled_mm_takes_rows",
    "cuda_devices",
    "decomposition_table",
    "draw_like_inductor",
    "fake_mode_of",
    "faster_norms",
    "forward_only",
    "gradients_of_outputs",
    "graph_break_after",
    "graph_pass",
    "guard_free",
    "guard_sizes",
    "has_effect",
    "has_fresh_symbols",
    "has_value",
    "hides_its_memory",
    "hint_of",
    "in_one_mode",
    "inductor_config_keys",
    "inside",
    "inside_compilation",
    "is_ahead_of_time",
    "is_compiled",
    "is_compiled_autograd",
    "is_compiling_frame",
    "is_fake",
    "is_memory_of",
    "is_parameter_or_buffer",
    "is_tracing",
    "is_whole",
    "leaves_functorch",
    "memory_of",
    "mode_patches",
    "name_of_parameter",
    "name_root",
    "original_of",
    "outside_compilation",
    "parameters_at_calls",
    "raise_plainly",
    "recording",
    "region_here",
    "running_fakes",
    "save_from_before",
    "saved_tensors_are_hooked",
    "say_if_untested",
    "specialize",
    "stands_for_others",
    "start_compiler",
    "static_inputs",
    "switches_functorch",
    "tag_of_out",
    "trace_artifact",
    "tracing_fakes",
    "unknown_sizes",
    "user_options",
]
