"""Memory of processes, from /proc."""

from pathlib import Path


def peak_memory(pid: int | str) -> int:
    """Return a process' peak resident memory in bytes; 0 without /proc."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return 0
    line = next((line for line in status.splitlines() if line.startswith("VmHWM:")), "VmHWM: 0 kB")
    return int(line.split()[1]) * 1024


def children_of(pid: int) -> list[int]:
    """Return a process' children; none without /proc."""
    try:
        return [
            int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        ]
    except OSError:
        return []
