"""The example's tasks. They don't know how their arguments travel."""

import pandas as pd

from worker_example.app import app


@app.task
def delays(flights: pd.DataFrame, carrier: str, late: int) -> dict:
    """Return how often and by how much a carrier's flights are more than `late` minutes late."""
    own = flights[(flights["carrier"] == carrier) & flights["arr_delay"].notna()]
    is_late = own["arr_delay"] > late
    return {
        "carrier": carrier,
        "late": late,
        "flights": len(own),
        "share": float(is_late.mean()),
        "minutes": float(own.loc[is_late, "arr_delay"].mean()) if is_late.any() else 0.0,
    }


@app.task
def clean(flights: pd.DataFrame) -> pd.DataFrame:
    """Drop flights without complete times, such as canceled ones."""
    return flights.dropna(subset=["dep_delay", "arr_delay", "air_time"]).reset_index(drop=True)


@app.task
def features(flights: pd.DataFrame) -> pd.DataFrame:
    """Add columns derived from a flight's times."""
    return flights.assign(
        made_up=flights["dep_delay"] - flights["arr_delay"],
        speed=flights["distance"] / (flights["air_time"] / 60),
        rush=flights["hour"].between(16, 19),
    )


@app.task
def routes(flights: pd.DataFrame, top: int) -> list:
    """Return the routes that recover most delay in the air."""
    by_route = flights.groupby(["origin", "dest"])["made_up"].agg(["mean", "size"])
    best = by_route[by_route["size"] >= 100].sort_values("mean", ascending=False).head(top)
    return [[*route, float(row["mean"]), int(row["size"])] for route, row in best.iterrows()]


@app.task
def year(months: list) -> dict:
    """Combine the months and sum up the year."""
    flights = pd.concat(months, ignore_index=True)
    return {
        "flights": len(flights),
        "speed": float(flights["speed"].mean()),
        "made_up": float(flights["made_up"].sum()),
        "rush": float(flights.loc[flights["rush"], "arr_delay"].mean()),
    }
