"""The state of an optimizer as tensors and plain JSON values, without pickle.

A tensor of a parameter is stored under `INDEX.NAME` and a plain value in `optimizer` under the same key, as since the
first version. Lists and mappings of tensors, tensors in parameter groups, tuples and data types are stored as JSON with
markers: `{"$tensor": KEY}`, `{"$tuple": [...]}`, `{"$dtype": NAME}` and `{"$items": [[KEY, VALUE], ...]}`.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor, distribute_tensor

NESTED_PREFIX = "nested."
"""Prefix of the keys of tensors that are not a parameter's own entry."""


def pack_optimizer_state(optimizer: Any) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return the tensors and the plain values of an optimizer's state.

    Raises:
        TypeError: the state holds a value that is neither a tensor nor plain.
    """
    state = optimizer.state_dict()
    tensors: dict[str, Tensor] = {}
    values: dict[str, Any] = {}
    for index, entries in state["state"].items():
        for name, value in entries.items():
            key = f"{index}.{name}"
            if isinstance(value, Tensor):
                tensors[key] = value
            else:
                values[key] = _pack(value, NESTED_PREFIX + key, tensors)
    groups = _pack(state["param_groups"], f"{NESTED_PREFIX}groups", tensors)
    rest = {name: value for name, value in state.items() if name not in ("state", "param_groups")}
    return tensors, {"optimizer": values, "groups": groups, "rest": _pack(rest, f"{NESTED_PREFIX}rest", tensors)}


def unpack_optimizer_state(tensors: dict[str, Tensor], plain: dict[str, Any], optimizer: Any) -> None:
    """Restore what `pack_optimizer_state` returned, also by an earlier version. Other entries are ignored."""
    values = {key: _unpack(value, tensors) for key, value in plain["optimizer"].items()}
    state: dict[int, dict[str, Any]] = {}
    for key, value in {**tensors, **values}.items():
        index, _, name = key.partition(".")
        if index.isdigit():
            state.setdefault(int(index), {})[name] = value
    for index, weight in enumerate(weight for group in optimizer.param_groups for weight in group["params"]):
        for name, value in state.get(index, {}).items():
            if isinstance(weight, DTensor) and isinstance(value, Tensor) and value.shape == weight.shape:
                part = distribute_tensor(value.to(weight.device), weight.device_mesh, weight.placements)
                state[index][name] = part
    groups, rest = _unpack(plain["groups"], tensors), _unpack(plain.get("rest", {}), tensors)
    optimizer.load_state_dict({"state": state, "param_groups": groups, **rest})


def _pack(value: Any, key: str, tensors: dict[str, Tensor]) -> Any:
    if isinstance(value, Tensor):
        tensors[key] = value
        return {"$tensor": key}
    if isinstance(value, torch.dtype):
        return {"$dtype": str(value).removeprefix("torch.")}
    if isinstance(value, list | tuple):
        parts = [_pack(part, f"{key}.{number}", tensors) for number, part in enumerate(value)]
        return {"$tuple": parts} if isinstance(value, tuple) else parts
    if isinstance(value, dict):
        items = [(name, _pack(part, f"{key}.{name}", tensors)) for name, part in value.items()]
        plain = all(isinstance(name, str) and not name.startswith("$") for name in value)
        return dict(items) if plain else {"$items": [list(item) for item in items]}
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise TypeError(f"its state holds a value of the type {type(value).__name__}")


def _unpack(value: Any, tensors: dict[str, Tensor]) -> Any:
    if isinstance(value, list):
        return [_unpack(part, tensors) for part in value]
    if not isinstance(value, dict):
        return value
    if "$tensor" in value:
        return tensors[value["$tensor"]]
    if "$tuple" in value:
        return tuple(_unpack(part, tensors) for part in value["$tuple"])
    if "$dtype" in value:
        return _to_dtype(value["$dtype"])
    items = value["$items"] if "$items" in value else value.items()
    return {name: _unpack(part, tensors) for name, part in items}


def _to_dtype(name: str) -> torch.dtype:
    dtype = getattr(torch, name, None)
    if not isinstance(dtype, torch.dtype):
        raise ValueError(f"'{name}' is not a data type")
    return dtype
