"""Compiled programs: spread over the devices, and asked whether they fit before they run.

A program is declared once, beside its function: along which axis the rows of each argument and of
the result lie, and which arguments are static.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import jax

from smda_jax.runtime.devices import ROWS, Replicated, Summed, devices
from smda_jax.runtime.memory import TooLargeError, memory_limit

# Rough figures that say how much padding is cheaper than one more program.
COMPILE_SECONDS = 2.0  # to compile one program
RATE = {"cpu": 1e11}  # floating-point operations per second, by platform
RATE_ELSEWHERE = 2e14  # of any other platform
# A CPU's program takes hundreds of memory mappings, and Linux grants a process 65,530.
PROGRAMS_ON_CPU = 64


def compiler_options() -> dict[str, Any] | None:
    """Options for the compiler of the backend in use.

    On jax 0.10 the CPU compiler's YNN fusions compute some float32 products of batched attention
    gradients wrongly, by tens of per cents, at sizes that few tests reach; and its fusion emitters
    take three times as long to compile programs that run as fast. 0.12 has neither, and the
    compilers of other backends refuse the options.
    """
    if jax.__version_info__ >= (0, 12) or jax.default_backend() != "cpu":
        return None
    return {"xla_cpu_experimental_ynn_fusion_type": "", "xla_cpu_use_fusion_emitters": False}


def padding_budget(flop_per_token: float | int, passes: float | int) -> float:
    """Tokens of padding that take as long as compiling a program for one more width.

    From constants, not from what is measured: a continued run must find again what it did.

    Args:
        flop_per_token: operations of one token's way through the model.
        passes: how often each token goes that way.
    """
    rate = RATE.get(jax.default_backend(), RATE_ELSEWHERE)
    return COMPILE_SECONDS * rate / (flop_per_token * passes)


@dataclass
class CompiledPrograms:
    """The compiled programs of this process, and the seconds that compiling them took."""

    seconds: float = 0.0
    held: dict[Any, tuple[Any, int]] = field(default_factory=dict)

    def forget(self) -> None:
        """Drops every compiled program, these and JAX's own."""
        self.held.clear()
        jax.clear_caches()

    def find(self, key: Any, compile_program: Callable[[], Any]) -> tuple[Any, int]:
        """(program, bytes that it needs beside its arguments), compiled if it is not held yet."""
        if key not in self.held:
            if len(self.held) >= PROGRAMS_ON_CPU and jax.default_backend() == "cpu":
                self.forget()
            start = time.perf_counter()
            program = compile_program()
            sizes = program.memory_analysis()
            needs = sizes.temp_size_in_bytes + sizes.output_size_in_bytes if sizes else 0
            self.held[key] = (program, needs)
            self.seconds += time.perf_counter() - start
        return self.held[key]


compiled = CompiledPrograms()
REPLICATED = Replicated()


@dataclass(frozen=True)
class Program:
    """A jitted function of arrays whose rows (prompts, or pairs) do not interact.

    Calling it runs it as `jax.jit` would. `run` spreads it over the devices and refuses what does
    not fit into memory.

    Attributes:
        function: what is computed.
        args: where the rows of each positional argument lie (one placement, or a tree of them).
        result: the same of the result; `Summed` where it is a sum over rows.
        static: names of its static arguments.
        donate: positions of arguments whose memory it may take.
    """

    function: Callable[..., Any]
    args: tuple[Any, ...] = ()
    result: Any = REPLICATED
    static: tuple[str, ...] = ()
    donate: tuple[int, ...] = ()

    @property
    def name(self) -> str:
        """Of the function."""
        return self.function.__name__

    @cached_property
    def jitted(self) -> Any:
        """The function under `jax.jit`; made late, since it depends on the backend."""
        return jax.jit(
            self.function,
            static_argnames=self.static,
            donate_argnums=self.donate,
            compiler_options=compiler_options(),
        )

    def __call__(self, *args: Any, **static: Any) -> Any:
        """Runs it here, as it is."""
        return self.jitted(*args, **static)

    def placed(self, args: tuple[Any, ...], result: Any) -> "Program":
        """The same program with rows elsewhere."""
        return replace(self, args=args, result=result)

    def run(self, *args: Any, **static: Any) -> Any:
        """Runs it on the devices in use, once its own memory analysis says that it fits.

        Raises:
            TooLargeError: it does not fit, or running it exhausted the memory.
        """
        several = devices().several
        if several:
            spots = zip(args, self.args, strict=True)
            args = tuple(devices().place(arg, placement) for arg, placement in spots)
        leaves, structure = jax.tree.flatten(args)
        shardings = (getattr(x, "sharding", None) if several else None for x in leaves)
        shapes = tuple((x.shape, x.dtype, s) for x, s in zip(leaves, shardings, strict=True))
        # A program also depends on the precision it was traced under.
        flags = ("jax_enable_x64", "jax_default_matmul_precision")
        context = tuple(getattr(jax.config, flag) for flag in flags)
        places = (devices(), str(self.args), str(self.result)) if several else None
        key = (self.function, structure, shapes, tuple(static.items()), context, places)

        def compile_program() -> Any:
            if not several:
                return self.jitted.lower(*args, **static).compile()
            spread = jax.jit(self._spread(static), compiler_options=compiler_options())
            return spread.lower(*args).compile()

        try:
            program, needs = compiled.find(key, compile_program)
            limit = memory_limit()
            if needs > limit:
                raise TooLargeError(f"needs {needs / 2**30:.1f} GiB of {limit / 2**30:.1f}")
            return jax.block_until_ready(program(*args))
        except jax.errors.JaxRuntimeError as error:
            if "RESOURCE_EXHAUSTED" in str(error) or "out of memory" in str(error).lower():
                raise TooLargeError(str(error).splitlines()[0]) from error
            raise

    def _spread(self, static: dict[str, Any]) -> Any:
        """On each device its own rows; how parameters are split is left to the compiler."""
        mesh = devices().mesh()
        # Where every device holds the same rows there is nothing to add up (and XLA refuses to).
        adds = isinstance(self.result, Summed) and mesh.shape[ROWS] > 1

        def on_own_rows(*args: Any) -> Any:
            result = self.function(*args, **static)
            return jax.lax.psum(result, ROWS) if adds else result

        return jax.shard_map(
            on_own_rows,
            mesh=mesh,
            in_specs=jax.tree.map(lambda placement: placement.spec, self.args),
            out_specs=jax.tree.map(lambda placement: placement.spec, self.result),
            axis_names={ROWS},
            check_vma=False,
        )


def program(
    *args: Any, result: Any = REPLICATED, static: Sequence[str] = (), donate: Sequence[int] = ()
) -> Callable[[Callable[..., Any]], Program]:
    """Declares a program; see `Program`."""

    def declare(function: Callable[..., Any]) -> Program:
        return Program(function, args, result, tuple(static), tuple(donate))

    return declare


jit = program()  # a function without static arguments that is always called as it is
