"""Vector types as Numba sees them, and `operation`, which makes a vocabulary word from a few lines of LLVM IR."""

from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba import types
from numba.core.datamodel.models import PrimitiveModel
from numba.extending import intrinsic, register_model

I8, I16, I32, I64 = (ir.IntType(bits) for bits in (8, 16, 32, 64))
F16, F32 = ir.HalfType(), ir.FloatType()

V8 = ir.VectorType(I8, 64)
V16 = ir.VectorType(I16, 32)
V32 = ir.VectorType(I32, 16)
VF = ir.VectorType(F32, 16)


class Vector(types.Type):
    """A Numba type that is one LLVM vector, or several (rows.py)."""

    def __init__(self, name: str, lowered: Any) -> None:
        self.lowered = lowered
        super().__init__(name=name)


@register_model(Vector)
class _VectorModel(PrimitiveModel):
    def __init__(self, manager: Any, vector: Vector) -> None:
        super().__init__(manager, vector, vector.lowered)


i8x64 = Vector("i8x64", V8)
i16x32 = Vector("i16x32", V16)
i32x16 = Vector("i32x16", V32)
f32x16 = Vector("f32x16", VF)
address = types.int64

Emit = Callable[..., Any]


def operation(result: types.Type, *parameters: types.Type) -> Callable[[Emit], Any]:
    """Make `emit(builder, *values) -> value` callable from compiled code, with the Numba types given.

    What is made has `emit` as an attribute, for words that are made of words.
    """
    signature = result(*parameters)

    def define(emit: Emit) -> Any:
        def lower(context: Any, builder: Any, _signature: Any, values: Any) -> Any:
            value = emit(builder, *values)
            return context.get_dummy_value() if result is types.void else value

        # Numba wants to see each parameter.
        parameter_list = "".join(f", p{i}" for i in range(len(parameters)))
        typer = eval(f"lambda context{parameter_list}: made", {"made": (signature, lower)})
        typer.__name__ = typer.__qualname__ = emit.__name__
        typer.__doc__ = emit.__doc__
        word: Any = intrinsic(typer)
        word.emit = emit
        return word

    return define


def call(builder: Any, name: str, result: Any, *values: Any) -> Any:
    """Call an LLVM intrinsic or an external function by name."""
    function_type = ir.FunctionType(result, [v.type for v in values])
    function = builder.module.globals.get(name) or ir.Function(builder.module, function_type, name)
    return builder.call(function, values)


def constant(vector: ir.VectorType, value: Any) -> ir.Constant:
    """A vector constant: one value for every lane, or a list of them."""
    return ir.Constant(vector, value if isinstance(value, list) else [value] * vector.count)


def splat(builder: Any, vector: ir.VectorType, scalar: Any) -> Any:
    """All lanes equal to one scalar."""
    first = builder.insert_element(ir.Constant(vector, ir.Undefined), scalar, ir.Constant(I32, 0))
    return builder.shuffle_vector(first, first, constant(ir.VectorType(I32, vector.count), 0))


def pieces(builder: Any, value: Any, count: int) -> list[Any]:
    """The vector cut into `count` equal ones."""
    width = value.type.count // count
    lanes = ir.VectorType(I32, width)
    return [builder.shuffle_vector(value, value, ir.Constant(lanes, list(range(i * width, (i + 1) * width))))
            for i in range(count)]


def joined(builder: Any, parts: list[Any]) -> Any:
    """The vectors put end to end."""
    while len(parts) > 1:
        lanes = ir.VectorType(I32, 2 * parts[0].type.count)
        order = ir.Constant(lanes, list(range(lanes.count)))
        parts = [builder.shuffle_vector(a, b, order) for a, b in zip(parts[::2], parts[1::2], strict=True)]
    return parts[0]
