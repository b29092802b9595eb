"""A whole run from Python, with the dataclasses of the commands, and true steps against it."""

import tempfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

import smda_jax as smda

folder = Path(smda.__file__).parent / "embedded"
with tempfile.TemporaryDirectory() as place:
    # A few rows of the data that ship with the package, as files of one's own.
    for name, some in {"prompts": slice(0, 120), "pairs": slice(0, 8)}.items():
        table = pq.read_table(folder / f"{name}.parquet").to_pylist()[some]
        pq.write_table(pa.Table.from_pylist(table), f"{place}/{name}.parquet")
    run = smda.attribute(
        smda.Attribute(
            model=str(folder / "model"),
            sae=str(folder / "sae"),
            eval=f"{place}/prompts.parquet",
            pairs=f"{place}/pairs.parquet",
            out=Path(place) / "run",
            features="contrast:0.3",
            bootstrap=100,
        )
    )
    print(f"mean score {run.score.mean():+.2e}, engine {run.engine}")
    rows = smda.verify(smda.Verify(run=Path(run.out), pairs=4, learning_rates=(1e-5, 1e-3)))
    held = [row for row in rows if row["figure"] == "score"]
    print({row["learning_rate"]: round(row["r2"], 4) for row in held})
