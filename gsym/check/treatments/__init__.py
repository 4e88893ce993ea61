"""What training scripts, servers and compilers do to modules, one function each."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from gsym.check.subject import Comparison, Subject
from gsym.check.treatments import compiling, deriving, listening, moving, parallel, training

Treatment = Callable[[Subject], Iterator[Comparison]]

TREATMENTS: dict[str, Treatment] = {
    "gradients": training.gradient,
    "EMA": training.ema,
    "SWA": training.swa,
    "state arithmetic": training.state_arithmetic,
    "torch.save": training.saved,
    "activation checkpointing": training.activation_checkpoint,
    "inference mode": training.inference,
    "autocast": training.autocast,
    "float16": training.half,
    "bfloat16": training.bfloat16,
    "deepcopy": moving.deep_copy,
    "pickle": moving.pickled,
    "graph rewritten": moving.graph_rewritten,
    "threads": moving.threads,
    "to_empty": moving.to_empty,
    "meta device": moving.meta,
    "default device": moving.default_device,
    "Module.type": moving.cast_in_place,
    "share_memory": moving.shared_memory,
    "swap_tensors": moving.swapped,
    "pruning": listening.pruned,
    "parametrisation": listening.parametrised,
    "spectral_norm": listening.spectral,
    "spectral_norm by hook": listening.spectral_by_hook,
    "weight_norm": listening.weight_normed,
    "weight_norm by hook": listening.weight_normed_by_hook,
    "adapters": listening.adapters,
    "hooks": listening.hooks,
    "changing hooks": listening.changing_hooks,
    "backward hooks": listening.backward_hooks,
    "DataParallel": parallel.replica,
    "DDP": parallel.distributed,
    "FSDP2": parallel.fully_sharded,
    "functional_call": deriving.functional,
    "per-sample gradients": deriving.per_sample,
    "vmap": deriving.vmapped,
    "forward mode": deriving.forward_mode,
    "jacrev and jacfwd": deriving.jacobians,
    "hessian": deriving.second_derivatives,
    "batched gradients": deriving.batched_gradients,
    "compile (eager)": compiling.compiled_eager,
    "compile": compiling.compiled,
    "export": compiling.exported,
    "export (graph constant)": compiling.exported_constant,
    "ONNX": compiling.onnx,
    "compile (inductor)": compiling.inductor,
    "AOTInductor": compiling.ahead_of_time,
}

# These call a C++ compiler, which takes half a minute a layer.
SLOW = {"compile (inductor)", "AOTInductor"}
