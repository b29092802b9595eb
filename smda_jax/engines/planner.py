"""Which engine to take: the cheapest that gives what is kept.

A pure function of the shapes, so that a run that is continued takes the engine it began with.
Seconds follow from the device's rate, which is measured.
"""

import time
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from smda_jax.engines.contract import Engine
from smda_jax.engines.offers import OFFERS, Keep
from smda_jax.engines.workload import Price, Workload

# Of the measured rate of a large product, what an engine is assumed to reach; for estimates only.
SHARE_OF_RATE = 0.4


@dataclass(frozen=True)
class Plan:
    """The engine chosen, what it keeps, its blocks, and the prices it was chosen by."""

    engine: Engine
    keep: Keep
    pair_chunk: int
    batch_size: int
    prices: dict[str, Price] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """Of the engine."""
        return self.engine.offer.name

    def as_dict(self) -> dict[str, Any]:
        """As written to run.json."""
        flop = {name: price.total for name, price in self.prices.items()}
        return {
            "engine": self.name,
            "keep": self.keep.name,
            "pair_block": self.pair_chunk,
            "block": self.batch_size,
            "flop": flop,
        }


def engine_named(name: str) -> Engine:
    """The engine of a name."""
    return OFFERS[name].engine()


def prices(work: Workload, limit: int) -> dict[str, Price]:
    """The price of every engine that can give what is kept, in blocks that fit into `limit`."""
    able = (offer for offer in OFFERS.values() if work.keep.name in offer.gives)
    return {offer.name: offer.engine().price(work, limit) for offer in able}


def choose(work: Workload, limit: int, engine: str = "auto") -> Plan:
    """The engine asked for, or the cheapest first-order one."""
    offers = prices(work, limit)
    cheapest = [name for name in offers if OFFERS[name].first_order]
    name = engine if engine in OFFERS else min(cheapest, key=lambda one: offers[one].total)
    price = offers[name]
    return Plan(engine_named(name), work.keep, price.pair_chunk, price.batch_size, offers)


def measured_rate(dtype: Any, repeats: int = 5) -> float | int:
    """Operations per second of a large matrix product on the default device: the best of some."""
    size = 1024 if jax.default_backend() == "cpu" else 8192
    a = jnp.asarray(np.random.default_rng(0).normal(size=(size, size)), dtype)
    product = jax.jit(lambda a: a @ a)
    product(a).block_until_ready()
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        product(a).block_until_ready()
        seconds.append(time.perf_counter() - start)
    return 2 * size**3 / min(seconds)
