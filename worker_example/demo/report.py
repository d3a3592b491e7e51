"""Final report of the demo."""

from rich.console import Console
from rich.table import Table


def same_answers(plain: dict, ours: dict) -> bool:
    """Return whether both sides gave exactly the same answers to all jobs."""
    return all(same_answer(plain, ours, name) for name in plain["jobs"])


def same_answer(plain: dict, ours: dict, name: str) -> bool:
    return plain["jobs"][name]["answer"] == ours["jobs"][name]["answer"]


def show(console: Console, plain: dict, ours: dict) -> None:
    """Print the tables."""
    console.print(
        f"\n{plain['rows']:,} flights, a DataFrame of {size(plain['frame'])}.\n"
        "All figures are measured; the servers count their own bytes and memory.\n"
    )
    for table in (
        job_table(plain, ours),
        total_table(plain, ours),
        counter_table(ours["counters"], ours["worker_counters"]),
    ):
        console.print(table)
        console.print()


def titled(title: str, *legend: str) -> Table:
    """Return an empty table with a legend below it."""
    return Table(
        title=title, title_justify="left", caption="\n".join(legend), caption_justify="left"
    )


def job_table(plain: dict, ours: dict) -> Table:
    table = titled(
        "Each job",
        "fan-out: many questions about one DataFrame, one task each",
        "chain: each task gets the DataFrame that the previous one returned",
        "chord: one task for each month, and one that combines their results",
        "seconds: from the first call to the last answer",
        "broker: bytes into and out of the broker and the result backend",
    )
    table.add_column("job")
    table.add_column("tasks", justify="right")
    for column in ("seconds\nplain", "seconds\noffload", "broker\nplain", "broker\noffload"):
        table.add_column(column, justify="right")
    table.add_column("same\nanswer")
    for name, job in plain["jobs"].items():
        other = ours["jobs"][name]
        table.add_row(
            name,
            str(job["tasks"]),
            f"{job['seconds']:.2f}",
            f"{other['seconds']:.2f}",
            size(job["traffic"]["broker"]),
            size(other["traffic"]["broker"]),
            "yes" if same_answer(plain, ours, name) else "[bold red]NO[/bold red]",
        )
    return table


def total_table(plain: dict, ours: dict) -> Table:
    table = titled(
        "All jobs",
        "through: bytes into and out of these servers",
        "results: the result backend",
        "ratio: plain Celery divided by offload; above 1, offload needs less",
    )
    table.add_column("")
    for column in ("plain Celery", "with offload", "ratio"):
        table.add_column(column, justify="right")

    def total(side: dict, key: str) -> float:
        return sum(job[key] for job in side["jobs"].values())

    def traffic(side: dict, server: str) -> int:
        return sum(job["traffic"].get(server, 0) for job in side["jobs"].values())

    def add(label: str, before: float, after: float, form=None) -> None:
        form = form or size
        table.add_row(label, form(before), form(after), ratio(before, after))

    add("through broker and results", traffic(plain, "broker"), traffic(ours, "broker"))
    add("through the store", 0, traffic(ours, "store"))
    add("through all servers", *(traffic(s, "broker") + traffic(s, "store") for s in (plain, ours)))
    add("time for all jobs", total(plain, "seconds"), total(ours, "seconds"), seconds)
    add("  to send the tasks", total(plain, "sent_after"), total(ours, "sent_after"), seconds)
    add("peak memory: broker", plain["peaks"]["broker"], ours["peaks"]["broker"])
    add("peak memory: store", 0, ours["peaks"].get("store", 0))
    add("  at the end", 0, ours["stored"])
    add("peak memory: producer", plain["peak"], ours["peak"])
    add("peak memory: worker, main process", plain["worker"]["main"], ours["worker"]["main"])
    add("peak memory: worker, largest child", plain["worker"]["child"], ours["worker"]["child"])
    return table


def counter_table(producer: dict, worker: dict) -> Table:
    table = titled(
        "offload's counters",
        "producer, worker: who sent, uploaded, or read the values",
        "values: arguments and results that are large enough to be stored",
        "node cache: files that the processes of a machine share. Producer and "
        "worker run on one machine here, so the worker needn't fetch the values "
        "that are there.",
    )
    table.add_column("")
    for column in ("producer", "worker", "total"):
        table.add_column(column, justify="right")
    rows = {
        "values_offloaded": ("values sent by reference", str),
        "bytes_offloaded": ("  their size", size),
        "values_deduplicated": ("  deduplicated: already in the store", str),
        "bytes_uploaded": ("uploaded to the store", size),
        "bytes_stored": ("  after compression", size),
        "values_fetched": ("values fetched from the store", str),
        "cache_hits": ("values read from the node cache", str),
        "cache_bytes": ("  their size", size),
    }
    for name, (label, form) in rows.items():
        counts = producer.get(name, 0), worker.get(name, 0)
        table.add_row(label, *map(form, (*counts, sum(counts))))
    return table


def size(number: float) -> str:
    """Format a number of bytes, such as 41.2 MB."""
    if not number:
        return "-"
    for unit in ("B", "kB", "MB", "GB"):
        if number < 1000 or unit == "GB":
            break
        number /= 1000
    return f"{number:.0f} {unit}" if unit == "B" else f"{number:.1f} {unit}"


def seconds(number: float) -> str:
    return f"{number:.2f} s"


def ratio(before: float, after: float) -> str:
    if not before or not after:
        return ""
    value = before / after
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}"
