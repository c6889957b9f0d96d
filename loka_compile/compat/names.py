"""The private names of PyTorch that loka reads on objects, by owner: what no import statement shows.

`missing()` says which of them the torch that runs lacks, and `tests/compat/test_names.py` holds that none is and that
the table is whole. Names that moved from one version to another stand in moved.py. Seen with torch 2.11 to 2.14.
"""

from __future__ import annotations

import functools
import importlib
import inspect
import re
from pathlib import Path
from typing import Any

NAMES: dict[str, str] = {
    # compiling when it is called, and sizes that are symbols
    "torch._guards:TracingContext": "try_get fw_metadata output_strides tensor_to_context",
    "torch._functorch._aot_autograd.schemas:ViewAndMutationMeta": "static_input_indices",
    "torch._dynamo.source:TensorProperty": "SIZE STRIDE STORAGE_OFFSET",
    "torch._subclasses.fake_tensor:FakeTensor": "fake_mode item_memo",
    "torch._subclasses.fake_tensor:FakeTensorMode": "shape_env allow_non_fake_inputs",
    "torch._subclasses.fake_tensor:FakeTensorMode.from_tensor": "static_shapes source symbolic_context",
    "torch.fx.experimental.sym_node:SymNode": "expr hint shape_env",
    "torch.fx.experimental.symbolic_shapes:DimDynamic": "DYNAMIC STATIC DUCK INFER_STRIDE",
    "torch.fx.experimental.symbolic_shapes:StatelessSymbolicContext": "dynamic_sizes",
    "torch.fx.experimental.symbolic_shapes:StatefulSymbolicContext": (
        "dynamic_sizes dynamic_strides constraint_sizes constraint_strides tensor_source "
        "shape_env_to_source_to_symbol_cache"
    ),
    "torch.fx.experimental.symbolic_shapes:ShapeEnv": (
        "allow_scalar_outputs allow_dynamic_output_shape_ops var_to_range backed_var_to_val create_symbol "
        "create_symintnode create_unbacked_symint create_unbacked_symfloat evaluate_expr "
        "ignore_fresh_unbacked_symbols produce_guards"
    ),
    "torch.fx.experimental.symbolic_shapes:ShapeEnv.create_symbol": "positive do_not_specialize_zero_one",
    "torch.fx.experimental.symbolic_shapes:ShapeEnv.create_symintnode": "hint source",
    "torch.fx.experimental.symbolic_shapes:ShapeEnv.produce_guards_verbose": "source_ref",
    # products of bytes; tensors, their memory, and what autograd saves of them
    "torch": "_int_mm _scaled_mm",
    "torch:Tensor": "_version _base _is_zerotensor",
    "torch:UntypedStorage": "_cdata",
    "torch._C:_autograd": (
        "_top_saved_tensors_default_hooks _push_saved_tensors_default_hooks _pop_saved_tensors_default_hooks"
    ),
    "torch.fx:Graph": "_codegen",
    "torch._higher_order_ops.effects": "has_effects",
    "torch.utils.checkpoint:_checkpoint_hook": "frame",
    "torch.utils.checkpoint:_recomputation_hook": "target_frame_ref",
    # Dynamo: what it leaves on its graphs, and what torch.compile returns
    "torch._dynamo.output_graph": "_dynamo_source _param_name_to_source compile_subgraph_reason",
    "torch._dynamo.output_graph:GraphCompileReason": "reason user_stack graph_break",
    "torch._guards:Source": "guard_source name",
    "torch._guards:GuardSource": "is_specialized_nn_module is_unspecialized_nn_module",
    "torch._dynamo:OptimizedModule": "_orig_mod dynamo_ctx",
    "torch._dynamo.convert_frame": "_torchdynamo_orig_backend compile_lock",
    "torch._dynamo.eval_frame": "_torchdynamo_orig_callable callback",
    "torch:_TorchCompileWrapper": "kwargs",
    "torch.nn:Module": "_call_impl _compiled_call_impl _parameters _buffers",
    "torch._dynamo.utils": "_metrics_context_tls get_metrics_context counters",
    "torch._dynamo.metrics_context:MetricsContext": "on_exit",
    "torch._dynamo.symbolic_convert:TensorifyState": "specialize",
    "torch._dynamo.compiled_autograd": "compiled_autograd_enabled",
    "torch._dynamo.config": "compiled_autograd recompile_limit verbose",
    "torch._dynamo.exc:ShortenTraceback": "first_useful_frame",
    "torch._dynamo.output_graph:OutputGraph": "root_tx",
    "torch._dynamo.symbolic_convert": "tls current_tx",
    "torch._dynamo.symbolic_convert:InstructionTranslatorBase": "f_code f_locals output",
    "torch._C:_functorch": "_remove_batch_dim _unwrap_for_grad",
    "torch._C": "_set_grad_enabled _functorch DispatchKey",
    # AOTAutograd and Inductor
    "torch._functorch.config": (
        "bundled_autograd_cache force_autograd_cache enable_autograd_cache force_non_lazy_backward_lowering"
    ),
    "torch._inductor.config": (
        "joint_custom_pre_pass post_grad_custom_pre_pass force_disable_caches get_config_copy fallback_random"
    ),
    "torch._inductor.config:cpp": "vec_isa_ok",
    "torch._inductor.compile_fx:compile_fx": "inner_compile config_patches",
    "torch._inductor.output_code:CompiledFxGraph": "post_compile source_code",
    "torch._inductor.inductor_prims": "seeds random randint",
    "torch._inductor.codegen.cpp:CppScheduling": "try_loop_split",
    "torch._inductor.scheduler:SchedulerNode": "_body _sizes group read_writes unmet_dependencies",
    "torch._inductor.codegen.cpp:CppVecOverrides": "rand",
    "torch._inductor.codegen.cpp:CppVecKernel": (
        "vec_isa tiling_factor tiling_idx tail_size itervars _get_num_vectors _get_mask_cast _get_mask_type "
        "_get_store_line _get_vec_load_line _try_get_const_stride"
    ),
    "torch._inductor.codegen.cpp:CppVecKernel._get_store_line": "value var index dtype accu_store",
    "torch._inductor.codegen.cpp:CppVecKernel._get_vec_load_line": "var index dtype load_mask",
    "torch._inductor.async_compile:AsyncCompile": "cpp_pybinding wait submit",
    "torch._inductor.codecache:CppPythonBindingsCodeCache": (
        "suffix_template entry_function load_async load_pybinding cpp_compile_command_flags _load_library"
    ),
    "torch._inductor.codecache:CppPythonBindingsCodeCache.load_async": "submit_fn",
    # FSDP2, custom operators, launch grids of Inductor's kernels
    "torch.distributed.fsdp:FSDPModule": "_get_fsdp_state",
    "torch.distributed.fsdp._fully_shard._fsdp_param:FSDPParam": "_unsharded_param",
    "torch.distributed.fsdp._fully_shard._fsdp_param_group:FSDPParamGroup": "fsdp_params",
    "torch._ops:OpOverload": "_schema",
    "torch._library.custom_ops:CustomOpDef": "_backend_fns _init_fn",
    "torch._inductor.runtime.triton_heuristics:GridExpr": "from_meta eval_slow",
}
"""`module` or `module:Class` or `module:Class.method` -> attributes, or arguments of the method."""

HEADERS: dict[str, str] = {
    "torch/csrc/inductor/cpp_prefix.h": "uint32_to_uniform_float normalized_rand_cpu",
}
"""A header in torch's include folder -> names in it that C++ code of ours calls."""


def missing() -> list[str]:
    """The names above that this torch lacks: where it fails, and with a name."""
    found = []
    for owner, names in NAMES.items():
        try:
            holder = _holder(owner)
        except (ImportError, AttributeError) as error:
            found.append(f"{owner} ({error})")
            continue
        found += [f"{owner}.{name}" for name in names.split() if not _has(holder, name)]
    for header, names in HEADERS.items():
        code = (_include() / header).read_text(encoding="utf-8")
        found += [f"{header}: {name}" for name in names.split() if not re.search(rf"\b{name}\b", code)]
    return found


def _holder(owner: str) -> Any:
    module, _, path = owner.partition(":")
    return functools.reduce(getattr, filter(None, path.split(".")), importlib.import_module(module))


def _has(holder: Any, name: str) -> bool:
    """As an attribute, an argument, or what its code sets or takes: many are set when an object is made."""
    if hasattr(holder, name) or name in getattr(holder, "__annotations__", {}):
        return True
    if callable(holder) and not isinstance(holder, type):
        return name in inspect.signature(holder).parameters
    kinds = [kind for kind in holder.__mro__ if kind is not object] if isinstance(holder, type) else [holder]
    return any(re.search(rf"\b{name}\b", _source(kind)) for kind in kinds)


@functools.cache
def _source(holder: Any) -> str:
    try:
        return inspect.getsource(holder)
    except (OSError, TypeError):  # written in C++
        return ""


def _include() -> Path:
    import torch

    return Path(torch.__file__).parent / "include"
