"A second device, in imitation: it computes on the processor but, like a GPU, takes no tensor from there, unless to copy it or as an index."
import torch
from torch import library
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

_setup_privateuseone_for_python_backend("elsewhere")
there = torch.device("elsewhere:0")
guests = {"aten::to", "aten::_to_copy", "aten::copy_", "aten::index", "aten::index_put_"}


class Elsewhere(torch.Tensor):
    "A tensor that is elsewhere."
    @staticmethod
    def __new__(cls, inner):
        with torch.inference_mode(False):
            made = torch.Tensor._make_wrapper_subclass(cls, inner.shape, strides=inner.stride(), storage_offset=inner.storage_offset(), dtype=inner.dtype, device=there)
        made.inner = inner
        return made

    @classmethod
    def __torch_dispatch__(cls, op, types, args=(), kwargs=None): return compute(op, *args, **(kwargs or {}))
    __torch_function__ = torch._C._disabled_torch_function_impl


def inside(x): return x.inner if type(x) is Elsewhere else torch.device("cpu") if x == there else x
def outside(x): return Elsewhere(x) if isinstance(x, torch.Tensor) and type(x) is not Elsewhere else x


def compute(op, *args, **kwargs):
    "What the processor makes of it, elsewhere again."
    strangers = [x for x in tree_leaves((args, kwargs)) if isinstance(x, torch.Tensor) and type(x) is not Elsewhere and x.ndim]
    if strangers and op._schema.name not in guests: raise RuntimeError(f"{op}: a tensor on the processor meets one that is elsewhere")
    found = op(*tree_map(inside, args), **tree_map(inside, kwargs))
    asked = [x for x in (*args, *kwargs.values()) if isinstance(x, torch.device)]
    if asked and asked[0] != there: return found
    written = [x for x, about in zip(args, op._schema.arguments) if about.alias_info is not None and about.alias_info.is_write]
    return written[0] if written else tree_map(outside, found)


every_operation = library.Library("_", "IMPL")
every_operation.fallback(compute, dispatch_key="PrivateUse1")


class Lists(TorchFunctionMode):
    "Tensors made of lists are made on the processor and carried over, which PyTorch does in C++ for devices it knows."
    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        if function in (torch.tensor, torch.as_tensor) and kwargs.get("device") == there: return function(*args, **kwargs | dict(device=None)).to(there)
        if function is torch.Tensor.__getitem__ and isinstance(args[1], tuple): args = args[0], tuple(torch.tensor(i) if isinstance(i, list) else i for i in args[1])
        return function(*args, **kwargs)


def carry(model):
    "Move a model's parameters and buffers elsewhere; what was shared stays shared."
    moved = {}
    def move(x):
        if id(x) not in moved: moved[id(x)] = torch.nn.Parameter(Elsewhere(x.data), requires_grad=False) if isinstance(x, torch.nn.Parameter) else Elsewhere(x)
        return moved[id(x)]
    for module in model.modules():
        for store in (module._parameters, module._buffers): store.update({name: move(x) for name, x in store.items() if x is not None})
